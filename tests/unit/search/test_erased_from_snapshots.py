"""Deletions and snapshots: what comes back, what does not, and what the certificate says of it."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts.certificates import Certificates, Statement, verified
from appliance.errors import Conflict
from appliance.ledger import Connection
from appliance.search import filters
from appliance.search.collections import NewRecord, OpenCollection
from appliance.search.records import CollectionId
from appliance.search.snapshots import Snapshot, SnapshotId
from tests.searching import ACTOR, Shelf, numbered, shelf, unit

DIM = 8
VECTORS = unit(np.random.default_rng(3), 600, DIM)


async def taken(things: Shelf, collection: CollectionId) -> Snapshot:
    return await things.collections.snapshots.add(ACTOR, None, collection)


async def restore(things: Shelf, collection: CollectionId, snapshot: SnapshotId) -> OpenCollection:
    await things.collections.snapshots.restore(ACTOR, None, collection, snapshot)
    return await things.collections.open(None, collection)


async def ids(opened: OpenCollection) -> list[str]:
    return [record.id for record in await opened.all()]


async def statements(things: Shelf) -> list[Statement]:
    certificates = Certificates(things.ledger, things.keyring.service)
    found = await certificates.list(things.customer)
    return [verified(certificates.envelope(one), certificates.public_key) for one in found]


def listed(connection: Connection) -> int:
    found: int = connection.execute("SELECT count(*) FROM erased_records").get
    return found


async def test_a_certificate_names_the_snapshots_that_bring_a_record_back(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        identifier = opened.collection.id
        await opened.insert(ACTOR, numbered(VECTORS[:4]))
        await opened.delete(ACTOR, ["r0"])
        snapshot = await taken(things, identifier)
        await opened.delete(ACTOR, ["r1", "r9"])
        await opened.delete_matching(ACTOR, filters.compile({"n": 2}))
        assert [(one.counts["records"], one.snapshots) for one in await statements(things)] == [
            (1, ()),
            (1, (snapshot.id,)),
            (1, (snapshot.id,)),
        ]
        assert await ids(await restore(things, identifier, snapshot.id)) == ["r1", "r2", "r3"]
        assert await things.ledger.read(listed) == 0


async def test_what_is_erased_comes_back_from_no_snapshot(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        identifier = opened.collection.id
        await opened.insert(ACTOR, numbered(VECTORS[:600]))
        first = await taken(things, identifier)
        await opened.delete(ACTOR, ["r300"])  # it is in the snapshot alone from then on
        assert await opened.delete(ACTOR, ["r0", "r300", "r0", "x"], erase=True) == [
            True,
            False,
            False,
            False,
        ]
        assert await opened.delete_matching(ACTOR, filters.compile({"n": 599}), erase=True) == 1
        certified = [(one.counts["records"], one.snapshots) for one in await statements(things)]
        assert certified == [(1, (first.id,)), (3, ()), (1, ())]
        await opened.insert(ACTOR, [NewRecord("r0", VECTORS[0], {"n": "later"})])
        second = await taken(things, identifier)
        left = [f"r{n}" for n in range(1, 599) if n != 300]
        again = await restore(things, identifier, first.id)
        assert (again.count, await ids(again)) == (597, left)
    async with shelf(tmp_path) as things:
        again = await restore(things, identifier, second.id)
        assert await ids(again) == [*left, "r0"], (
            "what was inserted later under the same id is another record"
        )
        (later,) = [record for record in await again.all() if record.id == "r0"]
        assert later.metadata == {"n": "later"}
        into = await things.collections.snapshots.restore_into(ACTOR, None, identifier, first.id, "beside")
        assert await ids(await things.collections.open(None, into)) == left
        assert (await things.collections.get(None, into)).count == 597


async def test_without_a_snapshot_there_is_nothing_to_leave_out(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS[:2]))
        await opened.delete(ACTOR, ["r0", "never was"], erase=True)
        assert [(one.counts["records"], one.snapshots) for one in await statements(things)] == [(1, ())]
        assert await things.ledger.read(listed) == 0


async def test_what_is_left_out_goes_with_the_collections_key(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        identifier = opened.collection.id
        for act in (things.collections.empty, things.collections.remove):
            opened = await things.collections.open(None, identifier)
            await opened.insert(ACTOR, numbered(VECTORS[:300]))
            await taken(things, identifier)
            await opened.delete(ACTOR, [f"r{n}" for n in range(300)], erase=True)
            assert await things.ledger.read(listed) == 300
            await act(ACTOR, None, identifier)
            assert await things.ledger.read(listed) == 0


async def test_a_restore_that_an_erasure_overtakes_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        identifier = opened.collection.id
        await opened.insert(ACTOR, numbered(VECTORS[:300]))
        snapshot = await taken(things, identifier)
        read = asyncio.Event()
        erased = asyncio.Event()
        batches = things.collections.snapshots._batches

        async def waiting(*arguments: Any) -> Any:
            async for some in batches(*arguments):
                yield some
                read.set()
                await erased.wait()

        with monkeypatch.context() as slowed:
            slowed.setattr(things.collections.snapshots, "_batches", waiting)
            restoring = asyncio.ensure_future(restore(things, identifier, snapshot.id))
            await read.wait()
            await opened.delete(ACTOR, ["r7"], erase=True)
            erased.set()
            with pytest.raises(Conflict, match="erased meanwhile"):
                await restoring
        assert opened.count == 299
        assert "r7" not in await ids(await restore(things, identifier, snapshot.id))


async def test_a_snapshot_that_is_being_made_is_named_or_has_not_what_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        identifier, snapshots = opened.collection.id, things.collections.snapshots
        await opened.insert(ACTOR, numbered(VECTORS[:3]))
        begun, gone, copy = threading.Event(), threading.Event(), snapshots._copy

        def waiting(*arguments: Any) -> Any:
            begun.set()
            assert gone.wait(30)
            return copy(*arguments)

        monkeypatch.setattr(snapshots, "_copy", waiting)
        making = asyncio.ensure_future(taken(things, identifier))
        assert await asyncio.to_thread(begun.wait, 30)
        await opened.delete(ACTOR, ["r0"])
        gone.set()
        snapshot = await making
        (told,) = await statements(things)
        assert told.snapshots == (snapshot.id,), "it may have been copied before"
        # The other way round: an act that has asked already is over before anything is copied.
        begun.clear()
        asked, go_on = threading.Event(), threading.Event()

        def held(*_: object) -> None:
            asked.set()
            assert go_on.wait(30)

        deleting = asyncio.ensure_future(opened.delete(ACTOR, ["r1"], held))
        assert await asyncio.to_thread(asked.wait, 30)
        making = asyncio.ensure_future(taken(things, identifier))
        for _ in range(50):
            await asyncio.to_thread(lambda: None)
        assert not begun.is_set()
        go_on.set()
        await deleting
        later = await making
        assert (await statements(things))[-1].snapshots == (snapshot.id,)
        assert await ids(await restore(things, identifier, later.id)) == ["r2"]


NAMES = st.sampled_from(["a", "b", "c"])
ACTS = st.one_of(
    st.tuples(st.sampled_from(["insert", "upsert", "delete", "erase"]), NAMES),
    st.tuples(st.sampled_from(["restore"]), st.integers(0, 3)),
    st.just(("take", 0)),
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(acts=st.lists(ACTS, max_size=25))
def test_any_order_of_changes_snapshots_and_restores(
    acts: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    asyncio.run(_run(acts, tmp_path_factory.mktemp("acts")))


async def _run(acts: list[tuple[str, Any]], folder: Path) -> None:
    """Beside the collection a dictionary, and of each snapshot another one, which an erasure reaches too."""
    async with shelf(folder) as things:
        opened = await things.collection(DIM)
        identifier, model = opened.collection.id, dict[str, int]()
        copies: list[tuple[SnapshotId, dict[str, int]]] = []
        for number, (act, what) in enumerate([*acts, ("take", 0), *(("restore", n) for n in range(4))]):
            new = [NewRecord(what, VECTORS[number], {"n": number})] if isinstance(what, str) else []
            match act:
                case "insert":
                    await opened.insert(ACTOR, new)
                    model.setdefault(what, number)
                case "upsert":
                    await opened.upsert(ACTOR, new)
                    model[what] = number
                case "delete" | "erase":
                    await opened.delete(ACTOR, [what], erase=act == "erase")
                    if act == "erase":
                        for _, copied in copies:
                            copied.pop(what, None)
                    if model.pop(what, None) is not None:
                        told = (await statements(things))[-1].snapshots
                        having = {name for name, copied in copies if what in copied}
                        assert told is not None
                        assert having <= set(told)
                        assert act == "delete" or told == ()
                case "take" if len(copies) < 8:
                    copies.append(((await taken(things, identifier)).id, dict(model)))
                case "restore" if what < len(copies):
                    opened = await restore(things, identifier, copies[what][0])
                    model = dict(copies[what][1])
            assert {one.id: one.metadata["n"] for one in await opened.all()} == model
            assert opened.count == len(model)
