"""The store against a dict: whatever is done in whatever order, restarts and damage too, the two agree."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from appliance.accounts.audit import entries
from appliance.accounts.customers import CustomerId
from appliance.datasets.links import LONGEST_SECONDS
from appliance.datasets.records import Dataset, Image, ReadPermit, Variant, Visibility
from appliance.errors import AlreadyStored, Conflict, Forbidden, InvalidImage, NotFound, SealBroken
from tests.storing import ACTOR, Clock, Stand, stand

CUSTOMERS = ("Alice", "Bob")
NAMES = (None, "cats", "dogs", "owls")  # None: the default one
CHUNK = 16384
SIZES = (1, 99, 5_000, CHUNK - 100, CHUNK, CHUNK + 1, 3 * CHUNK + 7)
DAY = 86400

which = st.integers(0, 1000)  # one of what there is, whatever number that is
contents = st.integers(0, 13)


def content(number: int) -> bytes:
    return bytes([number]) * SIZES[number % len(SIZES)]


@dataclass
class Folder:
    """A dataset of the model; `known` is what was given when it was made, and never looked up again."""

    known: Dataset
    visibility: Visibility = "link"
    epoch: int = 0
    images: dict[int, Image] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """A link that was given out, and what decides whether it still opens."""

    link: str
    image: Image
    variant: Variant
    visibility: Visibility
    epoch: int
    expiry: float


class Machine(RuleBasedStateMachine):
    parent: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.state = self.parent / str(len(list(self.parent.iterdir())))
        self.state.mkdir()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.clock = Clock()
        self.monotonic = Clock(1000.0)
        self.latest = self.clock.now
        self.model: dict[tuple[CustomerId, str | None], Folder] = {}
        self.erased: list[Dataset] = []
        self.given: list[Given] = []
        self.damaged: set[str] = set()
        self.lost: set[str] = set()  # those of the damaged whose file is not there
        self.reported: set[str] = set()  # images that are no more, and were found damaged before
        self.run(self.open())
        self.customers = [self.run(self.one.customer(name)) for name in CUSTOMERS]
        for number, (owner, name) in enumerate([(0, None), (0, "cats"), (1, None), (1, "dogs")]):
            self.add(owner, name)
            self.put(number, [number, number + 4, number + 8])

    def run(self, act: Any) -> Any:
        return self.runner.run(act)

    async def open(self) -> None:
        enter = self.stack.enter_async_context
        self.one: Stand = await enter(stand(self.state, clock=self.clock, monotonic=self.monotonic))
        self.links = self.one.links

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    def folder(self, number: int) -> Folder:
        return list(self.model.values())[number % len(self.model)]

    def image(self, number: int) -> tuple[Folder, int, Image]:
        every = [(one, name, image) for one in self.model.values() for name, image in one.images.items()]
        return every[number % len(every)]

    def file(self, image: Image) -> Path:
        return self.state / "images" / image.name.container.hex / image.name.object.hex

    async def whole(self, image: Image) -> tuple[bytes, bytes]:
        permit = ReadPermit(image.customer, image.dataset, image.id, "token")
        variants: tuple[Variant, Variant] = ("image", "thumbnail")
        one, other = [await self.bytes(permit, variant) for variant in variants]
        return one, other

    async def bytes(self, permit: ReadPermit, variant: Variant) -> bytes:
        opened = await self.one.store.open(permit, variant)
        try:
            return b"".join([piece async for piece in opened.read(0, opened.length)])
        finally:
            opened.close()

    def has_folders(self) -> bool:
        return bool(self.model)

    def has_images(self) -> bool:
        return any(one.images for one in self.model.values())

    # What a customer does.

    @rule(owner=st.integers(0, 1), name=st.sampled_from(NAMES))
    def add(self, owner: int, name: str | None) -> None:
        customer = self.customers[owner]
        known = self.model.get((customer, name))
        if name is None:
            made = self.run(self.one.datasets.default(customer))
            assert known is None or made.id == known.known.id
        elif known is not None:
            with pytest.raises(Conflict):
                self.run(self.one.datasets.add(ACTOR, customer, name))
            return
        else:
            made = self.run(self.one.datasets.add(ACTOR, customer, name))
        if known is None:
            self.model[customer, name] = Folder(made)

    @precondition(has_folders)
    @rule(number=which, new=st.lists(contents, min_size=1, max_size=5))
    def put(self, number: int, new: list[int]) -> None:
        """Several at once, some of them twice: each is stored once."""
        folder = self.folder(number)
        outcomes = self.run(self.put_together(folder.known, new))
        expected = {name for name in new if name not in folder.images}
        stored = {name: image for name, image in zip(new, outcomes, strict=True) if isinstance(image, Image)}
        assert set(stored) == expected
        assert [type(one) for one in outcomes if not isinstance(one, Image)] == [AlreadyStored] * (
            len(new) - len(stored)
        )
        folder.images |= dict(sorted(stored.items(), key=lambda item: item[1].key))
        for name, outcome in zip(new, outcomes, strict=True):
            if isinstance(outcome, AlreadyStored):
                assert folder.images[name].id in str(outcome)

    async def put_together(self, dataset: Dataset, new: list[int]) -> list[Any]:
        puts = (self.one.store.put(ACTOR, dataset, content(name), b"{}") for name in new)
        return await asyncio.gather(*puts, return_exceptions=True)

    @precondition(has_folders)
    @rule(number=which)
    def put_what_is_no_image(self, number: int) -> None:
        with pytest.raises(InvalidImage):
            self.run(self.one.store.put(ACTOR, self.folder(number).known, b"broken"))

    @precondition(has_images)
    @rule(number=which, twice=st.booleans())
    def delete(self, number: int, twice: bool) -> None:
        folder, name, image = self.image(number)
        for _ in range(1 + twice):
            self.run(self.one.store.delete(ACTOR, image))
        del folder.images[name]
        self.forget(image)

    def forget(self, image: Image) -> None:
        if image.id in self.damaged:
            self.reported.add(image.id)
        self.damaged.discard(image.id)
        self.lost.discard(image.id)

    @precondition(has_folders)
    @rule(number=which, size=st.integers(1, 5))
    def pages(self, number: int, size: int) -> None:
        folder = self.folder(number)
        seen: list[Image] = []
        while page := self.run(self.one.store.list(folder.known, seen[-1].key if seen else 0, size)):
            seen += page
        assert [image.id for image in seen] == [image.id for image in folder.images.values()]
        assert {image.id for image in seen if image.damaged} <= self.damaged
        now = self.run(self.one.datasets.get(folder.known.customer, folder.known.id))
        assert (now.images, now.bytes) == (len(seen), sum(image.size for image in seen))
        assert (now.name, now.visibility) == (folder.known.name, folder.visibility)

    @precondition(has_images)
    @rule(number=which)
    def read(self, number: int) -> None:
        _, name, image = self.image(number)
        if image.id in self.damaged:
            with pytest.raises(NotFound if image.id in self.lost else SealBroken):
                self.run(self.whole(image))
        else:
            assert self.run(self.whole(image)) == (content(name), content(name)[:100][::-1])

    @precondition(lambda self: len(self.model) > 2)  # so that what is done next has something to be done to
    @rule(number=which, new=st.lists(contents, max_size=4), turns=st.integers(0, 3))
    def erase(self, number: int, new: list[int], turns: int) -> None:
        """Also while images are being put into it: they are refused, or gone with it."""
        folder = self.folder(number)
        outcomes = self.run(self.erase_under_way(folder.known, new, turns))
        for name, outcome in zip(new, outcomes, strict=True):
            assert isinstance(outcome, Image | NotFound | SealBroken) or name in folder.images, outcome
        del self.model[folder.known.customer, folder.known.name]
        self.erased.append(folder.known)
        for image in folder.images.values():
            self.forget(image)

    async def erase_under_way(self, dataset: Dataset, new: list[int], turns: int) -> list[Any]:
        putting = asyncio.ensure_future(self.put_together(dataset, new))
        for _ in range(turns * 5):
            await asyncio.sleep(0)
        await self.one.datasets.erase(ACTOR, dataset)
        outcomes = await putting
        await asyncio.gather(*self.one.datasets._erasing)
        return outcomes

    @precondition(lambda self: self.erased)
    @rule(number=which)
    def use_what_is_erased(self, number: int) -> None:
        dataset = self.erased[number % len(self.erased)]
        with pytest.raises(NotFound):
            self.run(self.one.datasets.get(dataset.customer, dataset.id))
        with pytest.raises(NotFound):
            self.run(self.one.store.put(ACTOR, dataset, content(1)))
        assert self.run(self.one.store.list(dataset)) == []

    @precondition(has_images)
    @rule(number=which)
    def anothers_image_is_none(self, number: int) -> None:
        _, _, image = self.image(number)
        other = self.customers[1 - self.customers.index(image.customer)]
        with pytest.raises(NotFound):
            self.run(self.one.store.get(other, image.id))

    # Links.

    @precondition(has_folders)
    @rule(
        number=which, visibility=st.sampled_from(["link", "public", "restricted", None]), back=st.booleans()
    )
    def change(self, number: int, visibility: Visibility | None, back: bool) -> None:
        """With what was known when the dataset was made; without a visibility it keeps the one it has."""
        folder = self.folder(number)
        before = folder.visibility
        self.link_to(folder)
        self.change_to(folder, visibility)
        if back:
            self.change_to(folder, before)
        self.follow_links()

    def change_to(self, folder: Folder, visibility: Visibility | None) -> None:
        changed = self.run(
            self.one.datasets.change(ACTOR, folder.known, visibility=visibility, retention_days=5)
        )
        if visibility is not None and visibility != folder.visibility:
            folder.visibility = visibility
            folder.epoch += 1
        assert changed.visibility == folder.visibility

    @precondition(has_folders)
    @rule(number=which)
    def end_links(self, number: int) -> None:
        folder = self.folder(number)
        self.link_to(folder)
        self.run(self.one.datasets.end_links(ACTOR, folder.known))
        folder.epoch += 1
        self.follow_links()

    @precondition(has_images)
    @rule(
        number=which,
        variant=st.sampled_from(["image", "thumbnail"]),
        seconds=st.sampled_from([1, 60, LONGEST_SECONDS]),
    )
    def link(self, number: int, variant: Variant, seconds: int) -> None:
        folder, _, image = self.image(number)
        self.link_to(folder, image, variant, seconds)

    def link_to(
        self,
        folder: Folder,
        image: Image | None = None,
        variant: Variant = "image",
        seconds: int = LONGEST_SECONDS,
    ) -> None:
        """To the newest image of a dataset, when it has any, or to this one."""
        if image is None:
            if not folder.images:
                return
            image = list(folder.images.values())[-1]
        dataset = self.run(self.one.datasets.get(folder.known.customer, folder.known.id))
        link = self.links.address(dataset, image, variant, seconds)
        expiry = self.latest + seconds if folder.visibility == "link" else float("inf")
        self.given.append(Given(link, image, variant, folder.visibility, folder.epoch, expiry))

    @rule()
    def follow_links(self) -> None:
        for given in self.given[-20:]:
            assert self.run(self.opens(given)) == self.should_open(given), given

    async def opens(self, given: Given) -> bool:
        path, _, query = given.link.partition("?")
        try:
            permit, variant = await self.links.permit(path.removeprefix("files/"), query)
        except Forbidden:
            return False
        assert (permit.image, variant) == (given.image.id, given.variant)
        if given.image.id not in self.damaged:
            assert await self.bytes(permit, variant)
        return True

    def should_open(self, given: Given) -> bool:
        folder = next((one for one in self.model.values() if one.known.id == given.image.dataset), None)
        return (
            folder is not None
            and given.image.id in {image.id for image in folder.images.values()}
            and given.visibility == folder.visibility != "restricted"
            and given.epoch == folder.epoch
            and self.latest < given.expiry
        )

    @rule(seconds=st.sampled_from([1, 59, 61, 3599, 3601]))
    def time_passes(self, seconds: int) -> None:
        if self.has_images():
            self.link(seconds, "thumbnail", min(seconds, LONGEST_SECONDS))
        self.clock.now += seconds
        self.monotonic.now += seconds
        self.latest = max(self.latest + seconds, self.clock.now)
        self.follow_links()

    @rule(seconds=st.sampled_from([-7200, -3600, -1, 1, 30, 3600, 7200]))
    def the_clock_is_set(self, seconds: int) -> None:
        self.clock.now += seconds
        self.latest = max(self.latest, self.clock.now)

    # What the appliance and its operator do, and what the disk does to them.

    @precondition(has_folders)
    @rule(number=which)
    def rotate_container(self, number: int) -> None:
        known = self.folder(number).known
        before = self.one.datasets.keys(known).generation
        self.run(asyncio.to_thread(self.one.keyring.rotate_container, UUID(known.customer), UUID(known.id)))
        assert self.one.datasets.keys(known).generation == before + 1

    @precondition(has_folders)
    @rule(number=which)
    def rotate_customer(self, number: int) -> None:
        customer = UUID(self.folder(number).known.customer)
        self.run(asyncio.to_thread(self.one.keyring.rotate_customer, customer))

    @rule()
    def restart(self) -> None:
        self.run(self.stack.aclose())
        self.run(self.open())
        assert self.one.upkeep.findings == []

    @precondition(has_images)
    @rule(number=which, place=st.integers(0, 2**32), bit=st.integers(0, 7))
    def flip_a_bit(self, number: int, place: int, bit: int) -> None:
        _, _, image = self.image(number)
        if image.id in self.damaged:
            return
        file = self.file(image)
        sealed = bytearray(file.read_bytes())
        sealed[place % len(sealed)] ^= 1 << bit
        file.write_bytes(sealed)
        self.damaged.add(image.id)

    @precondition(has_images)
    @rule(number=which)
    def lose_a_file(self, number: int) -> None:
        _, _, image = self.image(number)
        if image.id not in self.lost:
            self.file(image).unlink()
            self.damaged.add(image.id)
            self.lost.add(image.id)

    @precondition(has_images)
    @rule(number=which, other=which)
    def swap_two_files(self, number: int, other: int) -> None:
        one, another = self.image(number)[2], self.image(other)[2]
        if one.id == another.id or {one.id, another.id} & self.damaged:
            return
        first, second = self.file(one).read_bytes(), self.file(another).read_bytes()
        self.file(one).write_bytes(second)
        self.file(another).write_bytes(first)
        self.damaged |= {one.id, another.id}

    @rule()
    def scrub(self) -> None:
        """Every image is proven, and exactly those that are damaged are told of, once."""
        self.time_passes(40 * DAY)
        self.run(self.one.upkeep.scrub(10))
        marked = set()
        for folder in self.model.values():
            images = self.run(self.one.store.list(folder.known, most=1000))
            marked |= {image.id for image in images if image.damaged}
        assert marked == self.damaged
        log = self.run(self.one.ledger.read(entries))
        told = [entry.subject for entry in log if entry.event == "image.damaged"]
        assert len(told) == len(set(told))
        assert self.damaged <= set(told) <= self.damaged | self.reported

    @invariant()
    def files_are_those_of_the_images(self) -> None:
        there = {path.name for path in (self.state / "images").glob("*/*")}
        images = [image for one in self.model.values() for image in one.images.values()]
        assert there == {image.name.object.hex for image in images if image.id not in self.lost}

    @invariant()
    def keys_are_those_of_the_datasets(self) -> None:
        containers = {str(container) for _, container, _ in self.one.keyring.containers()}
        assert containers == {one.known.id for one in self.model.values()}

    @invariant()
    def it_goes_on(self) -> None:
        assert (self.one.folder.fault, self.one.ledger.failure) == (None, None)

    @invariant()
    def time_goes_forward(self) -> None:
        assert self.links.now() == self.latest


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("examples", "steps"), [(20, 50), pytest.param(300, 60, marks=pytest.mark.full)])
def test_the_store_is_a_dict(tmp_path: Path, examples: int, steps: int) -> None:
    Machine.parent = tmp_path
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        ),
    )
