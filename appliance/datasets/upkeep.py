"""What the store does by itself: finish what a stop interrupted, and prove every image again and again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Self
from uuid import UUID

from prometheus_client import Counter, Gauge

from appliance.accounts.customers import CustomerId
from appliance.accounts.forward import note_correction
from appliance.datasets import rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.files import SealedFiles
from appliance.datasets.leaps import Belief, Leaps
from appliance.datasets.records import Image
from appliance.datasets.store import Store, finish_deleting
from appliance.errors import NotFound, SealBroken, StorageFailed, VolumeFull, VolumeOffline
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.vault import Container, Keys, Name
from appliance.volume import Space, is_lack

_AT_ONCE = 500
_READ_AT_ONCE = 1 << 20
_IDLE_SECONDS = 600.0
_NOTED_EVERY = 60.0  # seconds
# A twentieth of the time: a terabyte in 30 days needs 8 MB/s of it.
_SCRUB_SECONDS, _REST_SECONDS = 1.0, 19.0

_log = logging.getLogger(__name__)


class Upkeep:
    """Entering finishes deletions and removes uploads that were never acknowledged.

    `findings` are for the person who runs the appliance: what no restart repairs. `leaps` knows the time
    that retention goes by, from entering on.
    """

    leaps: Leaps

    def __init__(
        self,
        ledger: Ledger,
        datasets: Datasets,
        files: SealedFiles,
        space: Space,
        keys: Keys,
        *,
        scrub_days: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        registry: Registry,
    ) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._files = files
        self._space = space
        self._keys = keys
        self._scrub_ms = int(scrub_days * 86_400_000)
        self._clock = clock
        self._monotonic = monotonic
        self._refused: set[int] = set()  # keys of images that the disk has refused at this scrub
        self._refused_before: set[int] = set()
        self.findings: list[str] = []
        self.damaged = 0
        """How many stored images are known not to be what was sealed."""
        self._proven = Counter("appliance_store_scrubbed_bytes", "Bytes proven by scrubs", registry=registry)
        self._backlog = Gauge("appliance_store_scrub_due", "Images whose scrub is due", registry=registry)
        self._damaged = Gauge(
            "appliance_store_images_damaged", "Images known to be damaged", registry=registry
        )
        self._ahead = Gauge(
            "appliance_store_clock_doubted_seconds",
            "By how much the clock is ahead of the time that retention goes by; 0 while it is believed",
            registry=registry,
        )

    async def __aenter__(self) -> Self:
        earlier = self._noted = Belief.opened(await asyncio.to_thread(self._files.believed), self._keys)
        if not await self._ledger.read(
            rows.ran_before
        ):  # nothing rests here that a wrong clock could make old
            earlier = Belief(self._clock(), self._clock())
        self.leaps = Leaps(earlier, self._clock, self._monotonic)
        await self._note_time()
        await asyncio.to_thread(self._space.before_deletion)
        while images := await self._ledger.read(partial(rows.being_deleted, most=_AT_ONCE)):
            await finish_deleting(self._ledger, self._files, self._datasets.certificates, images, self._now())
        await self._sweep()
        await self._count_damaged()
        for dataset in await self._datasets.nameless():
            self._find(f"the name of dataset {dataset} in the ledger is damaged: it is shown as ?")
        for dataset in await self._datasets.keyless():
            self._find(
                f"dataset {dataset} has no key: it was erased after this ledger was backed up, or made after"
                " this keyring was. Nothing of it can be opened, and nothing of it is removed"
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(StorageFailed, VolumeFull):  # the volume is gone or full, and says so itself
            await self._files.believe(self.leaps.belief().sealed(self._keys))

    @asynccontextmanager
    async def at_leisure(self, store: Store) -> AsyncIterator[None]:
        """Within the block what is past its retention goes, and the rest is scrubbed now and then."""
        scrubbing = asyncio.get_running_loop().create_task(self._work_forever(store), name="upkeep")
        try:
            yield
        finally:
            scrubbing.cancel()
            await asyncio.gather(scrubbing, return_exceptions=True)

    def doubt(self) -> str | None:
        """What a person has to know while the clock is not believed."""
        return self.leaps.warning()

    def count_one_damaged(self) -> None:
        """Somebody who read an image has found, and noted, that it is not what was sealed."""
        self.damaged += 1
        self._damaged.set(self.damaged)

    async def _work_forever(self, store: Store) -> None:
        looked_again = False
        while True:
            try:
                if not looked_again:
                    await self.look_again()
                    looked_again = True
                await self._note_time()
                while await store.expire():
                    pass
                pause = await self.scrub(_SCRUB_SECONDS)
                await self._count_damaged()
                await asyncio.to_thread(self._space.restore_ballast)
            except (StorageFailed, VolumeFull):  # of the ledger or the volume, which say so themselves
                pause = _IDLE_SECONDS
            except Exception:  # noqa: BLE001 - else nothing would be deleted or proven any more, unseen
                _log.exception("the upkeep of stored images failed, and goes on later")
                pause = _IDLE_SECONDS
            await asyncio.sleep(max(pause, _REST_SECONDS))

    async def _note_time(self) -> None:
        """A doubt is durable at once, on a full volume as soon as it has room: no restart ends it."""
        if (correction := self.leaps.correction()) is not None:
            with suppress(VolumeFull):
                await self._ledger.write(
                    partial(note_correction, until=correction.until, seconds=correction.seconds)
                )
                self.leaps.correct()
        belief, noted = self.leaps.belief(), self._noted
        self._ahead.set(self.leaps.ahead())
        known = (belief.until, belief.leapt_at) == (noted.until, noted.leapt_at)
        if known and belief.time - noted.time < _NOTED_EVERY:
            return
        with suppress(VolumeFull):
            await self._files.believe(belief.sealed(self._keys))
            self._noted = belief

    async def scrub(self, seconds: float) -> float:
        """Prove images whose time has come, for about so long; how many seconds until it is worth a call.

        A damaged one is marked and written to the audit log, once, and counts as `damaged`. One that the disk
        refuses is damaged when it refuses it at the next call as well. Raises StorageFailed, also when this
        process lacks what it takes to read; VolumeOffline.
        """
        end = self._monotonic() + seconds
        self._refused_before, self._refused = self._refused, set()
        while self._monotonic() < end:
            now = self._now()
            before = now - self._scrub_ms
            due = await self._ledger.read(partial(rows.to_scrub, before=before, now=now, most=_AT_ONCE))
            self._backlog.set(len(due))
            if not due:
                return _IDLE_SECONDS
            sound = []
            for image in due:
                if self._monotonic() >= end:
                    break
                if await self._is_sound(image):
                    sound.append(image)
            await self._ledger.write(partial(rows.scrubbed, images=sound, now=now))
            if self._refused:
                break
        return 0.0

    async def look_again(self) -> None:
        """Prove the damaged images: one whose right bytes were put back is an image like all others.

        Raises as `scrub`.
        """
        after = 0
        while images := await self._ledger.read(partial(rows.damaged_images, after=after, most=_AT_ONCE)):
            after = images[-1].key
            for image in images:
                if await self._is_sound(image):
                    await self._ledger.write(partial(rows.note_restored, image=image, now=self._now()))
                    _log.warning("image %s of dataset %s is whole again", image.id, image.dataset)
        await self._count_damaged()

    async def _is_sound(self, image: Image) -> bool:
        try:
            keys = self._datasets.keys_at(image)
        except NotFound:  # erased meanwhile, or a finding of the start: its file may be whole
            return True
        try:
            await asyncio.to_thread(self._prove, image, keys)
        except VolumeOffline:
            raise
        except (SealBroken, NotFound, StorageFailed) as error:
            if is_lack(error.__cause__):
                raise
            if isinstance(error, StorageFailed) and image.key not in self._refused_before:
                self._refused.add(image.key)
                _log.warning("image %s cannot be read, and is tried once more: %s", image.id, error)
                return False
            if await self._ledger.write(partial(rows.note_damage, image=image, now=self._now())):
                _log.error("damaged: image %s of dataset %s: %s", image.id, image.dataset, error)
            return False
        return True

    def _prove(self, image: Image, keys: Container) -> None:
        file = self._files.open(image.name, keys)
        try:
            for start in range(0, file.length, _READ_AT_ONCE):
                file.read(start, min(start + _READ_AT_ONCE, file.length))
            self._proven.inc(file.length)
        finally:
            file.close()

    async def _sweep(self) -> None:
        """Remove files that no row speaks of: uploads that were never acknowledged.

        Unless a ledger older than the files is beside them, or ever was: then they may be images whose rows
        were lost with it, however far it has come since.
        """
        witnessed = await asyncio.to_thread(self._files.witnessed)
        doubted = await asyncio.to_thread(self._files.doubted)
        reached = await self._ledger.read(rows.last_entry)
        older = reached < witnessed
        if older:
            self._find(
                f"the ledger ends at audit entry {reached}, images were acknowledged at entry {witnessed}:"
                " it is older than the sealed files beside it. Files without a row are kept: restore the"
                " ledger that belongs to them"
            )
            await self._files.doubt(True)
        keep = older or doubted
        kept = 0
        known = await self._ledger.read(rows.owners)
        for container in await asyncio.to_thread(self._files.containers):
            owner = known.get(str(container))
            if owner is None:
                self._find(f"the sealed files in {container.hex} belong to no dataset of this ledger: kept")
                kept += 1
                continue
            kept += await self._sweep_container(container, *owner, keep=keep)
        if doubted and not older and not kept:
            await self._files.doubt(False)

    async def _sweep_container(
        self, container: UUID, number: int, customer: CustomerId, *, keep: bool
    ) -> int:
        """How many files without a row were kept."""
        present = await asyncio.to_thread(self._files.objects, container)
        living = await self._ledger.read(partial(rows.living_ids, dataset=number))
        orphans = [Name(UUID(customer), container, found) for found in present if str(found) not in living]
        if orphans and keep:
            self._find(f"{len(orphans)} sealed files of dataset {container} have no row")
            return len(orphans)
        if orphans:
            _log.warning("%d uploads to dataset %s were not acknowledged: removed", len(orphans), container)
            await self._files.remove(orphans)
        return 0

    async def _count_damaged(self) -> None:
        self.damaged = await self._ledger.read(rows.damaged)
        self._damaged.set(self.damaged)

    def _find(self, finding: str) -> None:
        _log.error("%s", finding)
        self.findings.append(finding)

    def _now(self) -> int:
        return int(self._clock() * 1000)
