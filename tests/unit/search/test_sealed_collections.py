"""What rests of collections: nothing in plain, rows sealed each for itself, nothing of what was deleted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw
import numpy as np
import pytest

from appliance.errors import Conflict, LedgerAltered, NotFound, StorageFailed
from appliance.ledger import Connection
from appliance.search import entries, erasing, frames, readable
from appliance.search.collections import NewRecord, OpenCollection
from appliance.search.loading import load_page
from appliance.search.numbering import key_of
from appliance.search.seals import ContainerId, Seals
from appliance.vault import Keyring
from tests.ledgers import altered, log_is_empty
from tests.plaintext import Plaintext, is_random
from tests.searching import ACTOR, BACKBONE, ROOT, Shelf, Vectors, numbered, shelf, unit

DIM = 64
NEW_ROOT = bytes(range(32, 64))


@pytest.fixture
async def things(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path) as opened:
        yield opened


@pytest.fixture
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is emptied as soon as something was deleted."""
    monkeypatch.setattr(erasing, "_LOG_SECONDS", 0.0)


def words(number: int) -> dict[str, object]:
    return {"shelf": f"secret shelf {number:09}", "price": [number, f"{number:016} crowns"]}


def secret_records(vectors: Vectors, start: int = 0) -> list[NewRecord]:
    return [
        NewRecord(f"secret id {start + n:09}", vector, words(start + n)) for n, vector in enumerate(vectors)
    ]


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def secrets(vectors: Vectors, count: int) -> Plaintext:
    plaintext = Plaintext()
    for vector in vectors:
        plaintext.add(vector.tobytes())
    for number in range(count):
        for word in (f"secret id {number:09}", f"secret shelf {number:09}", f"{number:016} crowns"):
            plaintext.add_word(word)
    plaintext.add_word("secret name of shelves")
    return plaintext


async def emptied(things: Shelf, folder: Path) -> None:
    """Until the log is cut: what was deleted is in no file then."""
    async with asyncio.timeout(10):
        while not log_is_empty(folder):  # noqa: ASYNC110 -- it gives no event
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("prompt")
async def test_no_name_id_metadata_or_vector_rests_in_plain(things: Shelf, tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(1), 300, DIM)
    plaintext = secrets(vectors, 300)
    opened = await things.collection(DIM, "secret name of shelves")
    for low in range(0, 300, 60):
        await opened.insert(ACTOR, secret_records(vectors[low : low + 60], low))
        assert plaintext.places(files(tmp_path)) == []
    await opened.update(ACTOR, [(f"secret id {n:09}", words(n + 7)) for n in range(50)])
    await opened.delete(ACTOR, [f"secret id {n:09}" for n in range(40, 120)])
    assert plaintext.places(files(tmp_path)) == []
    await emptied(things, tmp_path)
    assert plaintext.places(files(tmp_path)) == []

    def sealed(connection: Connection) -> bytes:
        blobs = connection.execute(
            "SELECT handle FROM records UNION ALL SELECT substr(words, 5) FROM records"
            " UNION ALL SELECT substr(content, 5) FROM frames"
        )
        return b"".join(row[0] for row in blobs)

    assert is_random(await things.ledger.read(sealed))
    # The control: each of these would have been found.
    for planted in (vectors[7].tobytes()[30:60], b"..secret shelf 000000003..", b"..secret name of shelves"):
        assert plaintext.places(files(tmp_path) + planted) != []


@pytest.mark.usefixtures("prompt")
async def test_a_deleted_record_is_in_no_file_not_even_sealed(things: Shelf, tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(2), 40, DIM)
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, secret_records(vectors))

    def rows_of(connection: Connection) -> list[Any]:
        return connection.execute("SELECT handle, words FROM records WHERE key & 1 ORDER BY key").fetchall()

    def contents(connection: Connection) -> list[bytes]:
        return [row[0] for row in connection.execute("SELECT content FROM frames")]

    going, before = await things.ledger.read(rows_of), await things.ledger.read(contents)
    traces = [trace for handle, sealed in going for trace in (handle, sealed[8:40])]
    traces += [content[at : at + 32] for content in before for at in range(100, len(content) - 32, 1000)]
    assert all(trace in files(tmp_path) for trace in traces)
    await opened.delete(ACTOR, [f"secret id {n:09}" for n in range(1, 40, 2)])
    await emptied(things, tmp_path)
    left = files(tmp_path)
    assert [trace for trace in traces if trace in left] == []
    seals = Seals(things.keyring, things.customer, ContainerId(opened.collection.id))

    def labels(connection: Connection) -> list[int]:
        found = frames.load(connection, seals, 1, DIM, -1, 1000)
        return [label for _, frame in found if frame is not None for label in frame.labels.tolist()]

    assert await things.ledger.read(labels) == list(range(0, 40, 2))


@pytest.mark.usefixtures("prompt")
async def test_a_removed_collection_leaves_nothing_and_no_key(things: Shelf, tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(3), 600, DIM)
    gone, kept = await things.collection(DIM, "gone"), await things.collection(DIM, "kept")
    await gone.insert(ACTOR, secret_records(vectors))
    await kept.insert(ACTOR, numbered(vectors))
    owner, identity = UUID(things.customer), UUID(gone.collection.id)
    assert identity in {container for _, container, _ in things.keyring.containers()}

    def some(connection: Connection) -> list[bytes]:
        sealed = connection.execute(
            "SELECT words FROM records WHERE key < ?1 UNION ALL SELECT content FROM frames WHERE key < ?1",
            (key_of(2, 0),),
        )
        return [row[0][100:130] or row[0][8:38] for row in sealed]

    traces = await things.ledger.read(some)
    assert all(trace in files(tmp_path) for trace in traces)
    await things.collections.remove(ACTOR, None, gone.collection.id)
    with pytest.raises(NotFound):
        things.keyring.container(owner, identity)
    assert {container for _, container, kind in things.keyring.containers() if kind == "collection"} == {
        UUID(kept.collection.id)
    }
    await emptied(things, tmp_path)
    left = files(tmp_path)
    assert [trace for trace in traces if trace in left] == []
    assert len(await kept.search(vectors[0], 600)) == 600


async def test_an_old_copy_of_a_removed_collection_opens_with_no_later_root(tmp_path: Path) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, [NewRecord("a", np.ones(DIM), {"secret": 1})])
        old_keyring = (tmp_path / "keyring").read_bytes()
        key = key_of(1, 0)
        handle, sealed = await things.ledger.read(
            lambda c: c.execute("SELECT handle, words FROM records").get
        )
        seals = Seals(things.keyring, things.customer, ContainerId(opened.collection.id))
        assert seals.open_words(key, handle, sealed) == (b"a", b'{"secret":1}')
        await things.collections.remove(ACTOR, None, opened.collection.id)
        things.keyring.rotate_root(NEW_ROOT)
    (tmp_path / "old").write_bytes(old_keyring)
    for path, root in ((tmp_path / "keyring", NEW_ROOT), (tmp_path / "keyring", ROOT)):
        keyring = Keyring.open(path, root)
        with pytest.raises(NotFound):
            keyring.container(UUID(things.customer), UUID(opened.collection.id))
        keyring.wipe()
    with pytest.raises(Exception, match="another root"):
        Keyring.open(tmp_path / "old", NEW_ROOT)


async def test_words_open_in_their_own_row_and_collection_alone(things: Shelf) -> None:
    vectors = unit(np.random.default_rng(4), 4, DIM)
    first, second = await things.collection(DIM, "first"), await things.collection(DIM, "second")
    for opened in (first, second):
        await opened.insert(ACTOR, numbered(vectors))

    def exchange(connection: Connection) -> None:
        """In each collection r0 has what r1 has, handle and words; in the second r3 has the first's words."""
        for number in (1, 2):
            row = connection.execute(
                "SELECT handle, words FROM records WHERE key = ?", (key_of(number, 1),)
            ).get
            connection.execute("DELETE FROM records WHERE key = ?", (key_of(number, 1),))
            connection.execute(
                "UPDATE records SET handle = ?, words = ? WHERE key = ?", (*row, key_of(number, 0))
            )
        words = connection.execute("SELECT words FROM records WHERE key = ?", (key_of(1, 3),)).get
        connection.execute("UPDATE records SET words = ? WHERE key = ?", (words, key_of(2, 3)))

    await things.ledger.write(exchange)
    assert {hit.id for hit in await first.search(vectors[0], 10)} == {"r2", "r3"}
    assert {hit.id for hit in await second.search(vectors[0], 10)} == {"r2"}


async def test_a_rotation_seals_what_is_new_under_the_new_key_and_opens_all(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(5), 30, DIM)

    async def check(opened: OpenCollection) -> None:
        assert {hit.id for hit in await opened.search(vectors[0], 100)} == {f"r{n}" for n in range(30)}
        assert [one and one.metadata for one in await opened.get(["r3", "r29"])] == [{"n": 3}, {"n": 29}]

    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(vectors[:29]))
        identity = opened.collection.id
        things.keyring.rotate_container(UUID(things.customer), UUID(identity))
        assert await opened.insert(ACTOR, numbered(vectors[28:], 28)) == ["duplicate", "inserted"]
        await check(opened)
        generations = await things.ledger.read(
            lambda c: c.execute("SELECT key & 31, substr(words, 1, 4) FROM records ORDER BY key").fetchall()
        )
        assert {row[1] for row in generations[:29]} == {(1).to_bytes(4)}
        assert generations[29] == (29, (2).to_bytes(4))
        things.keyring.rotate_customer(UUID(things.customer))
        await check(opened)
    async with shelf(tmp_path) as things:
        await check(await things.collections.open(None, identity))


async def test_a_collection_whose_key_is_gone_is_named_and_the_others_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a ledger lies beside an older keyring."""
    async with shelf(tmp_path) as things:
        lost, kept = await things.collection(DIM, "lost"), await things.collection(DIM, "kept")
        things.keyring.destroy(UUID(things.customer), UUID(lost.collection.id))
    async with shelf(tmp_path) as things:
        assert f"collection {lost.collection.id} has no key" in caplog.text
        assert [one.id for one in await things.collections.list()] == [kept.collection.id]
        for call in (things.collections.get, things.collections.open):
            with pytest.raises(NotFound):
                await call(None, lost.collection.id)
        again = await things.collections.add(ACTOR, things.customer, "lost", BACKBONE, DIM)
        assert again.id != lost.collection.id
        await things.collections.remove(ACTOR, None, lost.collection.id)


async def test_a_collection_that_is_removed_while_it_is_opened_is_gone_and_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(unit(np.random.default_rng(6), 30, DIM)))
        identity = opened.collection.id
    loop = asyncio.get_running_loop()
    async with shelf(tmp_path) as things:

        def removed_meanwhile(connection: Connection, *arguments: Any, **more: Any) -> Any:
            """The rows are those of before, the key is destroyed."""
            connection.execute("SELECT count(*) FROM frames").fetchall()
            removal = things.collections.remove(ACTOR, None, identity)
            asyncio.run_coroutine_threadsafe(removal, loop).result(10)
            return load_page(connection, *arguments, **more)

        monkeypatch.setattr(readable, "load_page", removed_meanwhile)
        with pytest.raises(NotFound):
            await things.collections.open(None, identity)
        assert things.count("appliance_search_damage_found_total") == 0
    assert "damaged" not in caplog.text


async def test_a_collection_that_could_not_be_added_leaves_no_key(
    things: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise Conflict("no")

    before = set(things.keyring.containers())
    monkeypatch.setattr(entries, "add_collection", refuse)
    with pytest.raises(Conflict):
        await things.collections.add(ACTOR, things.customer, "a", BACKBONE, DIM)
    assert set(things.keyring.containers()) == before


async def test_what_an_altered_ledger_refuses_leaves_no_key(things: Shelf, tmp_path: Path) -> None:
    collections, customer = things.collections, things.customer
    first = (await things.collection(DIM)).collection.id
    snapshot = await collections.snapshots.add(ACTOR, None, first)
    before = set(things.keyring.containers())
    with altered(tmp_path):
        for change in (
            collections.add(ACTOR, customer, "another", BACKBONE, DIM),
            collections.aliases.point(ACTOR, customer, "an-alias", first),
            collections.empty(ACTOR, customer, first),
            collections.snapshots.restore(ACTOR, None, first, snapshot.id),
        ):
            with pytest.raises(LedgerAltered):
                await change
    assert set(things.keyring.containers()) == before


async def test_a_key_outlives_a_commit_of_which_nobody_knows(
    things: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise apsw.IOError("the disk")

    before = set(things.keyring.containers())
    monkeypatch.setattr(entries, "add_collection", fail)
    with pytest.raises(StorageFailed):
        await things.collections.add(ACTOR, things.customer, "a", BACKBONE, DIM)
    assert len(set(things.keyring.containers()) - before) == 1


@pytest.mark.usefixtures("prompt")
async def test_an_emptied_collection_has_another_key_and_leaves_none(things: Shelf, tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(7), 300, DIM)
    plaintext = secrets(vectors, 300)
    opened = await things.collection(DIM, "secret name of shelves")
    await opened.insert(ACTOR, secret_records(vectors))
    identity, owner = opened.collection.id, UUID(things.customer)

    def sealed(connection: Connection) -> list[bytes]:
        query = "SELECT words FROM records UNION ALL SELECT content FROM frames"
        return [row[0][100:130] or row[0][8:38] for row in connection.execute(query)]

    traces = await things.ledger.read(sealed)
    assert all(trace in files(tmp_path) for trace in traces)
    await things.collections.empty(ACTOR, None, identity)
    with pytest.raises(NotFound):
        things.keyring.container(owner, UUID(identity))
    await emptied(things, tmp_path)
    left = files(tmp_path)
    assert [trace for trace in traces if trace in left] == []
    again = await things.collections.open(None, identity)
    await again.insert(ACTOR, secret_records(vectors[:50]))
    renamed = await things.collections.rename(ACTOR, None, identity, "secret id 000000007")
    assert (renamed.name, renamed.count) == ("secret id 000000007", 50)
    assert len(await again.search(vectors[0], 100)) == 50
    assert plaintext.places(files(tmp_path)) == []
    await things.collections.remove(ACTOR, None, identity)
    assert [kind for *_, kind in things.keyring.containers() if kind == "collection"] == []


@pytest.mark.usefixtures("prompt")
async def test_of_what_is_replaced_nothing_is_left(things: Shelf, tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(8), 40, DIM)
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, secret_records(vectors))

    def odd(connection: Connection) -> list[bytes]:
        return [row[0][8:40] for row in connection.execute("SELECT words FROM records WHERE key & 1")]

    traces = await things.ledger.read(odd)
    again = [NewRecord(one.id, vectors[0], {}) for one in secret_records(vectors)[1::2]]
    assert set(await opened.upsert(ACTOR, [*again, again[0]])) == {"replaced"}
    await emptied(things, tmp_path)
    left = files(tmp_path)
    assert [trace for trace in traces if trace in left] == []
    seals = Seals(things.keyring, things.customer, ContainerId(opened.collection.id))

    def stored(connection: Connection) -> dict[int, bytes]:
        found = frames.load(connection, seals, 1, DIM, -1, 1000)
        return {
            label: row.tobytes()
            for _, frame in found
            if frame is not None
            for label, row in zip(frame.labels.tolist(), frame.rows, strict=True)
        }

    inside = await things.ledger.read(stored)
    assert sorted(inside) == [*range(0, 40, 2), *range(41, 61)]  # 40 was replaced in its own call
    assert {inside[label] for label in range(41, 61)} == {vectors[0].tobytes()}


async def test_a_collection_that_is_emptied_while_it_is_opened_is_opened_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with shelf(tmp_path) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, numbered(unit(np.random.default_rng(6), 30, DIM)))
        identity = opened.collection.id
    loop = asyncio.get_running_loop()
    async with shelf(tmp_path) as things:

        def emptied_meanwhile(connection: Connection, *arguments: Any, **more: Any) -> Any:
            monkeypatch.setattr(readable, "load_page", load_page)
            connection.execute("SELECT count(*) FROM frames").fetchall()
            emptying = things.collections.empty(ACTOR, None, identity)
            asyncio.run_coroutine_threadsafe(emptying, loop).result(10)
            return load_page(connection, *arguments, **more)

        monkeypatch.setattr(readable, "load_page", emptied_meanwhile)
        assert (await things.collections.open(None, identity)).count == 0
        assert things.count("appliance_search_damage_found_total") == 0
    assert "damaged" not in caplog.text


async def test_what_is_replaced_in_the_ledger_and_not_yet_in_ram_is_read_all_the_same(
    things: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger is ahead: its commit is seen before the event loop has taken it over."""
    opened = await things.collection(DIM)
    vectors = unit(np.random.default_rng(9), 3, DIM)
    await opened.insert(ACTOR, numbered(vectors))
    write = things.ledger.write

    async def late(act: Any, *, then: Any) -> Any:
        done = await write(act)
        assert [one.metadata for one in await opened.all()] == [{"n": 0}, {"new": True}, {"n": 2}]
        assert {hit.id for hit in await opened.search(vectors[1], 3)} == {"r0", "r1", "r2"}
        assert {hit.id for hit in await opened.search(vectors[1], 3, metadata=False)} == {"r0", "r1", "r2"}
        then(done)
        return done

    monkeypatch.setattr(things.ledger, "write", late)
    await opened.upsert(ACTOR, [NewRecord("r1", vectors[1], {"new": True})])
    assert [one.id for one in await opened.all()] == ["r0", "r2", "r1"]
