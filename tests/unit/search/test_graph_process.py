import numpy as np
import pytest

from appliance.errors import InvalidInput, NotFound
from appliance.search.graph import Add, Begin, Drop, Finish, Graphs, Query
from tests.searching import brute_force, unit

DIM = 32


def built(vectors: np.ndarray, labels: np.ndarray, number: int = 1) -> Graphs:
    memory = memoryview(bytearray(vectors.tobytes()))
    graphs = Graphs(memory, threads=1)
    graphs.change(Begin(number, vectors.shape[1], len(vectors), 16, 200))
    graphs.change(Add(number, labels.astype(np.int64).tobytes()))
    graphs.change(Finish(number))
    return graphs


def test_a_graph_answers_with_the_labels_it_was_given() -> None:
    rng = np.random.default_rng(1)
    vectors = unit(rng, 300, DIM)
    graphs = built(vectors, np.arange(300) * 7 + 2**31)
    query = unit(rng, 1, DIM)[0]
    labels = np.frombuffer(graphs.query(Query(1, 10, 300, query.tobytes())), np.int64)
    expected, _ = brute_force(vectors, query, 10)
    assert labels.tolist() == [7 * n + 2**31 for n in expected]


def test_more_than_there_is_gives_what_there_is() -> None:
    rng = np.random.default_rng(2)
    graphs = built(unit(rng, 5, DIM), np.arange(5))
    answer = graphs.query(Query(1, 100, 100, unit(rng, 1, DIM)[0].tobytes()))
    assert sorted(np.frombuffer(answer, np.int64).tolist()) == [0, 1, 2, 3, 4]


def test_a_query_of_another_dimension_is_refused() -> None:
    rng = np.random.default_rng(3)
    graphs = built(unit(rng, 5, DIM), np.arange(5))
    with pytest.raises(InvalidInput, match="32 dimensions, the query 16"):
        graphs.query(Query(1, 1, 1, unit(rng, 1, DIM // 2)[0].tobytes()))


def test_only_finished_graphs_are_searched_and_only_unfinished_ones_change() -> None:
    rng = np.random.default_rng(4)
    query = unit(rng, 1, DIM)[0].tobytes()
    graphs = built(unit(rng, 5, DIM), np.arange(5))
    with pytest.raises(NotFound):
        graphs.change(Add(1, np.arange(1).tobytes()))
    graphs.change(Begin(2, DIM, 5, 16, 200))
    with pytest.raises(NotFound):
        graphs.query(Query(2, 1, 1, query))
    graphs.change(Drop(1))
    graphs.change(Drop(2))
    for number in (1, 2):
        with pytest.raises(NotFound):
            graphs.query(Query(number, 1, 1, query))
    with pytest.raises(NotFound):
        graphs.change(Finish(2))
