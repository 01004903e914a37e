"""Runs of a feed: what comes of items that are new, changed, gone or failing, and what nothing comes of."""

import asyncio
import resource
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from appliance import config
from appliance.errors import ApplianceError, Conflict, InvalidInput, ModelFailed, NotFound, WorkerLost
from appliance.search.records import NewRecord, Vector
from appliance.search.sync.report import State
from appliance.search.sync.source import Source
from tests.feeding import DIM, Colours, Followed, Shop, direction, followed, serving
from tests.searching import ACTOR, BACKBONE


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with serving(Shop()) as shop:
        yield shop


@pytest.fixture
async def one(tmp_path: Path, shop: Shop) -> AsyncIterator[Followed]:
    """A collection that follows the shop, run only when asked."""
    async with followed(tmp_path, shop) as one:
        await one.follow()
        yield one


async def test_a_run_brings_records_vectors_and_metadata(one: Followed) -> None:
    one.shop.offer(one.shop.items("abc", size={"eu": 40}))
    run = await one.run()
    assert (run.state, run.report.added, run.report.items, run.report.left) == (State.DONE, 3, 3, 0)
    assert run.report.added_ids == ["a", "b", "c"]
    assert run.report.bytes == len(one.shop.feed)
    records = await one.records()
    assert records["b"].metadata == {"title": "thing b", "size": {"eu": 40}}
    (hit,) = await (await one.opened()).search(direction(b"image of /c.png"), 1)
    assert (hit.id, round(hit.distance, 6)) == ("c", 0)


async def test_a_second_run_does_only_what_has_changed(one: Followed) -> None:
    one.shop.offer(one.shop.items(range(10)))
    await one.run()
    assert len(one.shop.images) == 10
    before = await one.records()

    items = one.shop.items(range(1, 11))
    items[1]["title"] = "dearer"
    items[2]["image_link"] = f"{one.shop.address}/other.png"
    one.shop.offer(items)
    run = await one.run()
    report = run.report
    assert (report.added, report.changed, report.gone, report.unchanged) == (1, 2, 1, 7)
    assert (report.added_ids, sorted(report.changed_ids), report.gone_ids) == (["10"], ["2", "3"], ["0"])
    assert sorted(one.shop.images) == ["/10.png", "/other.png"]  # new words cost no image
    after = await one.records()
    assert after.keys() == (before.keys() | {"10"}) - {"0"}
    assert after["2"].metadata == {"title": "dearer"}
    (hit,) = await (await one.opened()).search(direction(b"image of /other.png"), 1)
    assert hit.id == "3"

    assert (await one.run()).report.unchanged == 10
    assert one.shop.images == []


async def test_a_field_that_the_feed_drops_is_dropped(one: Followed) -> None:
    one.shop.offer(one.shop.items("a", brand="x"))
    await one.run()
    one.shop.offer(one.shop.items("a"))
    await one.run()
    assert (await one.records())["a"].metadata == {"title": "thing a"}


async def test_records_of_others_stay_and_what_they_changed_or_deleted_comes_back(
    one: Followed,
) -> None:
    one.shop.offer(one.shop.items("abcd"))
    await one.run()
    opened = await one.opened()
    vector = np.ones(16, np.float32)
    await opened.insert(ACTOR, [NewRecord("own", vector, {"mine": True})])
    await opened.upsert(ACTOR, [NewRecord("a", vector, {"mine": True})])
    await opened.delete(ACTOR, ["b"])
    one.shop.images.clear()
    run = await one.run()
    assert (run.report.added_ids, run.report.changed_ids, run.report.gone) == (["b"], ["a"], 0)
    records = await one.records()
    assert records.keys() == {"own", "a", "b", "c", "d"}
    assert records["a"].metadata == {"title": "thing a"}
    assert records["own"].metadata == {"mine": True}


async def test_an_image_that_fails_is_reported_and_tried_again(one: Followed) -> None:
    one.shop.offer(one.shop.items("abc"))
    one.shop.answers = {"/a.png": [404], "/b.png": [503, 503], "/c.png": [503] * 3}
    run = await one.run()
    assert (run.state, run.report.added_ids, run.report.failed) == (State.DONE, ["b"], 2)
    assert run.report.failures == [
        ("a", "_url: the host answered 404"),
        ("c", "_url: the host answered 503"),
    ]
    images = one.shop.images
    assert [images.count(f"/{name}.png") for name in "abc"] == [1, 3, 3]  # a 404 is no better a second later
    assert sorted(one.pauses) == [1.0, 1.0, 5.0, 5.0]
    run = await one.run()
    assert (sorted(run.report.added_ids), run.report.unchanged) == (["a", "c"], 1)


@pytest.mark.parametrize("kind", [ModelFailed, WorkerLost])
async def test_a_report_says_what_customers_are_told_and_the_log_the_rest(
    one: Followed,
    kind: type[ApplianceError],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = kind("worker 3 lost /var/my models/a.onnx")

    async def fails(*_: object) -> Vector:
        raise lost

    monkeypatch.setattr(Colours, "vector", fails)
    one.shop.offer(one.shop.items("a"))
    assert (await one.run()).report.failures == [("a", kind.told)]
    assert f"collection {one.id}: an item of its feed: {lost}" in caplog.text

    def unable(*_: object) -> None:
        raise lost

    monkeypatch.setattr(Colours, "check", unable)
    run = await one.run()
    assert (run.state, run.report.reason) == (State.FAILED, kind.told)
    assert f"collection {one.id}: the run of its feed failed: {lost}" in caplog.text


async def test_items_that_no_record_can_be_made_of_cost_the_others_nothing(one: Followed) -> None:
    shop = one.shop
    items = shop.items(["good", "same", "same"])
    items += [
        {"title": "no id", "image_link": "x"},
        {"id": "no image", "title": "x"},
        {"id": "elsewhere", "image_link": "http://169.254.169.254/latest"},
        *shop.items(["deep"], nested=nested(40)),
        *shop.items(["huge"], text="x" * 70_000),
        *shop.items(["n\0ul"]),
    ]
    shop.offer(items)
    run = await one.run()
    assert (run.state, sorted(run.report.added_ids)) == (State.DONE, ["good", "same"])
    reasons = dict(run.report.failures)
    assert run.report.failed == 7
    assert reasons.keys() == {"same", "", "no image", "elsewhere", "deep", "huge", "n\0ul"}
    assert "more than once" in reasons["same"]
    assert "no destination declared for images" in reasons["elsewhere"]


def nested(levels: int) -> dict[str, object]:
    inner: dict[str, object] = {}
    for _ in range(levels):
        inner = {"in": inner}
    return inner


@pytest.mark.parametrize("count", [4, 0])
async def test_a_feed_that_loses_much_asks_first(one: Followed, count: int) -> None:
    one.shop.offer(one.shop.items(range(10)))
    await one.run()
    one.shop.offer(one.shop.items(range(count)) + (one.shop.items(["new"]) if count else []))
    run = await one.run()
    assert (run.state, run.report.missing) == (State.NEEDS_CONFIRMATION, 10 - count)
    assert f"{10 - count} of 10 records" in run.report.reason
    assert len(await one.records()) == 10, "something was changed before it was confirmed"
    assert one.sync.asking == 1

    confirmed = await one.sync.confirm(ACTOR, one.customer, one.id)
    assert confirmed.id == run.id
    run = await one.ended()
    assert (run.state, run.report.gone, run.report.reason) == (State.DONE, 10 - count, "")
    assert len(await one.records()) == (count + 1 if count else 0)
    assert one.sync.asking == 0
    with pytest.raises(Conflict):
        await one.sync.confirm(ACTOR, one.customer, one.id)


async def test_a_confirmation_is_for_what_was_told_and_no_more(one: Followed) -> None:
    one.shop.offer(one.shop.items(range(10)))
    await one.run()
    one.shop.offer(one.shop.items(range(6)))
    assert (await one.run()).report.missing == 4
    one.shop.offer(one.shop.items(range(2)))
    await one.sync.confirm(ACTOR, one.customer, one.id)
    run = await one.ended()
    assert (run.state, run.report.missing) == (State.NEEDS_CONFIRMATION, 8)
    one.shop.offer(one.shop.items(range(10)))
    assert (await one.run()).state is State.DONE  # the feed is whole again: nothing has to be confirmed
    assert len(await one.records()) == 10


async def test_thirty_in_a_hundred_may_go_unasked(one: Followed) -> None:
    one.shop.offer(one.shop.items(range(10)))
    await one.run()
    one.shop.offer(one.shop.items(range(7)))
    assert (await one.run()).report.gone == 3


@pytest.mark.parametrize(
    "feed",
    [
        b'{"id": "a", "image_link": "x"}\n{"id": "b", "ima',
        b"<!DOCTYPE rss [<!ENTITY a 'b'>]><rss/>",
    ],
)  # fmt: skip
async def test_a_feed_that_is_not_whole_or_no_feed_changes_nothing(one: Followed, feed: bytes) -> None:
    one.shop.offer(one.shop.items("abc"))
    await one.run()
    one.shop.feed = feed
    run = await one.run()
    assert run.state is State.FAILED
    assert "the feed" in run.report.reason
    assert (await one.records()).keys() == {"a", "b", "c"}


async def test_a_host_that_is_down_for_a_moment_is_asked_again(one: Followed) -> None:
    one.shop.offer(one.shop.items("a"))
    one.shop.answers["/feed"] = [503, 503]
    assert (await one.run()).report.added == 1
    assert one.pauses == [1.0, 5.0]
    one.shop.answers["/feed"] = [404]
    run = await one.run()
    assert (run.state, run.report.reason) == (State.FAILED, "url: the host answered 404")


async def test_a_feed_of_too_many_bytes_or_items_is_refused(tmp_path: Path, shop: Shop) -> None:
    async with followed(tmp_path, shop, config.Search(feed_bytes=2000, capacity=5)) as one:
        await one.follow()
        shop.offer(shop.items(range(100)))
        assert "larger than 2000 bytes" in (await one.run()).report.reason
        shop.offer(shop.items(range(6)))
        assert "more than 5 items" in (await one.run()).report.reason
        assert await one.records() == {}


async def test_what_the_collection_has_no_room_for_is_reported(tmp_path: Path, shop: Shop) -> None:
    async with followed(tmp_path, shop, config.Search(capacity=5)) as one:
        await one.follow()
        vectors = np.eye(16, dtype=np.float32)
        await (await one.opened()).insert(ACTOR, [NewRecord(f"own {n}", vectors[n]) for n in range(3)])
        shop.offer(shop.items(range(4)))
        run = await one.run()
        assert (run.report.added, run.report.failed) == (2, 2)
        assert {reason for _, reason in run.report.failures} == {"the collection is full"}


async def test_vectors_of_another_version_are_not_made(one: Followed) -> None:
    one.model.installed.clear()
    one.shop.offer(one.shop.items("a"))
    run = await one.run()
    assert run.state is State.FAILED
    assert "not installed" in run.report.reason
    assert one.shop.asked == []


async def test_a_conditional_run_reads_nothing_twice(tmp_path: Path, shop: Shop) -> None:
    async with followed(tmp_path, shop) as one:
        shop.headers = {"ETag": '"1"'}
        shop.offer(shop.items("ab"))
        shop.answers["/a.png"] = [404]
        await one.follow(every_seconds=3600)
        assert (await one.ended()).report.failed == 1
        await one.pass_time(3600)
        run = await one.until(lambda run: run.report.added_ids == ["a"] and run.state is State.DONE)
        assert "If-None-Match" not in shop.seen[-1]  # something was left to do
        await one.pass_time(3600)
        assert (
            await one.until(lambda last: last.id != run.id and last.ended_at is not None)
        ).state is State.UNCHANGED
        assert shop.seen[-1]["If-None-Match"] == '"1"'
        shop.images.clear()
        assert (await one.run()).state is State.DONE  # somebody who asks gets all of it looked at
        assert "If-None-Match" not in shop.seen[-1]


async def test_a_schedule_runs_at_its_time_and_not_before(tmp_path: Path, shop: Shop) -> None:
    async with followed(tmp_path, shop) as one:
        shop.offer(shop.items("a"))
        await one.follow(daily_at="03:30")  # it is 22:13 in UTC
        following = await one.sync.get(one.customer, one.id)
        assert following.due_at is not None
        wait = following.due_at / 1000 - one.clock[0]
        assert wait == 5 * 3600 + 16 * 60 + 40
        await one.pass_time(wait - 1)
        await asyncio.sleep(0)
        assert shop.asked == []
        await one.pass_time(1)
        assert (await one.ended()).state is State.DONE
        again = (await one.sync.get(one.customer, one.id)).due_at
        assert again == following.due_at + 86_400_000


async def test_a_suspended_customer_does_not_run_until_it_is_resumed(tmp_path: Path, shop: Shop) -> None:
    async with followed(tmp_path, shop) as one:
        shop.offer(shop.items(range(100)))
        stopped, going = asyncio.Event(), asyncio.Event()

        async def hold(path: str) -> None:
            if path == "/90.png":
                stopped.set()
                await going.wait()

        shop.hold = hold
        await one.follow(every_seconds=3600)
        await stopped.wait()
        await one.customers.suspend(ACTOR, one.customer)
        going.set()
        run = await one.until(lambda run: run.report.added == 100)
        assert run.state is State.RUNNING  # what is left waits
        shop.asked.clear()
        one.sync.wake()
        assert shop.asked == []
        await one.customers.resume(ACTOR, one.customer)
        one.sync.wake()
        assert (await one.ended()).report.added == 100
        assert shop.asked == ["/feed"]


async def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path, shop: Shop) -> None:
    reached = asyncio.Event()

    async def hold(path: str) -> None:
        if path == "/150.png":
            reached.set()
            await asyncio.Event().wait()

    async with followed(tmp_path, shop) as one:
        await one.follow()
        shop.offer(shop.items(range(200)))
        shop.hold = hold
        await one.sync.run(ACTOR, one.customer, one.id)
        await reached.wait()
        (before,) = await one.sync.runs(one.customer, one.id)
        assert (before.report.added, before.report.left) == (128, 72)
    shop.hold = None
    shop.images.clear()
    async with followed(tmp_path, shop) as one:
        run = await one.ended()
        assert (run.id, run.state) == (before.id, State.DONE)
        assert (run.report.added, run.report.unchanged, run.report.left) == (200, 0, 0)
        assert sorted(shop.images) == sorted(f"/{n}.png" for n in range(128, 200))
        assert len(await one.records()) == 200


async def test_a_crash_in_the_middle_loses_and_repeats_nothing(tmp_path: Path, shop: Shop) -> None:
    """The files as they are in the middle of a run are those that a kill would leave."""
    reached = asyncio.Event()

    async def hold(path: str) -> None:
        if path == "/70.png":
            reached.set()
            await asyncio.Event().wait()

    running, crashed = tmp_path / "running", tmp_path / "crashed"
    running.mkdir()
    async with followed(running, shop) as one:
        await one.follow(every_seconds=3600)
        shop.offer(shop.items(range(80)))
        shop.hold = hold
        await reached.wait()
        await asyncio.to_thread(shutil.copytree, running, crashed)
    shop.hold = None
    shop.images.clear()
    async with followed(crashed, shop) as one:
        run = await one.ended()
        assert (run.state, run.report.added, run.report.gone) == (State.DONE, 80, 0)
        assert sorted(shop.images) == sorted(f"/{n}.png" for n in range(64, 80))
        assert len(await one.records()) == 80
        for number in (0, 63, 79):
            (hit,) = await (await one.opened()).search(direction(f"image of /{number}.png".encode()), 1)
            assert hit.id == str(number)


async def test_a_customer_runs_one_feed_at_a_time_and_others_do_not_wait(tmp_path: Path, shop: Shop) -> None:
    going, reached = asyncio.Event(), asyncio.Event()

    async def hold(path: str) -> None:
        if path == "/slow.png":
            reached.set()
            await going.wait()

    shop.hold = hold
    async with followed(tmp_path, shop) as one:
        shop.offer(shop.items(["slow"]))
        await one.follow(every_seconds=3600)
        await reached.wait()
        shop.offer(shop.items(["quick"]))
        second = await one.collections.add(ACTOR, one.customer, "second", BACKBONE, DIM)
        other = await one.customers.add(ACTOR, "another")
        foreign = await one.collections.add(ACTOR, other.id, "third", BACKBONE, DIM)
        source = Source(f"{shop.address}/feed", every_seconds=3600)
        for customer, collection in ((one.customer, second.id), (other.id, foreign.id)):
            await one.sync.set(ACTOR, customer, collection, source)
        own = replace(one, customer=other.id, id=foreign.id)
        assert (await own.ended()).report.added == 1
        assert await one.sync.runs(one.customer, second.id) == []  # the customer's first one is under way
        with pytest.raises(NotFound):
            await one.sync.runs(one.customer, foreign.id)
        going.set()
        assert (await replace(one, id=second.id).ended()).report.added == 1


async def test_an_emptied_collection_is_filled_anew_and_a_removed_one_is_forgotten(one: Followed) -> None:
    one.shop.offer(one.shop.items("abc"))
    await one.run()
    await one.collections.empty(ACTOR, one.customer, one.id)
    assert await one.sync.runs(one.customer, one.id) == []
    await one.collections.rename(ACTOR, one.customer, one.id, "others")
    assert (await one.run()).report.added == 3
    await one.collections.remove(ACTOR, one.customer, one.id)
    with pytest.raises(NotFound):
        await one.sync.get(one.customer, one.id)

    def rows(connection: object) -> list[int]:
        tables = ("feeds", "feed_items", "feed_runs")
        return [connection.execute(f"SELECT count(*) FROM {table}").get for table in tables]  # type: ignore[attr-defined]

    assert await one.ledger.read(rows) == [0, 0, 0]


async def test_a_source_is_replaced_and_removed_while_it_runs(one: Followed) -> None:
    reached = asyncio.Event()

    async def hold(_: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    one.shop.hold = hold
    one.shop.offer(one.shop.items("abc"))
    await one.sync.run(ACTOR, one.customer, one.id)
    await reached.wait()
    with pytest.raises(Conflict, match="under way"):
        await one.sync.run(ACTOR, one.customer, one.id)
    await one.follow(url=f"{one.shop.address}/feed?all")
    run = await one.ended()
    assert (run.state, run.report.reason) == (State.FAILED, "another source was set")
    one.shop.hold = None
    assert (await one.run()).report.added == 3
    await one.sync.remove(ACTOR, one.customer, one.id)
    assert (await one.records()).keys() == {"a", "b", "c"}
    for call in (one.sync.get, one.sync.runs):
        with pytest.raises(NotFound, match="follows no source"):
            await call(one.customer, one.id)


async def test_urls_and_headers_rest_sealed_and_are_in_no_log(
    tmp_path: Path, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(tmp_path, shop) as one:
        await one.follow(
            url=f"{shop.address}/feed?key=swordfish", headers={"Authorization": "Bearer swordfish"}
        )
        shop.offer(shop.items(["swordfish"], brand="swordfish"))
        shop.answers["/swordfish.png"] = [404]
        assert (await one.run()).report.failed == 1
        shop.feed = b"[swordfish"
        assert "swordfish" not in (await one.run()).report.reason
        assert shop.seen[0]["Authorization"] == "Bearer swordfish"
    assert not any(b"swordfish" in content for content in files(tmp_path))
    assert "swordfish" not in caplog.text


async def test_no_byte_of_an_image_is_kept(tmp_path: Path, shop: Shop) -> None:
    async with followed(tmp_path, shop) as one:
        await one.follow()
        shop.offer(shop.items(range(20)))
        assert (await one.run()).report.added == 20
        during = files(tmp_path)
    assert not any(b"image of" in content for content in during + files(tmp_path))


def files(folder: Path) -> list[bytes]:
    found = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert found
    return found


@pytest.mark.full
@pytest.mark.timeout(1800)
async def test_a_feed_of_a_million_items_fits_into_little_memory(one: Followed) -> None:
    title = "a thing of some length, as titles are"
    one.shop.feed = b"".join(
        b'{"id": "item %d", "title": "%d %s", "image_link": "http://undeclared.example/%d.png"}\n'
        % (number, number * 7919 % 1_000_003, title.encode(), number)
        for number in range(1_000_000)
    )
    before = psutil.Process().memory_info().rss
    await one.sync.run(ACTOR, one.customer, one.id)
    run = await one.until(lambda run: run.state not in {State.WAITING, State.RUNNING}, seconds=1700)
    assert (run.report.items, run.report.failed, len(run.report.failures)) == (1_000_000, 1_000_000, 100)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    print(f"{grown >> 20} MiB for a million items of {len(one.shop.feed) >> 20} MiB")
    assert grown < 400 << 20


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"url": "http://127.0.0.1/feed"}, "no destination declared for feeds"),
        ({"url": "file:///etc/passwd"}, "url: a URL such as"),
        ({"every_seconds": 5}, "every_seconds"),
        ({"every_seconds": 3600, "daily_at": "03:00"}, "not together"),
        ({"daily_at": "24:00"}, "daily_at"),
        ({"headers": {"Host": "x"}}, "headers"),
        ({"headers": {"If-None-Match": "x"}}, "headers"),
        ({"headers": {"X-A": "b\r\nc"}}, "headers"),
    ],
)
async def test_a_source_that_cannot_be_followed_is_refused(
    one: Followed, source: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        await one.follow(**source)


async def test_a_destination_that_is_not_for_feeds_gives_none(tmp_path: Path, shop: Shop) -> None:
    async with followed(tmp_path, shop, uses=("images",)) as one:
        with pytest.raises(InvalidInput, match="declared for feeds"):
            await one.follow()
