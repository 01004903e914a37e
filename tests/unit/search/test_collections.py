import asyncio
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from appliance import config
from appliance.accounts import audit
from appliance.accounts.customers import CustomerId, Customers
from appliance.errors import Conflict, InvalidInput, NotFound, TooLarge
from appliance.search import filters
from appliance.search.collections import CollectionId, NewRecord, Record
from tests.searching import ACTOR, BACKBONE, NOW, Shelf, brute_force, numbered, shelf, unit

DIM = 16


@pytest.fixture
async def things(tmp_path: Path) -> AsyncIterator[Shelf]:
    async with shelf(tmp_path) as opened:
        yield opened


def one(external: str, **metadata: object) -> NewRecord:
    return NewRecord(external, np.ones(DIM, np.float32), metadata)


async def test_a_new_collection_is_listed_got_and_empty(things: Shelf) -> None:
    added = await things.collections.add(ACTOR, things.customer, "  Shoes ", BACKBONE, DIM)
    assert (added.name, added.backbone, added.dim, added.count) == ("Shoes", BACKBONE, DIM, 0)
    assert added.created_at == int(NOW * 1000)
    assert await things.collections.list(things.customer) == [added]
    assert await things.collections.list() == [added]
    assert await things.collections.get(things.customer, added.id) == added
    opened = await things.collections.open(things.customer, added.id)
    assert opened.collection == added
    assert await opened.search(np.ones(DIM), 5) == []
    assert await opened.page(1, 10) == ([], False)


async def test_names_are_unique_per_customer_and_free_again_after_removal(things: Shelf) -> None:
    added = await things.collections.add(ACTOR, things.customer, "a", BACKBONE, DIM)
    with pytest.raises(Conflict):
        await things.collections.add(ACTOR, things.customer, "a", BACKBONE, DIM)
    async with Customers(things.ledger, lambda: NOW) as customers:
        other = await customers.add(ACTOR, "other")
    await things.collections.add(ACTOR, other.id, "a", BACKBONE, DIM)
    await things.collections.remove(ACTOR, things.customer, added.id)
    again = await things.collections.add(ACTOR, things.customer, "a", BACKBONE, DIM)
    assert again.id != added.id


@pytest.mark.parametrize(
    ("name", "dim", "named"),
    [("", 4, "name"), (" \t", 4, "name"), ("a\nb", 4, "name"), ("x" * 129, 4, "name"), ("a", 0, "dim")],
)
async def test_a_bad_name_or_dimension_is_refused(things: Shelf, name: str, dim: int, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        await things.collections.add(ACTOR, things.customer, name, BACKBONE, dim)
    with pytest.raises(InvalidInput, match="dim"):
        await things.collections.add(ACTOR, things.customer, "a", BACKBONE, 4097)


async def test_another_customer_gets_the_answer_for_what_does_not_exist(things: Shelf) -> None:
    opened = await things.collection(DIM)
    async with Customers(things.ledger, lambda: NOW) as customers:
        stranger = (await customers.add(ACTOR, "stranger")).id
    reasons = set()
    for customer, identifier in [
        (stranger, opened.collection.id),
        (things.customer, CollectionId("00000000-0000-4000-8000-000000000000")),
    ]:
        for call in (
            things.collections.get(customer, identifier),
            things.collections.open(customer, identifier),
            things.collections.remove(ACTOR, customer, identifier),
        ):
            with pytest.raises(NotFound) as caught:
                await call
            reasons.add(str(caught.value))
    assert reasons == {"no such collection"}
    assert await things.collections.list(stranger) == []
    assert (await things.collections.get(None, opened.collection.id)).customer == things.customer
    with pytest.raises(NotFound, match="customer"):
        await things.collections.add(ACTOR, CustomerId("nobody"), "a", BACKBONE, DIM)


async def test_searches_answer_exactly_before_and_after_a_restart(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vectors, queries = unit(rng, 500, DIM) * 3, unit(rng, 20, DIM)
    answers = []
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        for low in range(0, 500, 50):
            assert await opened.insert(ACTOR, numbered(vectors[low : low + 50], low)) == ["inserted"] * 50
        for query in queries:
            hits = await opened.search(query, 10)
            expected, measured = brute_force(vectors, query, 10)
            assert [hit.id for hit in hits] == [f"r{n}" for n in expected]
            assert [hit.metadata for hit in hits] == [{"n": n} for n in expected]
            np.testing.assert_allclose([hit.distance for hit in hits], measured, atol=2e-7)
            answers.append(hits)
    async with shelf(tmp_path) as second:
        again = await second.collections.open(second.customer, opened.collection.id)
        assert again.count == 500
        assert [await again.search(query, 10) for query in queries] == answers


async def test_a_duplicate_is_refused_and_nothing_is_overwritten(things: Shelf) -> None:
    opened = await things.collection(DIM)
    assert await opened.insert(ACTOR, [one("a", v=1), one("a", v=2), one("b")]) == [
        "inserted",
        "duplicate",
        "inserted",
    ]
    assert await opened.insert(ACTOR, [one("a", v=3)]) == ["duplicate"]
    assert await opened.get(["a"]) == [Record("a", {"v": 1})]
    assert opened.count == 2


async def test_of_concurrent_inserts_of_one_id_exactly_one_wins(things: Shelf) -> None:
    opened = await things.collection(DIM)
    outcomes = await asyncio.gather(*(opened.insert(ACTOR, [one("a", v=n), one(f"b{n}")]) for n in range(20)))
    winners = [n for n, outcome in enumerate(outcomes) if outcome[0] == "inserted"]
    assert len(winners) == 1
    assert await opened.get(["a"]) == [Record("a", {"v": winners[0]})]
    assert opened.count == 21
    assert len(await opened.search(np.ones(DIM), 100)) == 21


async def test_a_full_collection_says_so_and_has_room_again_after_a_delete(tmp_path: Path) -> None:
    async with shelf(tmp_path, config.Search(capacity=3)) as things:
        opened = await things.collection(DIM)
        records = [one(external) for external in "abcd"]
        assert await opened.insert(ACTOR, records) == ["inserted"] * 3 + ["full"]
        assert await opened.insert(ACTOR, [one("a"), one("e")]) == ["duplicate", "full"]
        assert await opened.delete(ACTOR, ["b"]) == [True]
        assert await opened.insert(ACTOR, [one("e")]) == ["inserted"]
        assert (await things.collections.get(None, opened.collection.id)).count == 3


async def test_update_sets_fields_and_keeps_the_others(things: Shelf) -> None:
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, [one("a", x=1, y=[1, {"z": None}])])
    updated = await opened.update(ACTOR, [("a", {"x": 2, "w": "ž"}), ("none", {"x": 1})])
    assert updated == [Record("a", {"x": 2, "y": [1, {"z": None}], "w": "ž"}), None]
    assert await opened.get(["a", "none"]) == updated
    assert (await opened.search(np.ones(DIM), 1))[0].metadata == {"x": 2, "y": [1, {"z": None}], "w": "ž"}


async def test_an_update_that_grows_too_large_changes_nothing(tmp_path: Path) -> None:
    async with shelf(tmp_path, config.Search(max_metadata_bytes=100)) as things:
        opened = await things.collection(DIM)
        await opened.insert(ACTOR, [one("a", x="." * 60), one("b")])
        with pytest.raises(TooLarge, match="at most 100"):
            await opened.update(ACTOR, [("b", {"y": 1}), ("a", {"y": "." * 60})])
        assert await opened.get(["a", "b"]) == [Record("a", {"x": "." * 60}), Record("b", {})]


async def test_a_deleted_record_is_gone_from_every_answer(things: Shelf) -> None:
    rng = np.random.default_rng(2)
    opened = await things.collection(DIM)
    vectors = unit(rng, 10, DIM)
    await opened.insert(ACTOR, numbered(vectors))
    assert await opened.delete(ACTOR, ["r3", "nothing", "r3"]) == [True, False, False]
    assert opened.count == 9
    assert await opened.get(["r3"]) == [None]
    assert await opened.vectors(["r3"]) == [None]
    assert "r3" not in [hit.id for hit in await opened.search(vectors[3], 10)]
    assert "r3" not in [record.id for record in await opened.all()]
    assert await opened.insert(ACTOR, numbered(vectors[3:4], 3)) == ["inserted"]
    assert (await opened.search(vectors[3], 1))[0].id == "r3"
    assert [record.id for record in await opened.all()][-1] == "r3"


async def test_vectors_come_back_with_length_1(things: Shelf) -> None:
    opened = await things.collection(2)
    await opened.insert(ACTOR, [NewRecord("a", np.array([3, 4], np.float32))])
    (vector,) = await opened.vectors(["a"])
    assert vector is not None
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, [0.6, 0.8], rtol=1e-6)


async def test_filtered_answers_are_exact_and_full(things: Shelf) -> None:
    rng = np.random.default_rng(4)
    opened = await things.collection(DIM)
    vectors = unit(rng, 400, DIM)
    metadata = [{"shop": n % 5, "tags": [f"t{n % 3}", f"u{n % 50}"]} for n in range(400)]
    await opened.insert(ACTOR, [NewRecord(f"r{n}", vectors[n], dict(metadata[n])) for n in range(400)])
    for document in ({"shop": 2}, {"tags": "u7"}, {"shop": {"$in": [0, 1]}, "tags": "t1"}, {"shop": 9}):
        wanted = filters.compile(document)
        chosen = [n for n in range(400) if wanted.matches(metadata[n])]
        query = unit(rng, 1, DIM)[0]
        order, _ = brute_force(vectors[chosen], query, 20)
        hits = await opened.search(query, 20, wanted)
        assert [hit.id for hit in hits] == [f"r{chosen[position]}" for position in order]
        assert [record.id for record in await opened.all(wanted)] == [f"r{n}" for n in chosen]
    await opened.update(ACTOR, [("r17", {"shop": 9})])
    await opened.insert(ACTOR, [NewRecord("new", vectors[0], {"shop": 9})])
    await opened.delete(ACTOR, ["r18"])
    assert [hit.id for hit in await opened.search(vectors[17], 5, filters.compile({"shop": 9}))] == [
        "r17",
        "new",
    ]


async def test_hits_without_metadata_are_the_same_hits(things: Shelf) -> None:
    rng = np.random.default_rng(5)
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, numbered(unit(rng, 50, DIM)))
    query = unit(rng, 1, DIM)[0]
    full = await opened.search(query, 7)
    bare = await opened.search(query, 7, metadata=False)
    assert [(hit.id, hit.distance) for hit in bare] == [(hit.id, hit.distance) for hit in full]
    assert all(hit.metadata == {} for hit in bare)


async def test_pages_hold_every_record_once_in_order(things: Shelf) -> None:
    rng = np.random.default_rng(6)
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, numbered(unit(rng, 25, DIM)))
    await opened.delete(ACTOR, ["r4", "r11"])
    seen, page, more = [], 0, True
    while more:
        page += 1
        records, more = await opened.page(page, 7)
        seen += [record.id for record in records]
    assert page == 4
    assert seen == [f"r{n}" for n in range(25) if n not in (4, 11)]
    for behind in (9, 10**12):
        assert await opened.page(behind, 7) == ([], False)
    for wrong in ((0, 5), (-1, 5), (1, 0), (1, 10_001)):
        with pytest.raises(InvalidInput):
            await opened.page(*wrong)


async def test_a_sample_is_random_different_and_matching(things: Shelf) -> None:
    opened = await things.collection(DIM)
    await opened.insert(ACTOR, [one(f"r{n}", odd=n % 2) for n in range(40)])
    drawn = await opened.sample(10, filters.compile({"odd": 1}), np.random.default_rng(7))
    assert len({record.id for record in drawn}) == 10
    assert all(record.metadata == {"odd": 1} for record in drawn)
    again = await opened.sample(10, filters.compile({"odd": 1}), np.random.default_rng(8))
    assert {record.id for record in again} != {record.id for record in drawn}
    assert len(await opened.sample(100, None, np.random.default_rng(7))) == 40


DEEP: dict[str, object] = {}
for _ in range(40):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (NewRecord("", np.ones(DIM, np.float32)), "_id: must not be empty"),
        (NewRecord("a\0b", np.ones(DIM, np.float32)), "_id: .*NUL"),
        (NewRecord("\ud800", np.ones(DIM, np.float32)), "_id: .*surrogate"),
        (NewRecord("x" * 10_240, np.ones(DIM, np.float32)), "_id: 10240 bytes, at most 1024"),
        (NewRecord(5, np.ones(DIM, np.float32)), "_id: a string"),  # type: ignore[arg-type]
        (NewRecord("a", np.full(DIM, np.nan, np.float32)), "vector: .*not finite"),
        (NewRecord("a", np.full(DIM, -np.inf, np.float32)), "vector: .*not finite"),
        (NewRecord("a", np.zeros(DIM, np.float32)), "vector: is zero"),
        (NewRecord("a", np.ones(DIM + 1, np.float32)), "vector: 16 numbers"),
        (one("a", x=float("nan")), "metadata.x: nan"),
        (one("a", x=[1, {"y": float("inf")}]), r"metadata.x\[1\].y: inf"),
        (one("a", x={1: 2}), "metadata.x: the key 1"),
        (one("a", x=b"bytes"), "metadata.x: bytes"),
        (one("a", x="\ud800"), "metadata: .*surrogate"),
        (one("a", x="." * 1_048_576), "metadata: 1048584 bytes of JSON, at most 65536"),
        (one("a", x=DEEP), "metadata: nested deeper"),
        (NewRecord("a", np.ones(DIM, np.float32), []), "metadata: an object"),  # type: ignore[arg-type]
    ],
)
async def test_a_bad_record_is_named_and_nothing_of_the_call_is_kept(
    things: Shelf, record: NewRecord, reason: str
) -> None:
    opened = await things.collection(DIM)
    with pytest.raises(InvalidInput, match=reason):
        opened.check(record)
    with pytest.raises(InvalidInput, match="record 1: " + reason):
        await opened.insert(ACTOR, [one("good"), record])
    assert opened.count == 0
    assert await opened.insert(ACTOR, [one("good")]) == ["inserted"]


async def test_bad_queries_are_refused_by_name(things: Shelf) -> None:
    opened = await things.collection(DIM)
    for k in (0, -1, 10**9):
        with pytest.raises(InvalidInput, match="k: "):
            await opened.search(np.ones(DIM), k)
    with pytest.raises(InvalidInput, match="query vector: 16 numbers"):
        await opened.search(np.ones(DIM // 2), 1)
    with pytest.raises(InvalidInput, match="record 0: metadata"):
        await opened.update(ACTOR, [("a", {"x": float("nan")})])
    for call in (opened.get, opened.vectors):
        with pytest.raises(InvalidInput, match="record 1: _id"):
            await call(["a", "b\0"])
    with pytest.raises(InvalidInput, match="record 0: _id"):
        await opened.delete(ACTOR, [""])


async def test_odd_ids_are_kept_byte_for_byte(things: Shelf) -> None:
    opened = await things.collection(DIM)
    composed, decomposed = (unicodedata.normalize(form, "né/ж") for form in ("NFC", "NFD"))
    ids = [composed, decomposed, "a/b/../c", " a", "a ", "A", "a", "%00", "'; --", "😀", "x" * 1024]
    assert await opened.insert(ACTOR, [one(external, me=external) for external in ids]) == ["inserted"] * 11
    assert await opened.get(ids) == [Record(external, {"me": external}) for external in ids]
    assert await opened.delete(ACTOR, [decomposed]) == [True]
    assert [found is not None for found in await opened.get([composed, decomposed])] == [True, False]


async def test_removal_erases_everything_and_every_handle_says_so(things: Shelf) -> None:
    opened = await things.collection(DIM)
    other = await things.collection(DIM, "other")
    for low in range(0, 600, 200):
        await opened.insert(ACTOR, [one(f"r{n}") for n in range(low, low + 200)])
    await other.insert(ACTOR, [one("stays")])
    await things.collections.remove(ACTOR, None, opened.collection.id)
    left = await things.ledger.read(
        lambda connection: connection.execute("SELECT count(*), max(collection) FROM records").fetchone()
    )
    assert left == (1, 2)
    assert [found.name for found in await things.collections.list()] == ["other"]
    for call in (
        opened.search(np.ones(DIM), 1),
        opened.insert(ACTOR, [one("late")]),
        opened.delete(ACTOR, ["r1"]),
        opened.get(["r1"]),
        opened.page(1, 1),
    ):
        with pytest.raises(NotFound):
            await call
    assert len(await other.search(np.ones(DIM), 5)) == 1


async def test_an_erasure_that_was_interrupted_goes_on_at_the_next_start(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        await opened.insert(ACTOR, [one(f"r{n}") for n in range(300)])
        await first.ledger.write(
            lambda connection: connection.execute("UPDATE collections SET removed = 1").fetchall()
        )

    def left(connection: object) -> int:
        return int(connection.execute("SELECT count(*) FROM records").get)  # type: ignore[attr-defined]

    async with shelf(tmp_path) as second:
        assert await second.collections.list() == []
        async with asyncio.timeout(10):
            while await second.ledger.read(left):  # noqa: ASYNC110 -- the erasure gives no event
                await asyncio.sleep(0.01)


async def test_a_collection_is_loaded_once_however_many_ask(tmp_path: Path) -> None:
    async with shelf(tmp_path) as first:
        opened = await first.collection(DIM)
        await opened.insert(ACTOR, [one("a")])
    async with shelf(tmp_path) as second:
        identifier = opened.collection.id
        handles = await asyncio.gather(
            *(second.collections.open(second.customer, identifier) for _ in range(10))
        )
        assert all(handle is handles[0] for handle in handles)
        assert handles[0].count == 1


async def test_an_insert_whose_caller_went_away_is_either_whole_or_absent(things: Shelf) -> None:
    opened = await things.collection(DIM)
    for attempt in range(20):
        task = asyncio.ensure_future(opened.insert(ACTOR, [one(f"{attempt}-{n}") for n in range(5)]))
        for _ in range(attempt % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await opened.insert(ACTOR, [one("last")])
    listed = {record.id for record in await opened.all()}
    assert {hit.id for hit in await opened.search(np.ones(DIM), 1000)} == listed
    assert opened.count == len(listed)
    for attempt in range(20):
        assert len({f"{attempt}-{n}" for n in range(5)} & listed) in (0, 5)


async def test_every_change_leaves_an_audit_row_without_the_customers_data(things: Shelf) -> None:
    opened = await things.collection(DIM, "secret name")
    await opened.insert(ACTOR, [one("secret id", x="secret value"), one("secret id")])
    await opened.update(ACTOR, [("secret id", {"x": 1}), ("none", {})])
    await opened.delete(ACTOR, ["secret id", "none"])
    await things.collections.remove(ACTOR, None, opened.collection.id)
    rows = await things.ledger.read(lambda connection: audit.entries(connection, things.customer))
    assert [(row.event.value, row.details) for row in rows if row.subject == opened.collection.id] == [
        ("collection.add", {"backbone": BACKBONE, "dim": DIM}),
        ("search.insert", {"inserted": 1}),
        ("search.update", {"updated": 1}),
        ("search.delete", {"deleted": 1}),
        ("collection.remove", {"records": 0}),
    ]
    assert "secret" not in repr(rows)
