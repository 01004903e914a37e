"""The graph process' own state: what it answers to each message, in one process with the test."""

import asyncio
import os
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from appliance.errors import InvalidInput, NotFound
from appliance.search.graph import Hnswlib
from appliance.search.graph_process import (
    TARGET,
    Add,
    Ask,
    Begin,
    Drop,
    Dump,
    Finish,
    Graphs,
    Query,
    Read,
    Restore,
    Restored,
    Rows,
    Write,
)
from appliance.search.links import Links
from appliance.workers import Memory, Worker
from tests.searching import Vectors, brute_force, unit

DIM = 32
OF_THE_APPLIANCE = {
    *("", ".channel", ".errors", ".process", ".sandbox", ".search", ".search.arrays", ".search.graph"),
    *(".search.graph_process", ".search.links"),
}
PIECE = 4096


class Held:
    """Graphs and the two memories by which they are reached."""

    def __init__(self) -> None:
        self.building = memoryview(bytearray(1 << 20))
        self.filing = memoryview(bytearray(PIECE))
        self.graphs = Graphs(Hnswlib(threads=2), self.building, self.filing)

    def build(self, vectors: Vectors, labels: np.ndarray, number: int = 1) -> None:
        self.building[: vectors.nbytes] = vectors.tobytes()
        self.graphs.build(Begin(number, vectors.shape[1], len(vectors), 16, 200))
        self.graphs.build(Add(number, labels.astype(np.int64).tobytes()))
        self.graphs.build(Finish(number))

    def dump(self, number: int = 1) -> bytes:
        length = int.from_bytes(self.graphs.file(Dump(number)), "little")
        content = b""
        while len(content) < length:
            size = int.from_bytes(self.graphs.file(Read(number)), "little")
            content += bytes(self.filing[:size])
        return content

    def write(self, content: bytes, number: int) -> None:
        for low in range(0, len(content), PIECE):
            piece = content[low : low + PIECE]
            self.filing[: len(piece)] = piece
            self.graphs.file(Write(number, len(piece)))

    def restore(self, content: bytes, vectors: Vectors, number: int) -> None:
        self.graphs.file(Restore(number, DIM, len(vectors), 16, 200, len(content)))
        self.write(content, number)
        step = PIECE // (DIM * 4)
        for low in range(0, len(vectors), step):
            rows = vectors[low : low + step]
            self.filing[: rows.nbytes] = rows.tobytes()
            self.graphs.file(Rows(number, low, len(rows)))
        self.graphs.file(Restored(number))

    def asked(self, vectors: Vectors, *asks: Ask) -> tuple[np.ndarray, np.ndarray]:
        """Labels (n, sum of k) and horizons (n, graphs)."""
        answer = self.graphs.query(Query(list(asks), vectors.shape[1], vectors.tobytes()))
        labels = len(vectors) * sum(ask.k for ask in asks)
        found = np.frombuffer(answer, np.int64, labels).reshape(len(vectors), -1)
        return found, np.frombuffer(answer, np.float32, -1, 8 * labels).reshape(len(vectors), len(asks))

    def find(self, query: Vectors, k: int, number: int = 1) -> list[int]:
        labels, _ = self.asked(query[np.newaxis], Ask(number, k, 300))
        (found,) = labels.tolist()
        return list(found)


def test_a_graph_answers_with_the_labels_it_was_given() -> None:
    rng = np.random.default_rng(1)
    vectors, held = unit(rng, 300, DIM), Held()
    held.build(vectors, np.arange(300) * 7 + 2**31)
    query = unit(rng, 1, DIM)[0]
    expected, distances = brute_force(vectors, query, 10)
    labels, horizons = held.asked(query[np.newaxis], Ask(1, 10, 300))
    assert labels[0].tolist() == [7 * n + 2**31 for n in expected]
    assert horizons[0].tolist() == pytest.approx([distances[-1]], abs=1e-6)


def test_several_graphs_answer_several_queries_at_once() -> None:
    rng = np.random.default_rng(6)
    vectors, queries, held = unit(rng, 300, DIM), unit(rng, 5, DIM), Held()
    held.build(vectors[:200], np.arange(200))
    held.build(vectors[200:], np.arange(200, 300), 2)
    labels, horizons = held.asked(queries, Ask(1, 4, 200), Ask(2, 3, 100))
    for row, horizon, query in zip(labels, horizons, queries, strict=True):
        for low, part, k in ((0, vectors[:200], 4), (200, vectors[200:], 3)):
            expected, distances = brute_force(part, query, k)
            mine = row[:4] if low == 0 else row[4:]
            assert mine.tolist() == [low + n for n in expected]
            assert horizon[low // 200] == pytest.approx(distances[-1], abs=1e-6)


def test_more_than_there_is_gives_what_there_is_and_says_that_it_is_all() -> None:
    rng, held = np.random.default_rng(2), Held()
    held.build(unit(rng, 5, DIM), np.arange(5))
    for k, missing in ((5, []), (8, [-1, -1, -1])):
        labels, horizons = held.asked(unit(rng, 2, DIM), Ask(1, k, 100))
        for row in labels:
            assert sorted(row.tolist()) == [*missing, 0, 1, 2, 3, 4]
        assert horizons.tolist() == [[np.inf], [np.inf]]


def test_a_graph_that_reaches_too_few_has_looked_nowhere() -> None:
    vectors, held = unit(np.random.default_rng(8), 4, DIM), Held()
    links = Links(np.zeros(4, np.uint8), np.full((4, 32), -1, np.int32), np.empty((0, 16), np.int32), 2)
    held.restore(np.arange(4).tobytes() + b"".join(links.pieces()), vectors, 1)
    for k in (2, 4, 6):
        labels, horizons = held.asked(vectors, Ask(1, k, 10))
        assert (labels[:, 1:] == -1).all()
        assert (horizons == -np.inf).all()


def test_a_query_of_another_dimension_is_refused() -> None:
    held = Held()
    held.build(unit(np.random.default_rng(3), 5, DIM), np.arange(5))
    with pytest.raises(InvalidInput, match="32 dimensions, the query 16"):
        held.find(unit(np.random.default_rng(3), 1, DIM // 2)[0], 1)


def test_only_finished_graphs_are_searched_and_only_unfinished_ones_change() -> None:
    rng = np.random.default_rng(4)
    query, held = unit(rng, 1, DIM)[0], Held()
    held.build(unit(rng, 5, DIM), np.arange(5))
    with pytest.raises(NotFound):
        held.graphs.build(Add(1, np.arange(1).tobytes()))
    held.graphs.build(Begin(2, DIM, 5, 16, 200))
    with pytest.raises(NotFound):
        held.find(query, 1, 2)
    held.graphs.build(Drop(1))
    held.graphs.build(Drop(2))
    for number in (1, 2):
        with pytest.raises(NotFound):
            held.find(query, 1, number)
    with pytest.raises(NotFound):
        held.graphs.build(Finish(2))


def test_a_graph_that_is_restored_from_pieces_answers_as_before() -> None:
    rng = np.random.default_rng(5)
    vectors, held = unit(rng, 500, DIM), Held()
    labels = rng.permutation(500) * 3  # as if many threads had added them
    held.build(vectors, labels)
    content = held.dump()
    assert np.frombuffer(content, np.int64, 500).tolist() == sorted(labels.tolist())
    held.restore(content, vectors[np.argsort(labels)], 2)
    held.graphs.build(Drop(1))
    for query in unit(rng, 30, DIM):
        expected, _ = brute_force(vectors, query, 10)
        assert held.find(query, 10, 2) == labels[expected].tolist()


def test_what_does_not_fit_together_is_refused_before_an_engine_sees_it() -> None:
    vectors, held = unit(np.random.default_rng(6), 100, DIM), Held()
    held.build(vectors, np.arange(100))
    content = held.dump()
    for length, announced in ((len(content) - 4, 100), (len(content), 101), (900, 100)):
        held.graphs.file(Restore(2, DIM, announced, 16, 200, length))
        with pytest.raises(InvalidInput):
            held.write(content[:length], 2)
    held.graphs.file(Restore(2, DIM, 100, 16, 200, len(content)))
    for early in (Rows(2, 0, 1), Restored(2)):
        with pytest.raises(InvalidInput):
            held.graphs.file(early)
    held.graphs.file(Restore(2, DIM, 100, 16, 200, len(content)))
    held.write(content, 2)
    for beyond in (Rows(2, 90, 11), Rows(2, -1, 1), Write(2, 1)):
        with pytest.raises(InvalidInput):
            held.graphs.file(beyond)


def test_a_dropped_graph_is_taken_down_no_further() -> None:
    held = Held()
    held.build(unit(np.random.default_rng(7), 100, DIM), np.arange(100))
    held.graphs.file(Dump(1))
    held.graphs.file(Drop(1))
    for message in (Read(1), Dump(1)):
        with pytest.raises(NotFound):
            held.graphs.file(message)


async def test_what_comes_at_once_is_answered_each_for_itself() -> None:
    """Queries, one of a graph that is not there, and the beginning of another, met by a stopped process."""
    vectors = unit(np.random.default_rng(9), 100, DIM)
    building, filing = Memory(vectors.nbytes), Memory(PIECE)
    building.view[:] = vectors.tobytes()
    settings = {"engine": "hnswlib", "threads": 1}
    try:
        async with Worker("graphs", TARGET, settings, memories=[building, filing]) as child:

            def call(message: msgspec.Struct) -> asyncio.Future[bytes]:
                return asyncio.ensure_future(child.call(msgspec.msgpack.encode(message), 10))

            for step in (Begin(1, DIM, 100, 16, 200), Add(1, np.arange(100).tobytes()), Finish(1)):
                await call(step)
            asked: list[msgspec.Struct] = [
                Query([Ask(1, 1, 50)], DIM, vector.tobytes()) for vector in vectors[:20]
            ]
            asked[5] = Query([Ask(2, 1, 50)], DIM, vectors[5].tobytes())
            asked[9] = Begin(3, DIM, 10, 16, 200)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGSTOP)
            calls = [call(message) for message in asked]
            await asyncio.sleep(0)  # each is sent
            os.kill(child.pid, signal.SIGCONT)
            answers = await asyncio.gather(*calls, return_exceptions=True)
    finally:
        building.close()
        filing.close()
    assert isinstance(answers.pop(5), NotFound)
    assert answers.pop(8) == b""
    found = [int.from_bytes(answer[:8], "little") for answer in answers if isinstance(answer, bytes)]
    assert found == [n for n in range(20) if n not in {5, 9}]


def test_it_starts_without_what_it_does_not_need() -> None:
    script = f"import sys, {TARGET.partition(':')[0]}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    ours = {name for name in loaded.split() if name.partition(".")[0] == "appliance"}
    assert ours == {f"appliance{name}" for name in OF_THE_APPLIANCE}
    assert not {"apsw", "asyncio", "cryptography", "pydantic", "prometheus_client"} & set(loaded.split())
