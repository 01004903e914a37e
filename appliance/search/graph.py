"""The child process that holds hnswlib: one thread of low priority builds graphs, the first searches them.

A graph is never searched before it is finished nor changed afterwards, because hnswlib allows neither.
Vectors come in shared memory; no file is ever read or written. Nothing here is needed to answer: the daemon
has every vector and searches exactly while a graph is missing.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from functools import partial

import hnswlib
import msgspec
import numpy as np
import numpy.typing as npt

from appliance.channel import Channel
from appliance.errors import InvalidInput, NotFound

BUILD_NICENESS = 10
TARGET = "appliance.search.graph:serve"

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Horizons = npt.NDArray[np.float32]


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Start a graph of at most `size` vectors of `dim` float32."""

    graph: int
    dim: int
    size: int
    m: int
    ef_construction: int


class Add(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Add the first len(labels) / 8 vectors of the shared memory, under these labels (int64)."""

    graph: int
    labels: bytes


class Finish(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Make the graph searchable."""

    graph: int


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """How many nearest are wanted of a graph, and how many candidates it shall look at for them."""

    graph: int
    k: int
    ef: int


class Query(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """What these graphs have nearest to each of the float32 vectors (n, dim).

    The answer is the labels (int64), for each vector those of the first graph, then of the next, k each, -1
    where it has fewer; then (float32) for each vector and graph how far away the last of them is, at which
    distance the graph may have more: infinite where it has not, negative infinite where it gave none.
    """

    asks: list[Ask]
    dim: int
    vectors: bytes


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Forget a graph, finished or not."""

    graph: int


Change = Begin | Add | Finish | Drop
_MESSAGE: msgspec.msgpack.Decoder[Change | Query] = msgspec.msgpack.Decoder(Change | Query)


class Graphs:
    """What this process holds: `change` for one thread, `query` for another."""

    def __init__(self, memory: memoryview, threads: int) -> None:
        self._memory = memory
        self._threads = threads
        self._unfinished: dict[int, hnswlib.Index] = {}
        self._finished: dict[int, hnswlib.Index] = {}

    def change(self, message: Change) -> bytes:
        """Build a step, or drop; the answer is empty. NotFound for a graph that was never begun here."""
        match message:
            case Begin():
                # Vectors have length 1: the inner product is the cosine, nothing need be normalised again.
                index = hnswlib.Index(space="ip", dim=message.dim)
                index.init_index(message.size, M=message.m, ef_construction=message.ef_construction)
                self._unfinished[message.graph] = index
            case Add():
                index = _known(self._unfinished, message.graph)
                labels = np.frombuffer(message.labels, np.int64)
                vectors = np.frombuffer(self._memory, np.float32, len(labels) * index.dim)
                index.add_items(vectors.reshape(len(labels), index.dim), labels, num_threads=self._threads)
            case Finish():
                self._finished[message.graph] = _known(self._unfinished, message.graph)
                del self._unfinished[message.graph]
            case Drop():
                self._finished.pop(message.graph, None)
                self._unfinished.pop(message.graph, None)
        return b""

    def query(self, message: Query) -> bytes:
        """See `Query`. Raises NotFound, InvalidInput."""
        vectors = np.frombuffer(message.vectors, np.float32).reshape(-1, message.dim)
        labels, horizons = [], []
        for ask in message.asks:
            index = _known(self._finished, ask.graph)
            if message.dim != index.dim:  # hnswlib would read past the vector's end
                raise InvalidInput(f"graph {ask.graph} has {index.dim} dimensions, the query {message.dim}")
            found, horizon = _nearest(index, vectors, ask)
            labels.append(found)
            horizons.append(horizon)
        return np.concatenate(labels, axis=1).tobytes() + np.stack(horizons, axis=1).tobytes()


class _Answers:
    """The channel's sending side, for both threads."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def give(self, identifier: int, act: Callable[[], bytes]) -> None:
        """Answer a request with what `act` returns, or with its refusal."""
        try:
            answer = act()
        except (NotFound, InvalidInput) as refusal:
            with self._lock:
                self._channel.refuse(identifier, refusal)
        else:
            with self._lock:
                self._channel.send(identifier, answer)


def serve(channel: Channel, settings: dict[str, int]) -> None:
    """The target of the graph process: `settings["threads"]` build, the one memory carries vectors to add."""
    graphs = Graphs(channel.memories[0], settings["threads"])
    answers = _Answers(channel)
    changes: queue.SimpleQueue[tuple[int, Change]] = queue.SimpleQueue()

    def build() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BUILD_NICENESS)
        with contextlib.suppress(BrokenPipeError):  # the daemon is gone; the first thread finds out as well
            while True:
                identifier, message = changes.get()
                answers.give(identifier, partial(graphs.change, message))

    threading.Thread(target=build, name="build", daemon=True).start()
    channel.ready({"engine": "hnswlib"})
    while (request := channel.receive()) is not None:
        identifier, body = request
        message = _MESSAGE.decode(body)
        if isinstance(message, Query):
            answers.give(identifier, partial(graphs.query, message))
        else:
            changes.put((identifier, message))


def _known(graphs: dict[int, hnswlib.Index], graph: int) -> hnswlib.Index:
    if graph not in graphs:
        raise NotFound(f"no graph {graph}")
    return graphs[graph]


def _nearest(index: hnswlib.Index, vectors: Vectors, ask: Ask) -> tuple[Labels, Horizons]:
    """Labels (n, k) and horizons (n) as in an answer to `Query`."""
    k = min(ask.k, index.element_count)
    index.set_ef(max(ask.ef, k))
    try:
        found, distances = index.knn_query(vectors, k, num_threads=1)
    except RuntimeError:  # of some vector fewer than k can be reached
        if len(vectors) == 1:
            return np.full((1, ask.k), -1, np.int64), np.array([-np.inf], np.float32)
        each = [_nearest(index, vectors[n : n + 1], ask) for n in range(len(vectors))]
        return np.concatenate([one[0] for one in each]), np.concatenate([one[1] for one in each])
    labels: Labels = found.view(np.int64)
    if k == index.element_count:
        missing = np.full((len(vectors), ask.k - k), -1, np.int64)
        return np.concatenate([labels, missing], axis=1), np.full(len(vectors), np.inf, np.float32)
    return labels, distances[:, -1]
