"""Links: exactly what was made opens, for as long as it lives, and nothing else ever does."""

import base64
import os
import shutil
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.datasets.links import Links
from appliance.datasets.records import Dataset, Image
from appliance.errors import Forbidden, InvalidInput, NotFound
from tests.storing import ACTOR, OPERATOR, Clock, Stand, stand

PHOTO = os.urandom(5_000)


@dataclass
class Linked:
    stand: Stand
    links: Links
    dataset: Dataset
    image: Image
    clock: Clock

    async def opens(self, link: str) -> bool:
        path, _, query = link.partition("?")
        try:
            permit, _ = await self.links.permit(path.removeprefix("files/"), query)
        except Forbidden:
            return False
        return permit.image == self.image.id


@asynccontextmanager
async def linked(state: Path, clock: Clock | None = None) -> AsyncIterator[Linked]:
    clock = clock or Clock()
    async with stand(state, clock=clock, monotonic=clock) as one:
        dataset = await one.datasets.default(await one.customer())
        stored = await one.store.list(dataset)
        image = stored[0] if stored else await one.store.put(ACTOR, dataset, PHOTO)
        yield Linked(one, one.links, dataset, image, clock)


async def test_a_link_opens_for_an_hour(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        link = one.links.address(one.dataset, one.image)
        assert link.startswith(f"files/{one.image.id}.jpg?exp={int(one.clock.now) + 3600}&sig=")
        one.clock.now += 3599
        assert await one.opens(link)
        one.clock.now += 1
        assert not await one.opens(link)


async def test_a_shorter_life_is_granted_a_longer_one_is_not(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        link = one.links.address(one.dataset, one.image, seconds=10)
        assert await one.opens(link)
        one.clock.now += 10
        assert not await one.opens(link)
        for seconds in (0, 3601):
            with pytest.raises(InvalidInput, match="1 to 3600"):
                one.links.address(one.dataset, one.image, seconds=seconds)


async def test_a_genuine_link_of_the_far_future_is_refused(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        one.clock.now += 7200
        ahead = one.links.address(one.dataset, one.image)
    async with linked(tmp_path, Clock()) as again:  # the keys are the same, its time has not come
        again.links._forward = again.clock
        assert not await again.opens(ahead)


async def test_a_clock_that_is_set_back_revives_nothing(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        link = one.links.address(one.dataset, one.image, seconds=60)
        one.clock.now += 61
        assert not await one.opens(link)
        began = one.clock.now
    async with linked(tmp_path, Clock(began - 3600)) as again:
        assert again.links.now() >= began
        assert not await again.opens(link)
        fresh = again.links.address(again.dataset, again.image, seconds=60)
        assert await again.opens(fresh)
        again.clock.now += 61  # time does not stand still either
        assert not await again.opens(fresh)


async def test_a_clock_that_is_set_back_while_it_runs_revives_nothing(tmp_path: Path) -> None:
    clock, monotonic = Clock(), Clock(5.0)
    async with stand(tmp_path, clock=clock, monotonic=monotonic) as one:
        dataset = await one.datasets.default(await one.customer())
        image = await one.store.put(ACTOR, dataset, PHOTO)
        linked = Linked(one, one.links, dataset, image, clock)
        link = one.links.address(dataset, image, seconds=60)
        clock.now += 61
        assert not await linked.opens(link)
        clock.now -= 3600
        assert not await linked.opens(link)
        fresh = one.links.address(dataset, image, seconds=60)
        assert await linked.opens(fresh)
        monotonic.now += 60
        assert not await linked.opens(fresh)


async def test_the_time_is_kept_while_links_are_used(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        link = one.links.address(one.dataset, one.image)
        one.clock.now += 1800
        assert await one.opens(link)
        kept = await one.stand.ledger.read(
            lambda connection: connection.execute("SELECT time FROM latest_time").get
        )
        assert kept >= int(one.clock.now * 1000)  # before any orderly stop


async def test_a_crash_and_a_clock_that_is_set_back_revive_nothing(tmp_path: Path) -> None:
    """Nobody used a link for hours before: time is kept all the same."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    async with linked(before) as one:
        began = one.clock.now
        link = one.links.address(one.dataset, one.image, seconds=3600)
        one.clock.now += 40_000
        await one.links.keep()  # as the running appliance does twice a minute
        one.clock.now += 29
        shutil.copytree(before, after)
    async with linked(after, Clock(began + 100)) as again:
        assert again.links.now() >= began + 40_029
        assert not await again.opens(link)


async def test_a_crash_puts_nothing_ahead(tmp_path: Path) -> None:
    """Else every crash would end links early, and the next ones would have a time that is none."""
    clock = Clock()
    state = tmp_path / "0"
    state.mkdir()
    for number in range(1, 7):
        async with linked(state, clock) as one:
            clock.now += 40
            assert one.links.now() == clock.now
            await one.links.keep()
            clock.now += 20
            shutil.copytree(state, tmp_path / f"{number}")
        state = tmp_path / f"{number}"
    async with linked(state, clock) as last:
        assert last.links.now() == clock.now


async def test_what_was_refused_stays_so_after_a_crash(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    async with linked(before) as one:
        link = one.links.address(one.dataset, one.image, seconds=10)
        one.clock.now += 10
        assert not await one.opens(link)
        ended = one.clock.now
        shutil.copytree(before, after)
    async with linked(after, Clock(ended - 5)) as again:
        assert not await again.opens(link)


async def test_an_orderly_stop_puts_nothing_ahead_either(tmp_path: Path) -> None:
    clock = Clock()
    for _ in range(5):
        async with linked(tmp_path, clock) as one:
            assert one.links.now() == clock.now


async def test_thumbnail_and_image_have_links_of_their_own(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        link = one.links.address(one.dataset, one.image, "thumbnail")
        assert f"{one.image.id}-thumb.jpg" in link
        path, _, query = link.partition("?")
        permit, variant = await one.links.permit(path.removeprefix("files/"), query)
        assert (permit.image, permit.reason, variant) == (one.image.id, "link", "thumbnail")
        assert not await one.opens(link.replace("-thumb", ""))


async def test_a_public_dataset_has_stable_links_that_can_be_ended(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        before = one.links.address(one.dataset, one.image)
        public = await one.stand.datasets.change(ACTOR, one.dataset, visibility="public")
        link = one.links.address(public, one.image)
        assert "exp=" not in link
        assert not await one.opens(before)
        one.clock.now += 10 * 365 * 86400
        assert await one.opens(link)
        assert one.links.address(public, one.image) == link
        await one.stand.datasets.end_links(ACTOR, public)
        assert not await one.opens(link)
        back = await one.stand.datasets.change(ACTOR, public, visibility="link")
        assert not await one.opens(link)
        assert await one.opens(one.links.address(back, one.image))


async def test_a_change_leaves_alone_what_another_one_set_meanwhile(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        change = one.stand.datasets.change
        await change(ACTOR, one.dataset, visibility="restricted", retention_days=7)
        known_before = one.dataset  # as a request has it that began before
        changed = await change(ACTOR, known_before, retention_days=30)
        assert (changed.visibility, changed.retention_days) == ("restricted", 30)
        link = one.links.address(await change(ACTOR, changed, visibility="link"), one.image)
        public = await change(ACTOR, changed, visibility="public")
        assert not await one.opens(link)
        stable = one.links.address(public, one.image)
        await change(ACTOR, known_before, visibility="link")
        await change(ACTOR, known_before, visibility="public")
        assert not await one.opens(stable)


async def test_a_restricted_dataset_has_none(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        link = one.links.address(one.dataset, one.image)
        restricted = await one.stand.datasets.change(ACTOR, one.dataset, visibility="restricted")
        assert one.links.address(restricted, one.image) == f"files/{one.image.id}.jpg"
        assert not await one.opens(link)
        assert not await one.opens(f"files/{one.image.id}.jpg")


async def test_a_link_dies_with_its_image_and_its_dataset(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        link = one.links.address(one.dataset, one.image)
        await one.stand.store.delete(ACTOR, one.image)
        assert not await one.opens(link)
        other = await one.stand.datasets.add(ACTOR, one.dataset.customer, "cats")
        image = await one.stand.store.put(ACTOR, other, PHOTO)
        link = one.links.address(other, image)
        await one.stand.datasets.erase(ACTOR, other)
        assert not await one.opens(link)


async def test_a_link_dies_while_its_customer_is_suspended(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        public = await one.stand.datasets.change(ACTOR, one.dataset, visibility="public")
        links = [one.links.address(dataset, one.image) for dataset in (one.dataset, public)]
        assert not await one.opens(links[0])
        assert await one.opens(links[1])
        await one.stand.customers.suspend(OPERATOR, one.dataset.customer)
        assert not await one.opens(links[1])
        await one.stand.customers.resume(OPERATOR, one.dataset.customer)
        assert await one.opens(links[1])


async def test_another_appliances_link_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    async with linked(tmp_path / "one") as one, linked(tmp_path / "other") as other:
        # The same ids under other keys.
        foreign = other.links.address(one.dataset, one.image)
        assert not await one.opens(foreign)


async def test_any_change_of_any_character_is_refused(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        link = one.links.address(one.dataset, one.image)
        start = link.index("?")
        for place in range(start + 1, len(link)):
            for other in "A0-_=&%.":
                if link[place] != other:
                    assert not await one.opens(link[:place] + other + link[place + 1 :])
        for changed in (
            link + "=",
            link + "&",
            link + "&x=1",
            link.replace("?", "?x=1&"),
            link.replace("exp=", "exp=0"),
            link.replace("exp=", "exp=+"),
            link.replace("exp=", "exp=%31"),
            link.replace("exp=", "EXP="),
            link[:start],
            link[: start + 1] + "&".join(reversed(link[start + 1 :].split("&"))),
        ):
            assert not await one.opens(changed)
        assert await one.opens(link)


async def test_a_signature_is_spelled_in_one_way(tmp_path: Path) -> None:
    """Its last character has two bits to spare, so that decoders take four of them for the same."""
    async with linked(tmp_path) as one:
        link = one.links.address(one.dataset, one.image)
        start, signature = link[:-43], link[-43:]
        spelled = [signature[:-1] + last for last in string.ascii_letters + string.digits + "-_"]
        same = [other for other in spelled if decoded(other) == decoded(signature)]
        assert len(same) == 4
        assert [await one.opens(start + other) for other in same] == [other == signature for other in same]


def decoded(signature: str) -> bytes:
    return base64.urlsafe_b64decode(signature + "=")


@settings(max_examples=50, deadline=None)
@given(name=st.text(max_size=60), query=st.text(max_size=80))
async def test_whatever_is_asked_for_is_answered_with_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, name: str, query: str
) -> None:
    async with linked(tmp_path_factory.mktemp("links")) as one:
        with pytest.raises((Forbidden, NotFound)):
            await one.links.permit(name, query)
        with pytest.raises(Forbidden):
            await one.links.permit(f"{one.image.id}.jpg", query)


@pytest.mark.parametrize(
    ("off", "alive"), [(0, True), (3500, True), (3600, False), (10_200, False), (-7200, True)]
)
async def test_the_time_off_counts_while_links_are_ahead_of_the_clock(
    tmp_path: Path, off: int, alive: bool
) -> None:
    """A clock that was ahead for a moment leaves them so; set back, it tells of no time off."""
    clock, monotonic = Clock(), Clock(5.0)
    async with stand(tmp_path, clock=clock, monotonic=monotonic) as one:
        dataset = await one.datasets.default(await one.customer())
        image = await one.store.put(ACTOR, dataset, PHOTO)
        clock.now += 3 * 3600
        await one.links.keep()
        clock.now -= 3 * 3600
        link = one.links.address(dataset, image)
        assert await Linked(one, one.links, dataset, image, clock).opens(link)
    async with linked(tmp_path, Clock(clock.now + off)) as again:
        assert await again.opens(link) == alive
