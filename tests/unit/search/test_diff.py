"""The difference between what a caller wants to be there and what is: every id in one list, none twice."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance import config
from appliance.errors import InvalidInput, NotFound, Overloaded, TooLarge
from appliance.search.opened import OpenCollection
from appliance.search.records import CollectionId, NewRecord
from appliance.search.seals import Seals
from appliance.search.sync import diff
from appliance.search.sync.diff import Differences
from tests.searching import ACTOR, Shelf, shelf

VECTOR = np.ones(4, np.float32)


def differences(shelf: Shelf) -> Differences:
    return Differences(
        shelf.ledger, lambda entry: Seals(shelf.keyring, entry.customer, entry.container), config.Search()
    )


async def pieces(content: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def between(
    shelf: Shelf, collection: OpenCollection, content: bytes, *, lines: bool = False, hash_field: str = "hash"
) -> dict[str, Any]:
    found = await differences(shelf).between(
        shelf.customer, collection.collection.id, pieces(content), lines=lines, hash_field=hash_field
    )
    document: dict[str, Any] = json.loads(b"".join(found.document()))
    return document


def wanted(ids: dict[str, str | None]) -> bytes:
    return json.dumps([{"id": name, "hash": digest} for name, digest in ids.items()]).encode()


@pytest.fixture
async def stock(tmp_path: Path) -> AsyncIterator[tuple[Shelf, OpenCollection]]:
    async with shelf(tmp_path) as opened:
        collection = await opened.collection(4)
        await collection.insert(
            ACTOR,
            [
                NewRecord("same", VECTOR, {"hash": "1", "other": "9"}),
                NewRecord("changed", VECTOR, {"hash": "1"}),
                NewRecord("unhashed", VECTOR, {}),
                NewRecord("gone", VECTOR, {"hash": "1"}),
            ],
        )
        yield opened, collection


async def test_every_id_is_told_what_to_do_with(stock: tuple[Shelf, OpenCollection]) -> None:
    asked: dict[str, str | None] = {"same": "1", "changed": "2", "unhashed": "3", 'new "é"': "4"}
    expected = {"insert": ['new "é"'], "update": ["changed", "unhashed"], "delete": ["gone"], "unchanged": 1}
    assert await between(*stock, wanted(asked)) == expected
    lines = "\n".join(json.dumps({"id": name, "hash": digest}) for name, digest in asked.items()).encode()
    assert await between(*stock, lines, lines=True) == expected
    other = await between(*stock, wanted({"same": "9", "changed": None}), hash_field="other")
    assert other == {"insert": [], "update": [], "delete": ["unhashed", "gone"], "unchanged": 2}
    assert (await between(*stock, b"[]"))["delete"] == ["same", "changed", "unhashed", "gone"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[", "the body ends"),
        (b"{}", "is expected"),
        (b"[1]", "is expected"),
        (b"[{}]", "item 1: id"),
        (b'[{"id": "a"}, {"id": ""}]', "item 2: id"),
        (b'[{"id": "a\\u0000"}]', "item 1: id"),
        (b'[{"id": 5}]', "item 1: id"),
        (b'[{"id": "a", "hash": 5}]', "item 1: hash"),
        (b'[{"id": "a"}, {"id": "a"}]', "more than once"),
        (b"<rss/>", "is expected"),
    ],
)
async def test_what_cannot_be_compared_is_refused(
    stock: tuple[Shelf, OpenCollection], content: bytes, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        await between(*stock, content)


async def test_bounds(stock: tuple[Shelf, OpenCollection], monkeypatch: pytest.MonkeyPatch) -> None:
    opened, collection = stock
    monkeypatch.setattr(diff, "MOST_DESIRED", 3)
    with pytest.raises(TooLarge, match="more than 3"):
        await between(*stock, wanted(dict.fromkeys("abcd")))
    with pytest.raises(NotFound):
        await differences(opened).between(
            opened.customer, CollectionId("other"), pieces(b"[]"), lines=False, hash_field="hash"
        )
    both, held = differences(opened), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"["
        await held.wait()
        yield b"]"

    where = opened.customer, collection.collection.id
    async with asyncio.TaskGroup() as group:
        group.create_task(both.between(*where, slow(), lines=False, hash_field="hash"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await both.between(*where, pieces(b"[]"), lines=False, hash_field="hash")
        held.set()


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=3)
stocks = st.dictionaries(names, st.sampled_from(["1", "2"]), max_size=8)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(there=stocks, asked=st.dictionaries(names, st.sampled_from(["1", "2", None]), max_size=8))
async def test_doing_it_leaves_what_was_wanted(
    stock: tuple[Shelf, OpenCollection], there: dict[str, str], asked: dict[str, str | None]
) -> None:
    opened, collection = stock
    await collection.delete(ACTOR, [record.id for record in await collection.all()])
    held = [NewRecord(name, VECTOR, {"hash": digest}) for name, digest in there.items()]
    await collection.insert(ACTOR, held)
    told = await between(opened, collection, wanted(asked))
    assert len(told["insert"]) + len(told["update"]) + told["unchanged"] == len(asked)
    await collection.delete(ACTOR, told["delete"])
    put = [NewRecord(name, VECTOR, {"hash": asked[name]}) for name in told["insert"] + told["update"]]
    outcomes = await collection.upsert(ACTOR, put)
    assert outcomes == ["inserted"] * len(told["insert"]) + ["replaced"] * len(told["update"])
    now = {record.id: record.metadata["hash"] for record in await collection.all()}
    assert now == {name: digest or there.get(name) for name, digest in asked.items()}


@pytest.mark.full
@pytest.mark.timeout(900)
async def test_a_million_ids_fit(stock: tuple[Shelf, OpenCollection]) -> None:
    opened, collection = stock

    async def many() -> AsyncIterator[bytes]:
        for start in range(0, 1_000_000, 1000):
            yield b"".join(b'{"id": "item %d", "hash": "x"}\n' % n for n in range(start, start + 1000))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    where = opened.customer, collection.collection.id
    found = await differences(opened).between(*where, many(), lines=True, hash_field="hash")
    assert sum(map(len, found.insert)) > 10_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
