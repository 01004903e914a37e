"""What every engine does, and that the links of one are those of the other."""

from collections.abc import Callable

import numpy as np
import pytest

from appliance.errors import InvalidInput
from appliance.search.graph import Engine, Faiss, Graph, Hnswlib, Shape
from appliance.search.links import Links
from tests.searching import Vectors, brute_force, low_rank, unit

DIM, COUNT, M = 32, 2000, 8
SHAPE = Shape(DIM, COUNT, M, 100)
LABELS = np.arange(COUNT, dtype=np.int64) * 5 + 2**33
MAKERS = [Hnswlib, Faiss]

Maker = Callable[[int], Engine]
every_engine = pytest.mark.parametrize("make", MAKERS)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return low_rank(np.random.default_rng(1), COUNT, DIM)


def built(engine: Engine, vectors: Vectors) -> Graph:
    growing = engine.begin(Shape(DIM, len(vectors), M, 100))
    for low in range(0, len(vectors), 300):
        growing.add(LABELS[: len(vectors)][low : low + 300], vectors[low : low + 300])
    return growing.finish()


def restored(engine: Engine, graph: Graph, vectors: Vectors) -> Graph:
    labels, links = graph.parts()
    restoring = engine.restore(graph.shape, labels, links)
    restoring.rows[:] = vectors[np.searchsorted(LABELS, labels)]
    return restoring.finish()


def found(graph: Graph, query: Vectors, k: int, ef: int) -> list[int]:
    """The labels, nearest first."""
    labels, _ = graph.query(query[np.newaxis], k, ef)
    ((*row,),) = labels.tolist()
    return [label for label in row if label >= 0]


def recall(graph: Graph, vectors: Vectors, queries: Vectors, ef: int = 100) -> float:
    right = 0
    for query in queries:
        true, _ = brute_force(vectors, query, 10)
        right += len(set(LABELS[true].tolist()) & set(found(graph, query, 10, ef)))
    return right / (10 * len(queries))


@every_engine
def test_it_finds_the_nearest(make: Maker, vectors: Vectors) -> None:
    graph = built(make(1), vectors)
    assert recall(graph, vectors, vectors[::40]) >= 0.97
    assert found(graph, vectors[7], 1, 50) == [LABELS[7]]


@every_engine
def test_several_vectors_are_answered_as_each_alone_with_ascending_distances(
    make: Maker, vectors: Vectors
) -> None:
    graph = built(make(1), vectors)
    queries = unit(np.random.default_rng(3), 7, DIM)
    labels, distances = graph.query(queries, 10, 100)
    assert labels.shape == distances.shape == (7, 10)
    assert (labels.dtype.name, distances.dtype.name) == ("int64", "float32")
    for query, row, away in zip(queries, labels, distances, strict=True):
        assert row.tolist() == found(graph, query, 10, 100)
        measured = 1 - vectors[np.searchsorted(LABELS, row)].astype(np.float64) @ query
        assert away == pytest.approx(measured, abs=2e-4)
        assert away.tolist() == sorted(away.tolist())


@every_engine
def test_what_cannot_be_reached_is_no_label_and_infinitely_far_away(make: Maker, vectors: Vectors) -> None:
    lonely = Links(np.zeros(4, np.uint8), np.full((4, 2 * M), -1, np.int32), np.empty((0, M), np.int32), 2)
    restoring = make(1).restore(Shape(DIM, 4, M, 100), LABELS[:4], lonely)
    restoring.rows[:] = vectors[:4]
    labels, distances = restoring.finish().query(vectors[:2], 3, 10)
    assert (labels[:, 1:] == -1).all()
    assert np.isinf(distances[labels < 0]).all()


@every_engine
def test_more_than_there_is_gives_what_there_is(make: Maker, vectors: Vectors) -> None:
    graph = built(make(1), vectors[:5])
    assert sorted(found(graph, vectors[0], 100, 100)) == LABELS[:5].tolist()
    assert found(built(make(1), vectors[:1]), vectors[9], 3, 3) == [LABELS[0]]


@every_engine
def test_another_dimension_is_refused(make: Maker, vectors: Vectors) -> None:
    graph = built(make(1), vectors[:50])
    for wrong in (vectors[:2, :16], vectors[:2].reshape(1, -1)):
        with pytest.raises(InvalidInput, match="32 dimensions"):
            graph.query(wrong, 1, 10)


@every_engine
def test_fewer_vectors_than_announced_are_no_graph(make: Maker, vectors: Vectors) -> None:
    growing = make(1).begin(SHAPE)
    growing.add(LABELS[:10], vectors[:10])
    with pytest.raises(InvalidInput, match="2000 vectors was given 10"):
        growing.finish()


@every_engine
def test_its_memory_is_counted(make: Maker, vectors: Vectors) -> None:
    least = DIM * (4 if make is Hnswlib else 2) + 8 * M + 8
    fixed = 2_700_000 if make is Hnswlib else 0
    assert least <= (built(make(1), vectors).memory - fixed) / COUNT <= least + 120


@pytest.mark.parametrize("other", MAKERS)
@every_engine
def test_a_restored_graph_is_the_same_graph_whoever_restores_it(
    make: Maker, other: Maker, vectors: Vectors
) -> None:
    graph = built(make(2), vectors)
    again = restored(other(1), graph, vectors)
    if make is other:
        for query in vectors[::20]:
            assert found(again, query, 10, 40) == found(graph, query, 10, 40)
    assert recall(again, vectors, vectors[::20]) >= recall(graph, vectors, vectors[::20]) - 0.005
    labels, links = graph.parts()
    again_labels, again_links = again.parts()
    assert again_labels.tolist() == labels.tolist()
    assert [bytes(piece) for piece in again_links.pieces()] == [bytes(piece) for piece in links.pieces()]


@every_engine
def test_the_smallest_graphs_are_restored_too(make: Maker, vectors: Vectors) -> None:
    for count in (1, 2, 3):
        again = restored(make(1), built(make(1), vectors[:count]), vectors)
        assert sorted(found(again, vectors[0], 5, 10)) == LABELS[:count].tolist()


@every_engine
def test_what_died_is_searched_past(make: Maker, vectors: Vectors) -> None:
    """A fifth of the vectors is gone: what stands in for them leads on as they did."""
    rng = np.random.default_rng(2)
    dead = np.sort(rng.permutation(COUNT)[: COUNT // 5])
    living = np.setdiff1d(np.arange(COUNT), dead)
    graph = built(make(1), vectors)
    labels, links = graph.parts()
    remaining = vectors.copy()
    remaining[dead] = 0
    restoring = make(1).restore(SHAPE, labels, links)
    restoring.rows[:] = remaining
    links.stand_in(restoring.rows, dead)
    again = restoring.finish()
    shares = []
    for one in (graph, again):
        right = 0
        for query in vectors[::20]:
            true, _ = brute_force(vectors[living], query, 10)
            proposed = [label for label in found(one, query, 25, 64) if label in set(LABELS[living])]
            right += len(set(LABELS[living[true]].tolist()) & set(proposed[:10]))
        shares.append(right / (10 * len(vectors[::20])))
    assert shares[1] >= shares[0] - 0.01


def test_a_graph_of_more_levels_than_faiss_has_is_refused() -> None:
    levels = np.zeros(3, np.uint8)
    levels[1] = 40
    links = Links(levels, np.full((3, 2 * M), -1, np.int32), np.full((40, M), -1, np.int32), 1)
    with pytest.raises(InvalidInput, match="40 levels"):
        Faiss(1).restore(Shape(DIM, 3, M, 100), LABELS[:3], links)
