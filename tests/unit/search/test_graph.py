import numpy as np
import pytest

from appliance.errors import InvalidInput, NotFound
from appliance.search.graph import Add, Ask, Begin, Drop, Finish, Graphs, Query
from tests.searching import brute_force, unit

DIM = 32


def built(vectors: np.ndarray, labels: np.ndarray, number: int = 1) -> Graphs:
    memory = memoryview(bytearray(vectors.tobytes()))
    graphs = Graphs(memory, threads=1)
    graphs.change(Begin(number, vectors.shape[1], len(vectors), 16, 200))
    graphs.change(Add(number, labels.astype(np.int64).tobytes()))
    graphs.change(Finish(number))
    return graphs


def asked(graphs: Graphs, vectors: np.ndarray, *asks: Ask) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n, sum of k) and horizons (n, graphs)."""
    answer = graphs.query(Query(list(asks), vectors.shape[1], vectors.tobytes()))
    labels = len(vectors) * sum(ask.k for ask in asks)
    found = np.frombuffer(answer, np.int64, labels).reshape(len(vectors), -1)
    return found, np.frombuffer(answer, np.float32, -1, 8 * labels).reshape(len(vectors), len(asks))


def test_a_graph_answers_with_the_labels_it_was_given() -> None:
    rng = np.random.default_rng(1)
    vectors = unit(rng, 300, DIM)
    graphs = built(vectors, np.arange(300) * 7 + 2**31)
    query = unit(rng, 1, DIM)
    labels, horizons = asked(graphs, query, Ask(1, 10, 300))
    expected, distances = brute_force(vectors, query[0], 10)
    assert labels[0].tolist() == [7 * n + 2**31 for n in expected]
    assert horizons[0].tolist() == pytest.approx([distances[-1]], abs=1e-6)


def test_several_graphs_answer_several_queries_at_once() -> None:
    rng = np.random.default_rng(6)
    vectors, queries = unit(rng, 300, DIM), unit(rng, 5, DIM)
    graphs = built(vectors[:200], np.arange(200))
    graphs._memory = memoryview(bytearray(vectors[200:].tobytes()))
    graphs.change(Begin(2, DIM, 100, 16, 200))
    graphs.change(Add(2, np.arange(200, 300).tobytes()))
    graphs.change(Finish(2))
    labels, horizons = asked(graphs, queries, Ask(1, 4, 200), Ask(2, 3, 100))
    for row, horizon, query in zip(labels, horizons, queries, strict=True):
        for low, part, k in ((0, vectors[:200], 4), (200, vectors[200:], 3)):
            expected, distances = brute_force(part, query, k)
            mine = row[:4] if low == 0 else row[4:]
            assert mine.tolist() == [low + n for n in expected]
            assert horizon[low // 200] == pytest.approx(distances[-1], abs=1e-6)


def test_more_than_there_is_gives_what_there_is_and_says_that_it_is_all() -> None:
    rng = np.random.default_rng(2)
    graphs = built(unit(rng, 5, DIM), np.arange(5))
    labels, horizons = asked(graphs, unit(rng, 2, DIM), Ask(1, 8, 100))
    for row in labels:
        assert sorted(row.tolist()) == [-1, -1, -1, 0, 1, 2, 3, 4]
    assert horizons.tolist() == [[np.inf], [np.inf]]


def test_a_query_of_another_dimension_is_refused() -> None:
    rng = np.random.default_rng(3)
    graphs = built(unit(rng, 5, DIM), np.arange(5))
    with pytest.raises(InvalidInput, match="32 dimensions, the query 16"):
        asked(graphs, unit(rng, 1, DIM // 2), Ask(1, 1, 1))


def test_only_finished_graphs_are_searched_and_only_unfinished_ones_change() -> None:
    rng = np.random.default_rng(4)
    query = unit(rng, 1, DIM)
    graphs = built(unit(rng, 5, DIM), np.arange(5))
    with pytest.raises(NotFound):
        graphs.change(Add(1, np.arange(1).tobytes()))
    graphs.change(Begin(2, DIM, 5, 16, 200))
    with pytest.raises(NotFound):
        asked(graphs, query, Ask(2, 1, 1))
    graphs.change(Drop(1))
    graphs.change(Drop(2))
    for number in (1, 2):
        with pytest.raises(NotFound):
            asked(graphs, query, Ask(number, 1, 1))
    with pytest.raises(NotFound):
        graphs.change(Finish(2))
