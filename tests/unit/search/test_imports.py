"""Bulk imports and exports: what is stored is durable batch by batch, and what is not says why."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from appliance import config
from appliance.accounts.audit import Event, entries
from appliance.errors import Conflict, InvalidInput, TooLarge, VolumeFull
from appliance.ledger import Connection
from appliance.search.collections import NewRecord, OpenCollection, Record
from appliance.search.interchange import exporting, importing, lines, npy
from tests.searching import ACTOR, Shelf, Vectors, numbered, shelf, unit

DIM = 8
MOST = 1 << 16
AXES = np.eye(DIM, dtype=np.float32)
VECTORS = unit(np.random.default_rng(5), 600, DIM)


@pytest.fixture
async def things(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path) as opened:
        yield opened


async def pieces(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for low in range(0, len(content), size):
        yield content[low : low + size]


async def parts(*content: tuple[str, bytes]) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    for name, whole in content:
        yield name, pieces(whole)


def array(vectors: Vectors) -> bytes:
    file = io.BytesIO()
    np.save(file, vectors)
    return file.getvalue()


def written(records: Sequence[NewRecord], *, vectors: bool = True) -> bytes:
    return b"".join(
        lines.encode(Record(one.id, one.metadata), np.asarray(one.vector, np.float32) if vectors else None)
        for one in records
    )


async def take(
    opened: OpenCollection, candidates: importing.Candidates, *, replace: bool = False
) -> importing.Report:
    return await importing.run(ACTOR, opened, candidates, replace=replace)


async def test_an_import_that_finds_the_volume_full_says_what_is_stored(things: Shelf) -> None:
    opened = await things.collection(DIM)
    records = [NewRecord(f"r{n}", vector, {"text": "x" * 1000}) for n, vector in enumerate(VECTORS)]
    before = await things.ledger.read(lambda connection: connection.execute("PRAGMA page_count").get)

    def act(connection: Connection) -> None:
        connection.execute(f"PRAGMA max_page_count = {before + 110}")  # of 4 KiB: for one batch, not for two

    await things.ledger.write(act)
    with pytest.raises(VolumeFull, match="; 256 records before that are stored, and stay") as full:
        await take(opened, importing.of_lines(pieces(written(records)), DIM, MOST))
    assert full.value.told == f"{VolumeFull.told}; 256 records before that are stored, and stay"
    assert opened.count == 256


async def test_batches_are_durable_and_audited_and_a_second_run_is_the_resume(tmp_path: Path) -> None:
    records = numbered(VECTORS)
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        content = written(records)
        broken = content[: content.index(b'"r400"')] + b"\xff"

        async def breaks_off() -> AsyncIterator[bytes]:
            yield broken
            raise InvalidInput("the body is malformed, or breaks off")

        with pytest.raises(InvalidInput, match="breaks off; 400 records before that are stored, and stay"):
            await take(opened, importing.of_lines(breaks_off(), DIM, MOST))
        report = await take(opened, importing.of_lines(pieces(content), DIM, MOST))
        assert (report.inserted, report.kept, report.replaced, report.refused) == (200, 400, 0, 0)
        rows = [row for row in await first.ledger.read(entries) if row.event is Event.SEARCH_IMPORT]
        assert [row.details["inserted"] for row in rows] == [256, 144, 0, 112, 88]
    async with shelf(tmp_path) as second:
        again = await second.collections.open(None, opened.collection.id)
        assert again.count == 600
        assert [record.id for record in await again.all()] == [one.id for one in records]
        assert [hit.id for hit in await again.search(VECTORS[555], 1)] == ["r555"]


async def test_an_id_that_is_there_is_kept_or_replaced(things: Shelf) -> None:
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, [NewRecord("a", AXES[0], {"old": 1})])
    new = written([NewRecord("a", AXES[1], {"new": 1}), NewRecord("b", AXES[2])])
    report = await take(opened, importing.of_lines(pieces(new), DIM, MOST))
    assert (report.inserted, report.kept) == (1, 1)
    assert (await opened.search(AXES[0], 1))[0].metadata == {"old": 1}
    report = await take(opened, importing.of_lines(pieces(new), DIM, MOST), replace=True)
    assert (report.replaced, report.inserted, report.kept) == (2, 0, 0)
    assert (await opened.search(AXES[1], 1))[0].metadata == {"new": 1}


async def test_each_bad_line_is_named_and_the_others_are_stored(things: Shelf) -> None:
    opened = await things.collection(DIM)
    bad: list[object] = [
        {"_id": "b", "_vector": [0] * DIM},
        {"_id": "c", "_vector": [1] * (DIM - 1)},
        {"_vector": [1] * DIM},
        {"_id": "d\0", "_vector": [1] * DIM},
        {"_id": "e", "_vector": [1] * DIM, "n": 1 << 70},
        {"_id": "f", "_vector": [1e300] * DIM},
        {"_id": "g", "_vector": [1] * DIM, "note": "x" * MOST},
    ]
    sound = [json.dumps({"_id": one, "_vector": [1] * DIM}) for one in "az"]
    content = "\n".join([sound[0], "", *map(json.dumps, bad), "{", sound[1]]).encode()
    report = await take(opened, importing.of_lines(pieces(content), DIM, MOST))
    assert (report.inserted, report.refused) == (2, 8)
    assert [record.id for record in await opened.all()] == ["a", "z"]
    assert [place for place, _ in report.reasons] == list(range(2, 10))
    for (_, reason), word in zip(
        report.reasons,
        ["zero", "shape", "_id", "NUL", "64 bit", "too large", "longer than", "JSON"],
        strict=True,
    ):
        assert word in reason


async def test_only_the_first_reasons_are_kept(things: Shelf) -> None:
    opened = await things.collection(DIM)
    report = await take(opened, importing.of_lines(pieces(b"{\n" * 1000), DIM, MOST))
    assert (report.refused, len(report.reasons), opened.count) == (1000, importing.MOST_REASONS, 0)


async def test_rows_of_an_array_are_numbered(things: Shelf) -> None:
    opened = await things.collection(DIM)
    vectors = np.concatenate([VECTORS[:300] * 7, np.full((1, DIM), np.nan), VECTORS[300:]])
    report = await take(opened, importing.of_array(pieces(array(vectors.astype(np.float64))), DIM, "p"))
    assert (report.inserted, report.refused, report.reasons[0][0]) == (600, 1, 300)
    assert [hit.id for hit in await opened.search(VECTORS[500], 1)] == ["p501"]
    halves = importing.of_array(pieces(array(VECTORS.astype(np.float16))), DIM, "half")
    assert (await take(opened, halves)).inserted == 600


async def test_lines_name_the_rows_of_the_array_that_follows(things: Shelf) -> None:
    opened = await things.collection(DIM)
    records = numbered(VECTORS[:5])
    named = written(records, vectors=False)
    pair = (("records", named), ("vectors", array(VECTORS[:5])))
    more = (("records", b'{"_id": "x", "n": 9}\n[]'), ("vectors", array(AXES[:2])))
    report = await take(opened, importing.of_parts(parts(*pair, *more), DIM, MOST))
    assert (report.inserted, report.reasons) == (6, [(6, "is not a JSON object")])
    assert await opened.get(["r3", "x"]) == [Record("r3", {"n": 3}), Record("x", {"n": 9})]
    for wrong, reason in (
        (pair[:1], "without the vectors"),
        (pair[1:], "in turns"),
        ((pair[0], pair[0]), "in turns"),
        ((pair[0], ("vectors", array(VECTORS[:4]))), "4 rows for the 5 lines"),
        ((*more, ("other", b"")), "in turns; 1 records"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            await take(opened, importing.of_parts(parts(*wrong), DIM, MOST), replace=True)


async def test_lines_before_an_array_are_held_up_to_a_limit(
    things: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await things.collection(DIM)
    monkeypatch.setattr(importing, "MAX_HELD", 0)
    with pytest.raises(TooLarge, match="several pairs"):
        await take(opened, importing.of_parts(parts(("records", b"x" * (MOST + 1))), DIM, MOST))


async def test_a_full_collection_refuses_and_still_replaces(tmp_path: Path) -> None:
    async with shelf(tmp_path, config.Search(capacity=2)) as things:
        opened = await things.collection(DIM)
        content = written(numbered(VECTORS[:3]))
        report = await take(opened, importing.of_lines(pieces(content), DIM, MOST))
        assert (report.inserted, report.reasons) == (2, [(2, "hard capacity exceeded")])
        report = await take(opened, importing.of_lines(pieces(content), DIM, MOST), replace=True)
        assert (report.replaced, report.refused) == (2, 1)


async def given_out(opened: OpenCollection) -> bytes:
    return b"".join([piece async for piece in exporting.as_lines(await exporting.begin(ACTOR, opened))])


async def zipped(opened: OpenCollection) -> zipfile.ZipFile:
    given = exporting.as_zip(await exporting.begin(ACTOR, opened), DIM)
    return zipfile.ZipFile(io.BytesIO(b"".join([piece async for piece in given])))


async def test_a_zip_holds_arrays_and_the_lines_that_name_their_rows(
    things: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, numbered(VECTORS))
    monkeypatch.setattr(exporting, "_VECTORS", 250 * DIM * 4)
    archive = await zipped(opened)
    assert archive.testzip() is None
    names = archive.namelist()
    assert names == [name for n in (1, 2, 3) for name in (f"records-{n:05}.jsonl", f"vectors-{n:05}.npy")]
    arrays = [np.load(io.BytesIO(archive.read(name))) for name in names[1::2]]
    assert [len(one) for one in arrays] == [250, 250, 100]
    stored = await opened.vectors([f"r{n}" for n in range(600)])
    assert np.array_equal(np.concatenate(arrays), np.stack([one for one in stored if one is not None]))
    told = [json.loads(line) for name in names[::2] for line in archive.read(name).splitlines()]
    assert told == [{"_id": f"r{n}", "n": n} for n in range(600)]
    (row,) = [row for row in await things.ledger.read(entries) if row.event is Event.SEARCH_EXPORT]
    assert row.details == {"records": 600}


async def test_a_page_of_long_lines_goes_into_several_pairs(
    things: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, numbered(VECTORS[:4]))
    monkeypatch.setattr(exporting, "MAX_HELD", 45)
    assert len((await zipped(opened)).namelist()) == 4


async def test_an_empty_collection_is_exported_and_imported(things: Shelf) -> None:
    opened = await things.collection(DIM)
    archive = await zipped(opened)
    pair = [(name.split("-")[0], archive.read(name)) for name in archive.namelist()]
    assert [name for name, _ in pair] == ["records", "vectors"]
    assert np.load(io.BytesIO(pair[1][1])).shape == (0, DIM)
    report = await take(opened, importing.of_parts(parts(*pair), DIM, MOST))
    assert report == importing.Report()
    assert await given_out(opened) == b""


async def test_an_export_has_what_is_changed_meanwhile_once(things: Shelf) -> None:
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, numbered(VECTORS[:6]))
    pages = opened.stored(2)
    seen = await anext(pages)
    await opened.upsert(ACTOR, [NewRecord("r1", AXES[0]), NewRecord("r4", AXES[1], {"new": 1})])
    await opened.delete(ACTOR, ["r3"])
    await opened.update(ACTOR, [("r5", {"new": 2})])
    await opened.insert(ACTOR, [NewRecord("late", AXES[2])])
    seen += [one for page in [page async for page in pages] for one in page]
    assert [(record.id, record.metadata) for record, _ in seen] == [
        ("r0", {"n": 0}),
        ("r1", {"n": 1}),
        ("r2", {"n": 2}),
        ("r4", {"new": 1}),
        ("r5", {"n": 5, "new": 2}),
    ]
    assert np.array_equal(seen[3][1], AXES[1])


async def test_damaged_records_are_left_out_when_asked(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        await opened.insert(ACTOR, numbered(VECTORS[:3]))
        await first.ledger.write(
            lambda connection: connection.execute(
                "UPDATE records SET words = zeroblob(60) WHERE key = (SELECT max(key) FROM records)"
            ).fetchall()
        )
        assert [len(page) async for page in opened.stored(10)] == [2]
        assert await opened.get(["r2"]) == [None]
        with pytest.raises(Conflict, match="1 records are damaged"):
            await exporting.begin(ACTOR, opened)
        pages = await exporting.begin(ACTOR, opened, skip_damaged=True)
        assert [record.id for page in [page async for page in pages] for record, _ in page] == ["r0", "r1"]


async def test_others_get_their_turn_while_an_import_runs(things: Shelf) -> None:
    opened = await things.collection(DIM)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.get_running_loop().create_task(count())
    await take(opened, importing.of_lines(pieces(written(numbered(VECTORS)), 1 << 20), DIM, MOST))
    counting.cancel()
    assert turns > 600 // 64


def test_an_array_of_ours_begins_as_numpy_begins_its_own() -> None:
    assert npy.header(3, DIM) + AXES[:3].tobytes() == array(AXES[:3])
