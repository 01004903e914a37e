"""Graphs that survive a restart: what is kept of them, and what becomes of one that is not what it was."""

import asyncio
import dataclasses
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from appliance import config
from appliance.errors import SealBroken
from appliance.search import graph_process, sealed
from appliance.search.collections import OpenCollection
from appliance.search.graph_files import GraphFiles, GraphFolder, Manifest
from appliance.search.links import Links
from appliance.search.seals import ContainerId, Seals
from tests import sealed_reader
from tests.searching import ACTOR, Shelf, Vectors, brute_force, low_rank, numbered, shelf

DIM, COUNT = 32, 1500
SETTINGS = config.Search(flat_bytes=1000 * DIM * 4, ef=200)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return low_rank(np.random.default_rng(1), COUNT + 200, DIM)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, vectors: Vectors) -> Path:
    """A state with two collections, "things" and "others", and a saved graph of each."""
    state = tmp_path_factory.mktemp("kept")

    async def fill() -> None:
        async with shelf(state, SETTINGS) as things:
            for name in ("things", "others"):
                opened = await things.collection(DIM, name)
                await opened.insert(ACTOR, numbered(vectors[:COUNT]))
                await opened.seal()

    asyncio.run(fill())
    return state


@pytest.fixture
def state(kept: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    shutil.copytree(kept, tmp_path / "state")
    return tmp_path / "state"


def ended(things: Shelf, end: str) -> float:
    return things.count("appliance_search_graphs_total", end=end)


def files(state: Path) -> list[Path]:
    return sorted((state / "graphs").glob("*/*"))


async def named(things: Shelf, name: str) -> OpenCollection:
    (found,) = [one for one in await things.collections.list() if one.name == name]
    return await things.collections.open(None, found.id)


async def file_of(state: Path, name: str) -> Path:
    async with shelf(state, SETTINGS) as things:
        opened = await named(things, name)
        (path,) = (state / "graphs" / UUID(opened.collection.id).hex).iterdir()
        return path


@asynccontextmanager
async def reopened(
    state: Path, settings: config.Search = SETTINGS, name: str = "things"
) -> AsyncIterator[tuple[Shelf, OpenCollection]]:
    """After a start, and once a first search has had the graph restored or built."""
    async with shelf(state, settings) as things:
        opened = await named(things, name)
        await opened.search(np.ones(DIM), 1)
        await opened.settle()
        yield things, opened


async def assert_right(opened: OpenCollection, living: dict[int, Vectors], queries: Vectors) -> None:
    """Every answer has the query's k, measured exactly, and almost all of the true ones."""
    labels = sorted(living)
    rows = np.stack([living[label] for label in labels])
    found = 0
    for query in queries:
        hits = await opened.search(query, 10)
        true, _ = brute_force(rows, query, 10)
        assert len({hit.id for hit in hits}) == 10
        assert {int(hit.id[1:]) for hit in hits} <= set(labels)
        found += len({hit.id for hit in hits} & {f"r{labels[place]}" for place in true})
    assert found >= 0.97 * 10 * len(queries)


async def test_a_restart_restores_the_graph_instead_of_building_it(state: Path, vectors: Vectors) -> None:
    before = files(state)
    async with reopened(state) as (things, opened):
        assert (ended(things, "restored"), ended(things, "built")) == (1, 0)
        await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:50])
        assert things.count("appliance_search_queries_total", path="graph") == COUNT / 50
    assert files(state) == before


async def test_what_was_deleted_and_added_since_is_dead_and_in_the_tail(
    state: Path, vectors: Vectors
) -> None:
    living = dict(enumerate(vectors))
    async with shelf(state, SETTINGS) as things:
        opened = await named(things, "things")
        await opened.insert(ACTOR, numbered(vectors[COUNT:], COUNT))
        gone = range(0, COUNT, 7)
        await opened.delete(ACTOR, [f"r{n}" for n in gone])
        await opened.settle()
    for n in gone:
        del living[n]
    async with reopened(state) as (things, opened):
        assert (ended(things, "restored"), ended(things, "built")) == (1, 0)
        assert opened.graphed == COUNT - len(gone)
        await assert_right(opened, living, vectors[::40])
        hits = [await opened.search(vectors[n], 1) for n in range(COUNT, COUNT + 200, 20)]
        assert [hit.id for (hit,) in hits] == [f"r{n}" for n in range(COUNT, COUNT + 200, 20)]


async def test_a_file_has_no_vector_and_nobody_else_reads_it(state: Path, vectors: Vectors) -> None:
    path = await file_of(state, "things")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    async with shelf(state, SETTINGS) as things:
        keys = things.keyring.container(UUID(things.customer), UUID(path.parent.name))
        header, content = sealed_reader.read(path.read_bytes(), keys.object_key(1))
    assert header["object"] == UUID(path.name).bytes
    labels = np.arange(COUNT, dtype=np.int64).tobytes()
    assert labels in content
    assert labels not in path.read_bytes()
    # Beside the links there is of a vector the exclusive or of its words, and no four of its words.
    parts = [row.tobytes()[low : low + 12] for row in vectors[:COUNT:10] for low in range(0, DIM * 4, 12)]
    assert not any(part in content for part in parts)


async def test_a_new_graph_takes_the_place_of_the_old_one(state: Path, vectors: Vectors) -> None:
    old = await file_of(state, "things")
    async with reopened(state) as (things, opened):
        await opened.insert(ACTOR, numbered(vectors[COUNT:], COUNT))
        await opened.seal()
        assert ended(things, "built") == 1
    new = await file_of(state, "things")
    assert new != old
    async with reopened(state) as (things, opened):
        assert ended(things, "restored") == 1
        assert opened.graphed == COUNT + 200


async def test_the_other_engine_goes_on_with_the_same_file(state: Path, vectors: Vectors) -> None:
    async with reopened(state, SETTINGS.model_copy(update={"engine": "faiss"})) as (things, opened):
        assert (ended(things, "restored"), ended(things, "built")) == (1, 0)
        await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:50])
        await opened.seal()
        assert ended(things, "built") == 1
    async with reopened(state) as (things, opened):
        assert (ended(things, "restored"), ended(things, "built")) == (1, 0)
        await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:50])


async def test_a_rotated_key_opens_what_was_kept_before(state: Path) -> None:
    path = await file_of(state, "things")
    async with shelf(state, SETTINGS) as things:
        things.keyring.rotate_container(UUID(things.customer), UUID(path.parent.name))
    async with reopened(state) as (things, _):
        assert ended(things, "restored") == 1


async def test_a_process_that_died_gets_its_graphs_back_from_the_disk(state: Path, vectors: Vectors) -> None:
    async with reopened(state) as (things, opened):
        pid = things.collections.graph_process
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while ended(things, "restored") < 2:
                await opened.search(vectors[0], 1)
                await asyncio.sleep(0.02)
        assert ended(things, "built") == 0
        await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:50])


def flipped(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def swap(path: Path) -> None:
    """Each of the two has the other's, under a name that was its own."""
    (other,) = [one for one in path.parents[1].glob("*/*") if one != path]
    mine = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(mine)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda path: flipped(path, path.stat().st_size // 2),
    "cut": cut,
    "another collection's": swap,
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_is_removed_and_built_anew(state: Path, vectors: Vectors, damage: str) -> None:
    path = await file_of(state, "things")
    DAMAGES[damage](path)
    async with reopened(state) as (things, opened):
        assert (ended(things, "restored"), ended(things, "built")) == (0, 1)
        assert not path.exists()
        await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:100])
    async with reopened(state) as (things, _):
        assert ended(things, "restored") == 1


async def test_a_flip_at_any_64th_byte_and_any_cut_is_found(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(4)
        seals = Seals(things.keyring, things.customer, ContainerId(opened.collection.id))
        folder = GraphFiles(tmp_path / "graphs").of(seals)
        content = np.random.default_rng(3).bytes(40_000)
        saved = await written(folder, content)
        assert await everything(folder) == [content]
        path = tmp_path / "graphs" / seals.container.hex / saved.hex
        whole = path.read_bytes()
        for place in range(0, len(whole), 64):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            assert await everything(folder) == [], place
        for length in (0, 1, 63, 64, 120, 136, 16_520, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert await everything(folder) == [], length
        path.write_bytes(whole)
        assert await everything(folder) == [content]
        second = (await things.collection(4, "second")).collection.id
        others = Seals(things.keyring, things.customer, ContainerId(second))
        beside = GraphFiles(tmp_path / "graphs").of(others)
        shutil.copytree(path.parent, tmp_path / "graphs" / others.container.hex)
        assert await everything(beside) == []


async def written(folder: GraphFolder, content: bytes) -> UUID:
    async def pieces() -> AsyncIterator[bytes]:
        for low in range(0, len(content), 1000):
            yield content[low : low + 1000]

    manifest = Manifest(dim=4, size=1, m=2, ef_construction=2, after=-1, through=9, length=len(content) - 4)
    return (await folder.write(manifest, pieces())).id


async def everything(folder: GraphFolder) -> list[bytes]:
    """Of each file that opens to its last byte, what was kept."""
    found = []
    for saved in await folder.saved():
        with suppress(SealBroken):
            found.append(b"".join([bytes(piece) async for piece in folder.read(saved)]))
    return found


async def test_a_graph_of_another_dimension_or_of_other_settings_is_not_used(
    state: Path, vectors: Vectors
) -> None:
    for changed in ({"m": 12}, {"ef_construction": 150}):
        async with reopened(state, SETTINGS.model_copy(update=changed)) as (things, opened):
            assert (ended(things, "restored"), ended(things, "refused"), ended(things, "built")) == (0, 1, 1)
            await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:100])
    async with shelf(state, SETTINGS) as things:
        opened = await named(things, "others")
        graphs, folder = opened._segments._graphs, opened._segments._folder
        (saved,) = await folder.saved()
        other = dataclasses.replace(opened._segments.view(), dim=DIM * 2)
        assert await graphs.load(saved, other, folder) is None
        assert await folder.saved() == []


async def test_a_graph_that_does_not_know_every_record_of_its_time_is_not_used(
    state: Path, kept: Path, vectors: Vectors
) -> None:
    """As after a ledger was put back by hand: records live again that a younger graph has never seen."""
    async with shelf(state, SETTINGS) as things:
        opened = await named(things, "things")
        await opened.delete(ACTOR, [f"r{n}" for n in range(0, COUNT, 4)])
        await opened.seal()
    younger = await file_of(state, "things")
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (state / name).unlink(missing_ok=True)
        if (kept / name).exists():
            shutil.copy(kept / name, state / name)
    async with reopened(state) as (things, opened):
        assert (ended(things, "restored"), ended(things, "refused"), ended(things, "built")) == (0, 1, 1)
        assert not younger.exists()
        await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:100])


@pytest.mark.parametrize("restored_first", [True, False])
async def test_numbers_that_are_given_again_to_other_records_are_told(
    state: Path, kept: Path, vectors: Vectors, *, restored_first: bool
) -> None:
    """An older ledger was put back, and what is inserted now gets numbers that the graph has for others."""
    async with shelf(state, SETTINGS) as things:
        opened = await named(things, "things")
        await opened.insert(ACTOR, numbered(vectors[COUNT:], COUNT))
        await opened.seal()
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (state / name).unlink(missing_ok=True)
        if (kept / name).exists():
            shutil.copy(kept / name, state / name)
    new = low_rank(np.random.default_rng(77), 200, DIM)
    async with shelf(state, SETTINGS) as things:
        opened = await named(things, "things")
        if restored_first:  # the graph is right for what there is, and knows nothing of what comes
            await opened.search(vectors[0], 1)
            await opened.settle()
            assert ended(things, "restored") == 1
        await opened.insert(ACTOR, numbered(new, 5000))
        await opened.settle()
        hits = [await opened.search(vector, 1) for vector in new]
        assert [hit.id for (hit,) in hits] == [f"r{n}" for n in range(5000, 5200)]
    async with reopened(state) as (things, opened):
        assert ended(things, "refused") == restored_first
        hits = [await opened.search(vector, 1) for vector in new]
        assert [hit.id for (hit,) in hits] == [f"r{n}" for n in range(5000, 5200)]


async def test_a_file_that_costs_the_process_its_life_is_removed_and_no_other(
    state: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = await file_of(state, "things"), await file_of(state, "others")
    call = sealed.SealedGraphs._call_long

    async def deadly(self: sealed.SealedGraphs, worker: Any, request: Any) -> bytes:
        if isinstance(request, graph_process.Restored) and path.exists():
            assert self.pid is not None
            os.kill(self.pid, signal.SIGKILL)
        return await call(self, worker, request)

    monkeypatch.setattr(sealed.SealedGraphs, "_call_long", deadly)
    async with reopened(state) as (things, opened):
        assert not path.exists()
        assert other.exists()
        assert (ended(things, "refused"), ended(things, "built")) == (1, 1)
        await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:100])
        beside = await named(things, "others")
        await beside.search(vectors[0], 1)
        await beside.settle()
        assert ended(things, "restored") == 1


async def test_a_process_that_dies_of_something_else_costs_no_file(
    state: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await file_of(state, "things")
    call = sealed.SealedGraphs._call_filing
    killed: list[int] = []

    async def deadly(self: sealed.SealedGraphs, worker: Any, request: Any) -> bytes:
        if isinstance(request, graph_process.Rows) and not killed:
            assert self.pid is not None
            os.kill(self.pid, signal.SIGKILL)
            killed.append(self.pid)
        return await call(self, worker, request)

    monkeypatch.setattr(sealed.SealedGraphs, "_call_filing", deadly)
    async with reopened(state) as (things, opened):
        assert killed
        assert path.exists()
        assert len(await opened.search(vectors[0], 10)) == 10
        async with asyncio.timeout(30):
            while ended(things, "restored") < 1:
                await opened.search(vectors[0], 1)
                await asyncio.sleep(0.02)
        assert ended(things, "built") == 0


async def test_a_graph_that_finds_nothing_is_not_used(state: Path, vectors: Vectors) -> None:
    """Its labels are right and its links are sound, but they lead nowhere but to a few of the nodes."""
    async with shelf(state, SETTINGS) as things:
        folder = (await named(things, "things"))._segments._folder
        (saved,) = await folder.saved()
        content = b"".join([bytes(piece) async for piece in folder.read(saved)])
        size, m, length = saved.manifest.size, saved.manifest.m, saved.manifest.length
        links = Links.read(content[8 * size : length], size, m)
        near = np.sort(links.base, axis=1)[:, ::-1]
        mixed = dataclasses.replace(links, base=np.where(near > 200, near % 200, near))

        async def pieces() -> AsyncIterator[bytes]:
            yield content[: 8 * size]
            yield b"".join(mixed.pieces())
            yield content[length:]

        await folder.write(saved.manifest, pieces())
        await folder.remove(saved)
    async with reopened(state) as (things, opened):
        assert (ended(things, "restored"), ended(things, "refused"), ended(things, "built")) == (0, 1, 1)
        await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:100])


async def test_emptying_and_removing_take_the_files_along(state: Path) -> None:
    things_path, others_path = await file_of(state, "things"), await file_of(state, "others")
    async with reopened(state) as (things, opened):
        await things.collections.empty(ACTOR, None, opened.collection.id)
        assert not things_path.parent.exists()
        others = await named(things, "others")
        await things.collections.remove(ACTOR, None, others.collection.id)
        assert not others_path.parent.exists()
    assert files(state) == []


async def test_a_start_removes_what_belongs_to_nothing(state: Path) -> None:
    before = files(state)
    orphan = state / "graphs" / UUID(int=7).hex
    orphan.mkdir()
    (orphan / UUID(int=8).hex).write_bytes(b"old")
    (before[0].parent / f".{before[0].name}.abc.draft").write_bytes(b"half")
    (state / "graphs" / "left over").write_bytes(b"?")
    async with shelf(state, SETTINGS):
        assert sorted(path for path in (state / "graphs").rglob("*") if path.is_file()) == before
        assert not orphan.exists()


async def test_a_full_disk_costs_the_file_and_nothing_else(
    tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors[:COUNT]))
        room = os.statvfs

        def scarce(path: Path) -> Any:
            return type("", (), {"f_bavail": 10, "f_frsize": room(path).f_frsize})

        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", scarce)
            await opened.seal()
        assert files(tmp_path) == []
        assert "a graph is not kept" in caplog.text
        write = os.write

        def full(fd: int, data: bytes) -> int:
            if ".draft" in str(Path(f"/proc/self/fd/{fd}").readlink()):
                raise OSError(28, "No space left on device")
            return write(fd, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            await opened.seal()
        assert [path for path in (tmp_path / "graphs").rglob("*") if path.is_file()] == []
        assert "No space left" in caplog.text
        await assert_right(opened, dict(enumerate(vectors[:COUNT])), vectors[:COUNT:100])
        await opened.seal()
        assert len(files(tmp_path)) == 1


async def test_closing_while_a_graph_is_being_kept_leaves_no_half_of_it(
    tmp_path: Path, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()
    call: Callable[..., Awaitable[bytes]] = sealed.SealedGraphs._call_filing

    async def slow(self: sealed.SealedGraphs, worker: Any, request: Any) -> bytes:
        if isinstance(request, graph_process.Read):
            reached.set()
            await go_on.wait()
        return await call(self, worker, request)

    monkeypatch.setattr(sealed.SealedGraphs, "_call_filing", slow)
    async with shelf(tmp_path, SETTINGS) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors[:COUNT]))
        await reached.wait()
    assert [path for path in (tmp_path / "graphs").rglob("*") if path.is_file()] == []
