"""The engines: libraries that build and search HNSW graphs, behind one interface.

A graph is never searched before it is finished nor changed afterwards, because no engine allows that. What is
kept of it is its links (see `links`), which are the same whichever engine made them: one engine's graph is
restored by the other, from the links and the vectors of the nodes.

hnswlib keeps vectors as they come. faiss halves them to float16, which moves a distance by less than 1e-4:
what a graph proposes, the daemon measures again on its own vectors. Vectors have length 1, so the inner
product is the cosine and nothing is normalised.
"""

from collections.abc import Callable
from typing import Any, Protocol

import hnswlib
import msgspec
import numpy as np
import numpy.typing as npt

from appliance.errors import InvalidInput, WorkerRefused
from appliance.search.arrays import Positions, Vector
from appliance.search.links import Links, Rows

_COUNT = 0xFFFF  # of neighbours: hnswlib has a flag beside it in the same word
_COUNTED = 4  # its bytes
_UNSEEN = 94  # bytes a node that hnswlib needs and no file has: a lock, a pointer, the table of labels
_LOCKS = 2_700_000  # bytes a graph, whatever its size: hnswlib's 65,536 locks of labels


Distances = npt.NDArray[np.float32]
Near = tuple[Positions, Distances]
"""Labels and distances (n, k) of n vectors, nearest first; -1 and infinite where no more could be reached."""


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """Of a graph of `size` vectors of `dim` float32: `m` links a node and level, twice as many on level 0,
    chosen among `ef_construction` candidates.
    """

    dim: int
    size: int
    m: int
    ef_construction: int


class Graph(Protocol):
    """A finished graph, for any number of threads."""

    shape: Shape
    memory: int
    """Bytes that it holds, vectors included."""

    def query(self, vectors: Vector, k: int, ef: int) -> Near:
        """Of min(k, size) near ones of each vector (n, dim), out of `ef` candidates or k if that is more.

        Raises InvalidInput for vectors of another dimension.
        """

    def parts(self) -> tuple[Positions, Links]:
        """All that is to be kept beside the vectors: the labels of the nodes and their links."""


class Growing(Protocol):
    """A graph that is being built, in one thread."""

    shape: Shape

    def add(self, labels: Positions, vectors: Vector) -> None:
        """The next vectors (n, dim), of length 1, under labels that are new."""

    def finish(self) -> Graph:
        """Raises InvalidInput when there are not as many vectors as the shape says."""


class Restoring(Protocol):
    """A graph whose links are known, in one thread."""

    rows: Rows
    """(size, dim), zero at first: the vectors are to be written there, in the order of the nodes."""

    def finish(self) -> Graph: ...


class Engine(Protocol):
    """A library, in one process."""

    def begin(self, shape: Shape) -> Growing: ...

    def restore(self, shape: Shape, labels: Positions, links: Links) -> Restoring:
        """From what `Graph.parts` gave, by any engine. Raises InvalidInput for too many levels."""


class Hnswlib:
    """hnswlib 0.8: the vector of a node lies beside its links, in float32."""

    def __init__(self, threads: int) -> None:
        """So many threads build; a query takes the one it comes in."""
        self._threads = threads

    def begin(self, shape: Shape) -> Growing:
        return _GrowingHnswlib(shape, self._threads)

    def restore(self, shape: Shape, labels: Positions, links: Links) -> Restoring:
        return _RestoringHnswlib(shape, labels, links)


def _new_hnswlib(shape: Shape) -> hnswlib.Index:
    index = hnswlib.Index(space="ip", dim=shape.dim)
    index.init_index(shape.size, M=shape.m, ef_construction=shape.ef_construction)
    return index


class _GrowingHnswlib:
    def __init__(self, shape: Shape, threads: int) -> None:
        self.shape = shape
        self._threads = threads
        self._index = _new_hnswlib(shape)

    def add(self, labels: Positions, vectors: Vector) -> None:
        self._index.add_items(vectors, labels, num_threads=self._threads)

    def finish(self) -> Graph:
        _require_all(self.shape, self._index.element_count)
        return HnswlibGraph(self.shape, self._index)


class HnswlibGraph:
    def __init__(self, shape: Shape, index: hnswlib.Index) -> None:
        self.shape = shape
        self.memory = _LOCKS + index.index_file_size() + _UNSEEN * shape.size
        self._index = index

    def query(self, vectors: Vector, k: int, ef: int) -> Near:
        _require_dim(self.shape, vectors)
        self._index.set_ef(max(ef, k))
        k = min(k, self.shape.size)
        try:
            labels, distances = self._index.knn_query(vectors, k, num_threads=1)
        except RuntimeError:  # of some vector fewer can be reached, and it gives none at all then
            if len(vectors) == 1:
                return np.full((1, k), -1), np.full((1, k), np.inf, np.float32)
            each = [self.query(vectors[n : n + 1], k, ef) for n in range(len(vectors))]
            return np.concatenate([one[0] for one in each]), np.concatenate([one[1] for one in each])
        return labels.view(np.int64), distances

    def parts(self) -> tuple[Positions, Links]:
        (state,) = self._index.__getstate__()
        level0 = _Level0(self.shape, state["data_level0"])
        upper = state["link_lists"].view(np.uint32).reshape(-1, 1 + self.shape.m)
        return level0.labels.copy(), Links(
            state["element_levels"].astype(np.uint8),
            _from_counted(level0.lists),
            _from_counted(upper),
            state["enterpoint_node"],
        )


class _Level0:
    """hnswlib's own memory, seen through: of each node its links on level 0, its vector and its label."""

    def __init__(self, shape: Shape, memory: npt.NDArray[np.int8]) -> None:
        lists = _COUNTED + 8 * shape.m
        node = lists + 4 * shape.dim + 8
        self.lists: npt.NDArray[np.uint32] = np.ndarray(
            (shape.size, 1 + 2 * shape.m), np.uint32, memory, 0, (node, 4)
        )
        self.rows: Vector = np.ndarray((shape.size, shape.dim), np.float32, memory, lists, (node, 4))
        self.labels: Positions = np.ndarray((shape.size,), np.int64, memory, node - 8, (node,))


class _RestoringHnswlib:
    """By the door that hnswlib has for pickles, which takes its memory from arrays: no file is needed."""

    def __init__(self, shape: Shape, labels: Positions, links: Links) -> None:
        self._shape = shape
        empty = _new_hnswlib(Shape(shape.dim, 1, shape.m, shape.ef_construction))
        empty.add_items(np.zeros((1, shape.dim), np.float32), np.zeros(1, np.int64), num_threads=1)
        (state,) = empty.__getstate__()
        memory = np.zeros(shape.size * state["size_data_per_element"], np.int8)
        level0 = _Level0(shape, memory)
        level0.lists[:] = _counted(links.base)
        level0.labels[:] = labels
        self.rows: Rows = level0.rows
        self._state = state | {
            "max_elements": shape.size,
            "cur_element_count": shape.size,
            "max_level": int(links.levels[links.entry]),
            "enterpoint_node": links.entry,
            "label_lookup_external": labels.astype(np.uint64),
            "label_lookup_internal": np.arange(shape.size, dtype=np.uint32),
            "element_levels": links.levels.astype(np.int32),
            "data_level0": memory,
            "link_lists": _counted(links.upper).view(np.int8).ravel(),
        }

    def finish(self) -> Graph:
        index = hnswlib.Index.__new__(hnswlib.Index)
        index.__setstate__((self._state,))
        return HnswlibGraph(self._shape, index)


def _from_counted(lists: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    """From lists that begin with how many they are."""
    links = lists[:, 1:].astype(np.int32)
    links[np.arange(links.shape[1]) >= (lists[:, :1] & _COUNT)] = -1
    return links


def _counted(lists: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    counted = np.empty((len(lists), 1 + lists.shape[1]), np.uint32)
    counted[:, 0] = np.count_nonzero(lists >= 0, axis=1)
    np.maximum(lists, 0, out=counted[:, 1:], casting="unsafe")
    return counted


class Faiss:
    """faiss's HNSW over float16: half the memory. It comes with the extra `faiss`."""

    def __init__(self, threads: int) -> None:
        """As Hnswlib. Raises WorkerRefused when it is not installed."""
        try:
            import faiss  # noqa: PLC0415 -- an extra
        except ImportError as error:
            raise WorkerRefused(f'search.engine = "faiss" needs faiss-cpu: {error}') from None
        self._faiss = faiss
        self._threads = threads

    def begin(self, shape: Shape) -> Growing:
        self._faiss.omp_set_num_threads(self._threads)  # of the calling thread
        return _GrowingFaiss(self._faiss, shape)

    def restore(self, shape: Shape, labels: Positions, links: Links) -> Restoring:
        return _RestoringFaiss(self._faiss, shape, labels, links)


def _new_faiss(faiss: Any, shape: Shape) -> Any:
    quantizer = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexHNSWSQ(shape.dim, quantizer, shape.m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = shape.ef_construction
    return index


class _GrowingFaiss:
    def __init__(self, faiss: Any, shape: Shape) -> None:
        self.shape = shape
        self._faiss = faiss
        self._index = _new_faiss(faiss, shape)
        self._labels: list[Positions] = []

    def add(self, labels: Positions, vectors: Vector) -> None:
        self._index.add(vectors)
        self._labels.append(labels.copy())

    def finish(self) -> Graph:
        _require_all(self.shape, self._index.ntotal)
        return _FaissGraph(self._faiss, self.shape, np.concatenate(self._labels), self._index)


class _FaissGraph:
    def __init__(self, faiss: Any, shape: Shape, labels: Positions, index: Any) -> None:
        self.shape = shape
        self.memory = shape.size * (shape.dim * 2 + 8 + 4 + 8) + index.hnsw.neighbors.size() * 4
        self._faiss = faiss
        self._labels = labels
        self._index = index

    def query(self, vectors: Vector, k: int, ef: int) -> Near:
        _require_dim(self.shape, vectors)
        self._faiss.omp_set_num_threads(1)  # of the calling thread
        parameters = self._faiss.SearchParametersHNSW(efSearch=max(ef, k))
        cosines, found = self._index.search(vectors, min(k, self.shape.size), params=parameters)
        reached = found >= 0
        labels = np.where(reached, self._labels[found], -1)
        return labels, np.where(reached, 1 - cosines, np.float32(np.inf))

    def parts(self) -> tuple[Positions, Links]:
        hnsw, copy = self._index.hnsw, self._faiss.vector_to_array
        levels = (copy(hnsw.levels) - 1).astype(np.uint8)  # it counts levels from 1
        lists = copy(hnsw.neighbors).reshape(-1, self.shape.m)
        base = _base_lists(levels)
        return self._labels, Links(
            levels, lists[base].reshape(self.shape.size, -1), lists[~base], hnsw.entry_point
        )


class _RestoringFaiss:
    def __init__(self, faiss: Any, shape: Shape, labels: Positions, links: Links) -> None:
        self._faiss, self._shape, self._labels = faiss, shape, labels
        index = self._index = _new_faiss(faiss, shape)
        hnsw = index.hnsw
        top = int(links.levels[links.entry])
        if top + 2 > hnsw.cum_nneighbor_per_level.size():
            raise InvalidInput(f"a graph of {top} levels is more than faiss makes of {shape.m} links a node")
        base = _base_lists(links.levels)
        lists = np.empty((len(base), shape.m), np.int32)
        lists[base] = links.base.reshape(-1, shape.m)
        lists[~base] = links.upper
        ends = shape.m * np.cumsum(2 + links.levels.astype(np.uint64))
        faiss.copy_array_to_vector(links.levels.astype(np.int32) + 1, hnsw.levels)
        faiss.copy_array_to_vector(np.concatenate([np.zeros(1, np.uint64), ends]), hnsw.offsets)
        faiss.copy_array_to_vector(lists.ravel(), hnsw.neighbors)
        hnsw.entry_point, hnsw.max_level = links.entry, top
        storage = faiss.downcast_index(index.storage)
        storage.codes.resize(shape.size * storage.code_size)
        storage.ntotal = index.ntotal = shape.size
        codes = faiss.rev_swig_ptr(storage.codes.data(), shape.size * storage.code_size)
        self.rows: Rows = codes.view(np.float16).reshape(shape.size, shape.dim)
        self.rows[:] = 0

    def finish(self) -> Graph:
        return _FaissGraph(self._faiss, self._shape, self._labels, self._index)


def _base_lists(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which lists of m are those of level 0: faiss has two for it, then one a level, node after node."""
    ends = np.cumsum(2 + levels.astype(np.int64))
    base = np.zeros(int(ends[-1]), np.bool_)
    starts = ends - levels - 2
    base[starts] = base[starts + 1] = True
    return base


def _require_all(shape: Shape, count: int) -> None:
    if count != shape.size:
        raise InvalidInput(f"a graph of {shape.size} vectors was given {count}")


def _require_dim(shape: Shape, vectors: Vector) -> None:
    if vectors.shape[1] != shape.dim:  # an engine would read past their end
        raise InvalidInput(f"the graph has {shape.dim} dimensions, the query {vectors.shape[1]}")


ENGINES: dict[str, Callable[[int], Engine]] = {"hnswlib": Hnswlib, "faiss": Faiss}
"""By the name that `[search] engine` has for it; given how many threads build."""
