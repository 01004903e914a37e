"""The child process of graphs: one thread searches them, one of low priority builds, one restores.

Vectors and links come and go in shared memory, a piece at a time; no file is ever read or written. Nothing
here is needed to answer: the daemon has every vector and searches exactly while a graph is missing.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.channel import Channel
from appliance.errors import InvalidInput, NotFound
from appliance.process import trim_memory
from appliance.search.arrays import Positions, Vector
from appliance.search.graph import ENGINES, Engine, Graph, Growing, Restoring, Shape
from appliance.search.links import Links

Horizons = npt.NDArray[np.float32]
T = TypeVar("T")

BUILD_NICENESS = 10
TARGET = "appliance.search.graph_process:serve"
BUILDING, FILING = 0, 1
"""Which shared memory is whose: that of vectors to build with, and that of what is kept and restored."""
_TOGETHER = 8
"""Queries that are answered together. The first of them waits for the last: 1.5 ms over 100,000 vectors of
256 dimensions, at 24 candidates (measured)."""


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Start a graph of `size` vectors of `dim` float32."""

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
    """Make the graph searchable; the answer is how many bytes it holds (8, little-endian)."""

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
    distance the graph may have more: infinite where it has not, negative infinite where it gave too few.
    """

    asks: list[Ask]
    dim: int
    vectors: bytes


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Forget a graph, finished or not."""

    graph: int


class Dump(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Take down labels, ascending, and links of a finished graph; the answer is their length (8 bytes)."""

    graph: int


class Read(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The next piece of what was taken down, into the shared memory; the answer is its length (8 bytes)."""

    graph: int


class Restore(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Start a graph of which `length` bytes of labels and links are to come."""

    graph: int
    dim: int
    size: int
    m: int
    ef_construction: int
    length: int


class Write(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The next so many bytes of labels and links, in the shared memory. What is unsound is refused."""

    graph: int
    length: int


class Rows(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The vectors of so many nodes from `first` on, in the shared memory; zero for one that is gone."""

    graph: int
    first: int
    count: int


class Restored(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """As Finish."""

    graph: int


Build = Begin | Add | Finish | Drop
Filing = Dump | Read | Restore | Write | Rows | Restored | Drop
_MESSAGE: msgspec.msgpack.Decoder[Build | Filing | Query] = msgspec.msgpack.Decoder(Build | Filing | Query)


class Graphs:
    """What this process holds: `build` for one thread, `file` for another, `query` for a third."""

    def __init__(self, engine: Engine, building: memoryview, filing: memoryview) -> None:
        self._engine = engine
        self._building = building
        self._filing = filing
        self._growing: dict[int, Growing] = {}
        self._dumps: dict[int, memoryview] = {}
        self._restoring: dict[int, _Restoration] = {}
        self._finished: dict[int, Graph] = {}

    def build(self, message: Build) -> bytes:
        """A step. NotFound for a graph that was never begun here."""
        match message:
            case Begin():
                self._growing[message.graph] = self._engine.begin(_shape(message))
            case Add():
                growing = _known(self._growing, message.graph)
                labels = np.frombuffer(message.labels, np.int64)
                vectors = np.frombuffer(self._building, np.float32, len(labels) * growing.shape.dim)
                growing.add(labels, vectors.reshape(len(labels), growing.shape.dim))
            case Finish():
                return self._finish(message.graph, _taken(self._growing, message.graph).finish())
            case Drop():
                self._growing.pop(message.graph, None)
                self._finished.pop(message.graph, None)
        return b""

    def file(self, message: Filing) -> bytes:
        """A step. NotFound as `build`; InvalidInput for what no sound graph has left."""
        match message:
            case Dump():
                dump = _taken_down(_known(self._finished, message.graph))
                self._dumps[message.graph] = dump
                return len(dump).to_bytes(8, "little")
            case Read():
                dump = _taken(self._dumps, message.graph)
                length = min(len(dump), len(self._filing))
                self._filing[:length] = dump[:length]
                if length < len(dump):
                    self._dumps[message.graph] = dump[length:]
                else:
                    del dump
                    trim_memory()
                return length.to_bytes(8, "little")
            case Restore():
                self._restoring[message.graph] = _Restoration(self._engine, _shape(message), message.length)
            case Write():
                _known(self._restoring, message.graph).write(self._filing[: message.length])
            case Rows():
                _known(self._restoring, message.graph).place(message.first, message.count, self._filing)
            case Restored():
                return self._finish(message.graph, _taken(self._restoring, message.graph).finish())
            case Drop():
                self._dumps.pop(message.graph, None)
                self._restoring.pop(message.graph, None)
                self._finished.pop(message.graph, None)
        return b""

    def query(self, message: Query) -> bytes:
        """See `Query`. Raises NotFound, InvalidInput."""
        vectors = np.frombuffer(message.vectors, np.float32).reshape(-1, message.dim)
        near = [_nearest(_known(self._finished, ask.graph), vectors, ask) for ask in message.asks]
        labels = near[0][0] if len(near) == 1 else np.concatenate([one for one, _ in near], axis=1)
        horizons = np.array([one for _, one in near]).T
        return labels.tobytes() + horizons.tobytes()

    def _finish(self, number: int, graph: Graph) -> bytes:
        self._finished[number] = graph
        trim_memory()
        return graph.memory.to_bytes(8, "little")


class _Restoration:
    """One graph on its way back: first labels and links, then the vectors of its nodes."""

    def __init__(self, engine: Engine, shape: Shape, length: int) -> None:
        self._engine = engine
        self._shape = shape
        self._content = bytearray(length)
        self._filled = 0
        self._links: Links | None = None
        self._restoring: Restoring | None = None
        self._dead = np.zeros(shape.size, np.bool_)

    def write(self, piece: memoryview) -> None:
        end = self._filled + len(piece)
        if end > len(self._content):
            raise InvalidInput("more came of a graph than was announced")
        self._content[self._filled : end] = piece
        self._filled = end
        if end == len(self._content):
            size = self._shape.size
            if end < 8 * size:
                raise InvalidInput(f"{size} labels do not fit into {end} bytes")
            labels = np.frombuffer(self._content, np.int64, size).copy()
            self._links = Links.read(memoryview(self._content)[8 * size :], size, self._shape.m)
            self._restoring = self._engine.restore(self._shape, labels, self._links)

    def place(self, first: int, count: int, memory: memoryview) -> None:
        dim, size = self._shape.dim, self._shape.size
        if self._restoring is None or not 0 <= first <= first + count <= size:
            raise InvalidInput(f"nodes {first} to {first + count} are not expected of a graph of {size}")
        vectors = np.frombuffer(memory, np.float32, count * dim).reshape(count, dim)
        self._restoring.rows[first : first + count] = vectors
        self._dead[first : first + count] = ~vectors.any(axis=1)

    def finish(self) -> Graph:
        if self._restoring is None or self._links is None:
            raise InvalidInput("a graph is not restored without its links")
        self._links.stand_in(self._restoring.rows, np.flatnonzero(self._dead))
        return self._restoring.finish()


def _nearest(graph: Graph, vectors: Vector, ask: Ask) -> tuple[Positions, Horizons]:
    """Labels (n, k) and horizons (n) as in an answer to `Query`."""
    labels, distances = graph.query(vectors, ask.k, ask.ef)
    size = graph.shape.size
    last = distances[:, -1]
    reached = last < np.inf
    horizons = np.where(reached, last if ask.k < size else np.float32(np.inf), np.float32(-np.inf))
    if ask.k > size:
        labels = np.pad(labels, ((0, 0), (0, ask.k - size)), constant_values=-1)
    return labels, horizons


def _taken_down(graph: Graph) -> memoryview:
    labels, links = graph.parts()
    if np.any(labels[1:] < labels[:-1]):  # several threads added them
        order = np.argsort(labels)
        labels, links = labels[order], links.ordered(order)
    return memoryview(b"".join([labels.astype("<i8", copy=False).tobytes(), *links.pieces()]))


def _give(channel: Channel, identifier: int, act: Callable[[], bytes]) -> None:
    """Answer a request with what `act` returns, or with its refusal."""
    try:
        answer = act()
    except (NotFound, InvalidInput) as refusal:
        channel.refuse(identifier, refusal)
    else:
        channel.send(identifier, answer)


def _passed_on(
    requests: Sequence[tuple[int, bytes]],
    builds: "queue.SimpleQueue[tuple[int, Build]]",
    filings: "queue.SimpleQueue[tuple[int, Filing]]",
) -> tuple[list[tuple[int, Query]], list[tuple[int, Drop]]]:
    """Queries, and graphs to drop; the other threads have the rest before any query is answered."""
    asked, dropped = list[tuple[int, Query]](), list[tuple[int, Drop]]()
    for identifier, body in requests:
        match message := _MESSAGE.decode(body):
            case Query():
                asked.append((identifier, message))
            case Drop():
                dropped.append((identifier, message))
            case Begin() | Add() | Finish():
                builds.put((identifier, message))
            case _:
                filings.put((identifier, message))
    return asked, dropped


def _give_together(channel: Channel, graphs: Graphs, asked: Sequence[tuple[int, Query]]) -> None:
    """Answer queries that came together, some at a time: the daemon's loop wakes up once for these."""
    for some in range(0, len(asked), _TOGETHER):
        answers = list[tuple[int, bytes]]()
        for identifier, query in asked[some : some + _TOGETHER]:
            try:
                answers.append((identifier, graphs.query(query)))
            except (NotFound, InvalidInput) as refusal:
                channel.refuse(identifier, refusal)
        channel.send_all(answers)


def serve(channel: Channel, settings: dict[str, int | str]) -> None:
    """The target of the graph process: `settings` has the "engine" and how many "threads" build."""
    engine = ENGINES[str(settings["engine"])](int(settings["threads"]))
    graphs = Graphs(engine, channel.memories[BUILDING], channel.memories[FILING])
    give = partial(_give, channel)
    builds: queue.SimpleQueue[tuple[int, Build]] = queue.SimpleQueue()
    filings: queue.SimpleQueue[tuple[int, Filing]] = queue.SimpleQueue()

    def build() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BUILD_NICENESS)
        with contextlib.suppress(BrokenPipeError):  # the daemon is gone; the first thread finds out as well
            while True:
                identifier, message = builds.get()
                if isinstance(message, Drop):  # what the other thread has of it goes too, after all before
                    graphs.build(message)
                    filings.put((identifier, message))
                else:
                    give(identifier, partial(graphs.build, message))

    def file() -> None:
        with contextlib.suppress(BrokenPipeError):
            while True:
                identifier, message = filings.get()
                give(identifier, partial(graphs.file, message))

    for name, work in (("build", build), ("file", file)):
        threading.Thread(target=work, name=name, daemon=True).start()
    channel.ready({})
    while requests := channel.receive_all():
        asked, dropped = _passed_on(requests, builds, filings)
        _give_together(channel, graphs, asked)
        for drop in dropped:  # what was asked of the graph before has been answered
            builds.put(drop)


def _shape(message: Begin | Restore) -> Shape:
    return Shape(message.dim, message.size, message.m, message.ef_construction)


def _known(graphs: dict[int, T], graph: int) -> T:
    if graph not in graphs:
        raise NotFound(f"no graph {graph}")
    return graphs[graph]


def _taken(graphs: dict[int, T], graph: int) -> T:
    known = _known(graphs, graph)
    del graphs[graph]
    return known
