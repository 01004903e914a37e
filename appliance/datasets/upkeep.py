"""What the store does by itself: finish what a stop interrupted, and prove every image again and again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Self
from uuid import UUID

from prometheus_client import Counter, Gauge

from appliance.accounts.customers import CustomerId
from appliance.accounts.forward import note_correction
from appliance.background import end_tasks
from appliance.datasets import rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.deletions import Deletions
from appliance.datasets.files import SealedFiles
from appliance.datasets.leaps import UNKNOWN, Belief, Leaps
from appliance.datasets.records import Image
from appliance.datasets.store import Store
from appliance.datasets.witness import Record
from appliance.errors import NotFound, SealBroken, StorageFailed, VolumeFull, VolumeOffline
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.vault import Container, Name
from appliance.volume import Space, is_lack

_AT_ONCE = 500
_NAMED_AT_ONCE = 1000
_READ_AT_ONCE = 1 << 20
_IDLE_SECONDS = 600.0
_SHORT_SECONDS = 60.0  # while something waits for room: what somebody removes on the volume brings it
_NOTED_EVERY = 60.0  # seconds
_LOOK_SECONDS = 2.0  # a clock that is set while nobody asks is seen by then, before a kill or a power cut
# A twentieth of the time: a terabyte in 30 days needs 8 MB/s of it.
_SCRUB_SECONDS, _REST_SECONDS = 1.0, 19.0

_log = logging.getLogger(__name__)


class Upkeep:
    """Entering finishes deletions and removes uploads that were never acknowledged.

    Those may be images whose rows were lost where the ledger is older than the files, or is `contradicted`
    by the log that was published of it: then they are kept. `findings` are for the person who runs the
    appliance: what no restart repairs. `leaps` knows the time that retention goes by, from entering on.
    """

    leaps: Leaps

    def __init__(
        self,
        ledger: Ledger,
        datasets: Datasets,
        files: SealedFiles,
        deletions: Deletions,
        space: Space,
        *,
        scrub_days: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        registry: Registry,
        contradicted: bool = False,
    ) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._files = files
        self._deletions = deletions
        self._space = space
        self._contradicted = contradicted
        self._doubt_changed = asyncio.Event()
        self._scrub_ms = int(scrub_days * 86_400_000)
        self._clock = clock
        self._monotonic = monotonic
        self._refused: set[int] = set()  # keys of images that the disk has refused at this scrub
        self._refused_before: set[int] = set()
        self.findings: list[str] = []
        self.damaged = 0
        """How many stored images are known not to be what was sealed."""
        self._proven = Counter("appliance_store_scrubbed_bytes", "Bytes proven by scrubs", registry=registry)
        self._backlog = Gauge(
            "appliance_store_images_scrub_due", "Images whose scrub is due", registry=registry
        )
        self._damaged = Gauge(
            "appliance_store_images_damaged", "Images known to be damaged", registry=registry
        )
        self._ahead = Gauge(
            "appliance_store_clock_doubted_seconds",
            "By how much the clock is ahead of the time that retention goes by; 0 while it is believed",
            registry=registry,
        )

    async def __aenter__(self) -> Self:
        record = await self._recall()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(self._doubt_changed.set)

        self.leaps = Leaps(record.belief, self._clock, self._monotonic, wake)
        self._noted = UNKNOWN
        self._files.note(acknowledged=record.acknowledged, doubted=record.doubted)
        await self._note_time()
        await asyncio.to_thread(self._space.before_deletion)
        await self._deletions.resume()
        await self._sweep(record)
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
            self._files.note(belief=self.leaps.belief())
            await self._files.witness()

    @asynccontextmanager
    async def at_leisure(self, store: Store) -> AsyncIterator[None]:
        """Within the block what is past its retention goes, and the rest is scrubbed now and then."""
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._watch_clock(), name="clock"),
            loop.create_task(self._work_forever(store), name="upkeep"),
        ]
        try:
            yield
        finally:
            await end_tasks(*tasks)

    def shortage(self) -> str | None:
        """What a person has to know while the volume is full and its ballast is spent."""
        return self._space.shortage()

    def unfinished(self) -> str | None:
        """What a person has to know while deletions wait to be tried again."""
        return self._deletions.unfinished()

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
                with suppress(VolumeFull):  # the room went to somebody else meanwhile
                    await asyncio.to_thread(self._space.restore_ballast)
                await self._deletions.finish_rest()
                if not looked_again:
                    await self.look_again()
                    looked_again = True
                while await store.expire():
                    pass
                pause = await self.scrub(_SCRUB_SECONDS)
                await self._count_damaged()
            except (StorageFailed, VolumeFull):  # of the ledger or the volume, which say so themselves
                pause = _IDLE_SECONDS
            except Exception:  # noqa: BLE001 - else nothing would be deleted or proven any more, unseen
                _log.exception("the upkeep of stored images failed, and goes on later")
                pause = _IDLE_SECONDS
            if self._space.shortage() is not None or self._deletions.unfinished() is not None:
                pause = min(pause, _SHORT_SECONDS)
            await asyncio.sleep(max(pause, _REST_SECONDS))

    async def _watch_clock(self) -> None:
        """Apart from the rest, which may take its time: until a doubt is durable, a crash forgets it."""
        while True:
            self._doubt_changed.clear()
            try:
                await self._note_time()
            except (StorageFailed, VolumeFull):  # of the ledger or the volume, which say so themselves
                pass
            except Exception:  # noqa: BLE001 - else no clock would be believed any more, unseen
                _log.exception("the time that is believed could not be noted, and is tried again")
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._doubt_changed.wait()

    async def _note_time(self) -> None:
        """A doubt is durable at once, on a full volume as soon as it has room: no restart ends it."""
        if (correction := self.leaps.correction()) is not None:
            with suppress(VolumeFull):
                # The disk knows that the day is over first: a start after a crash then makes the correction
                # again, in place of this one, before anything is stored.
                self._files.note(belief=self.leaps.belief())
                await self._files.witness()
                await self._ledger.write(partial(note_correction, **asdict(correction)))
                self.leaps.correct(correction)
        belief, noted = self.leaps.belief(), self._noted
        self._ahead.set(self.leaps.ahead())
        known = (belief.until, belief.leapt, belief.leapt_at) == (noted.until, noted.leapt, noted.leapt_at)
        if known and belief.time - noted.time < _NOTED_EVERY:
            return
        with suppress(VolumeFull):
            self._files.note(belief=belief)
            await self._files.witness()
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

    async def _recall(self) -> Record:
        """What the last run left on the volume; where that is lost, what keeps everything."""
        record = await asyncio.to_thread(self._files.witnessed)
        if not await self._ledger.read(rows.ran_before):  # nothing rests that a wrong clock could make old
            return replace(record or Record(), belief=Belief(self._clock(), self._clock()))
        if record is None:
            self._find(
                "images/witness, which tells how far the ledger had come, is lost or damaged, and is written"
                " anew: whether this ledger is the newest is not known. Files without a row are kept, see the"
                " README. If it is, and no such files are told of, nothing has to be done"
            )
            return Record(await self._ledger.read(rows.last_entry), doubted=True)
        return record

    async def _sweep(self, record: Record) -> None:
        """Remove files that no row speaks of: uploads that were never acknowledged.

        Unless a ledger older than the files is beside them, or ever was: then they may be images whose rows
        were lost with it, however far it has come since.
        """
        reached = await self._ledger.read(rows.last_entry)
        doubted, older = record.doubted, reached < record.acknowledged
        if older:
            self._find(
                f"the ledger ends at audit entry {reached}, images were acknowledged at entry"
                f" {record.acknowledged}: it is older than the sealed files beside it. Files without a row"
                " are kept: restore the ledger that belongs to them"
            )
        elif self._contradicted:
            older = True
            self._find(
                "the ledger does not go on from the audit log that was published (STATE/audit; `audit.log`"
                " tells where): it may be older than the sealed files beside it. Files without a row are"
                " kept: restore the newest ledger; if this is it, as after a restore, do as `audit.log` says"
            )
        if older:
            self._files.note(doubted=True)
            await self._files.witness()
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
            self._files.note(doubted=False)
            await self._files.witness()

    async def _sweep_container(
        self, container: UUID, number: int, customer: CustomerId, *, keep: bool
    ) -> int:
        """How many files without a row were kept."""
        present = await asyncio.to_thread(self._files.objects, container)
        living = await self._ledger.read(partial(rows.living_ids, dataset=number))
        orphans = [Name(UUID(customer), container, found) for found in present if str(found) not in living]
        if orphans and keep:
            self._find(
                f"{len(orphans)} sealed files of dataset {container} have no row: restore the ledger that"
                " belongs to them, or, if there is none, move them out of the folder; the log names them"
            )
            for name in orphans[:_NAMED_AT_ONCE]:
                _log.warning("no row: images/%s/%s", name.container.hex, name.object.hex)
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
