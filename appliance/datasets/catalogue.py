"""The datasets of all customers: made, changed, and erased by destroying their keys."""

import asyncio
import contextlib
import logging
import math
import unicodedata
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Self
from uuid import UUID

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.certificates import Certificates, Erased
from appliance.accounts.customers import CustomerId, check_living
from appliance.datasets import rows
from appliance.datasets.files import SealedFiles
from appliance.datasets.records import MAX_NAME, Dataset, DatasetId, Image, Place, Visibility
from appliance.errors import (
    ApplianceError,
    CapacityExceeded,
    Conflict,
    InvalidInput,
    NotFound,
    SealBroken,
    VolumeOffline,
    may_be_kept,
)
from appliance.ledger import Connection, Ledger
from appliance.vault import Container, Keyring
from appliance.volume import Space

MAX_DATASETS = 10_000
"""Of one customer: each has a key in the keyring."""
_SEEN_BY: tuple[Visibility, ...] = ("restricted", "link", "public")  # by ever more
_COLUMNS = (
    "number, id, customer, name, visibility, keep_metadata, retention_days, epoch, created_at, images, bytes"
)
_INSERT = (
    "INSERT INTO datasets (id, customer, name, visibility, keep_metadata, retention_days, created_at)"  # noqa: S608
    f" VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING {_COLUMNS}"
)
_CHANGE = (
    "UPDATE datasets SET epoch = epoch + (coalesce(?1, visibility) <> visibility),"  # noqa: S608
    " visibility = coalesce(?1, visibility),"
    " retention_days = iif(?4, NULL, coalesce(?2, retention_days))"
    f" WHERE number = ?3 AND erased_at IS NULL RETURNING {_COLUMNS}"
)
_UNREADABLE = "?"
_DATASETS_AT_ONCE = 100
_ROWS_AT_ONCE = 100  # an image goes with its labels and objects
_SYSTEM = Actor("system", "datasets")

_log = logging.getLogger(__name__)


class Datasets:
    """The catalogue of datasets. Entering goes on with erasures that a stop interrupted."""

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        files: SealedFiles,
        *,
        space: Space,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._files = files
        self._space = space
        self._clock = clock
        self.certificates = Certificates(ledger, keyring.service)
        """Of what is erased here, and of images."""
        self._making = asyncio.Lock()
        self._erasing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        for dataset in await self._ledger.read(_erased):
            self._start_erasing(dataset)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._erasing, return_exceptions=True)

    def keys(self, dataset: Dataset) -> Container:
        """What the dataset and its images are sealed with. Raises NotFound once it is erased."""
        return self._keyring.container(UUID(dataset.customer), UUID(dataset.id))

    def keys_at(self, place: Place | Image) -> Container:
        """As `keys`, by what a row tells of its dataset."""
        return self._keyring.container(UUID(place.customer), UUID(place.dataset))

    async def check_room(self) -> None:
        """To be called before each part of what adds many rows. Raises VolumeFull, VolumeOffline."""
        await asyncio.to_thread(self._space.check_some)

    async def add(
        self,
        actor: Actor,
        customer: CustomerId,
        name: str,
        *,
        visibility: Visibility = "link",
        keep_metadata: bool = False,
        retention_days: int | None = None,
    ) -> Dataset:
        """A new dataset with a key of its own, durably and audited.

        Raises InvalidInput for a name or a retention, Conflict when the customer has one of this name,
        CapacityExceeded when it has MAX_DATASETS.
        """
        cleaned = _checked_name(name)
        _check_retention(retention_days)
        async with self._making:
            known = await self.list(customer)
            if any(dataset.name == cleaned for dataset in known):
                raise Conflict("a dataset of this name exists already")
            if len(known) >= MAX_DATASETS:
                raise CapacityExceeded(f"a customer has at most {MAX_DATASETS} datasets: erase some")
            return await self._make(actor, customer, cleaned, visibility, keep_metadata, retention_days)

    async def default(self, customer: CustomerId) -> Dataset:
        """The customer's default dataset, made when it is first asked for."""
        async with self._making:
            found = await self._ledger.read(lambda connection: _default(connection, customer))
            if found is not None:
                return self._opened(found)
            return await self._make(_SYSTEM, customer)

    async def usage(self, customer: CustomerId) -> tuple[int, int]:
        """How many images a customer has in all datasets, and their bytes without thumbnails."""
        return await self._ledger.read(lambda connection: rows.usage(connection, customer))

    async def list(self, customer: CustomerId) -> list[Dataset]:
        """A customer's datasets, oldest first; the default one only once it was made.

        Without those whose key is gone, see `keyless`: nothing of them can be opened, their name included.
        """
        found = await self._ledger.read(lambda connection: _all(connection, customer))
        listed = []
        for row in found:
            with contextlib.suppress(NotFound):
                listed.append(self._opened(row))
        return listed

    async def keyless(self) -> Sequence[DatasetId]:
        """Datasets that were not erased and have no key: keyring and ledger are not of the same time."""
        held = {str(container) for _, container, _ in self._keyring.containers()}
        living = await self._ledger.read(_living)
        return [identity for identity in living if identity not in held]

    async def nameless(self) -> Sequence[DatasetId]:
        """Datasets whose names are damaged in the ledger: they are called ? until they are erased."""
        found = []
        for row in await self._ledger.read(_all_living):
            with contextlib.suppress(NotFound):
                if (dataset := self._opened(row)).name == _UNREADABLE:
                    found.append(dataset.id)
        return found

    async def get(self, customer: CustomerId, dataset: str) -> Dataset:
        """The dataset of this id; the default one by the customer's id and by the word Default as well.

        Raises NotFound when there is none, or it is another customer's.
        """
        if dataset in {customer, "Default"}:
            return await self.default(customer)
        found = await self._ledger.read(lambda connection: _one(connection, customer, dataset))
        if found is None:
            raise NotFound("no such dataset")
        return self._opened(found)

    async def owner(self, identity: str) -> CustomerId:
        """Whose dataset this id names; a customer's own id names its default one. Raises NotFound."""
        found = await self._ledger.read(lambda connection: _owner(connection, identity))
        if found is None:
            raise NotFound("no such dataset")
        return found

    async def change(
        self,
        actor: Actor,
        dataset: Dataset,
        *,
        visibility: Visibility | None = None,
        retention_days: int | None = None,
        forever: bool = False,
    ) -> Dataset:
        """Set what is given; `forever` takes the retention back.

        Another visibility ends all links that were given out. Raises VolumeFull where there is no room for
        more, unless fewer see the images then, or for a shorter time.
        """
        _check_retention(retention_days)
        if not _narrows(dataset, visibility, retention_days, forever=forever):
            await self.check_room()

        def act(connection: Connection) -> Dataset:
            row = connection.execute(
                _CHANGE, (visibility, retention_days, dataset.number, forever)
            ).fetchone()
            if row is None:
                raise NotFound("no such dataset")
            changed = self._opened(row)
            details: dict[str, object] = {
                "visibility": changed.visibility,
                "retention_days": changed.retention_days,
            }
            record(
                connection, self._now(), actor, Event.DATASET_CHANGE, dataset.customer, dataset.id, details
            )
            return changed

        return await self._ledger.write(act)

    async def end_links(self, actor: Actor, dataset: Dataset) -> None:
        """Every link that was given out to an image of the dataset is dead when this returns.

        Raises VolumeFull where there is no room for more: `restricted` ends them then.
        """
        await self.check_room()

        def act(connection: Connection) -> None:
            connection.execute("UPDATE datasets SET epoch = epoch + 1 WHERE number = ?", (dataset.number,))
            record(connection, self._now(), actor, Event.DATASET_CHANGE, dataset.customer, dataset.id)

        await self._ledger.write(act)

    async def erase(self, actor: Actor, dataset: Dataset) -> None:
        """End a dataset for good: when this returns its keys are destroyed, in memory and in the keyring.

        The files and rows, which nothing opens any more, go soon after, also when a stop comes between; then
        a certificate tells of it.
        """
        await self.make_room()
        now = self._now()

        def act(connection: Connection) -> None:
            connection.execute(
                "UPDATE datasets SET erased_at = ? WHERE number = ? AND erased_at IS NULL",
                (now, dataset.number),
            )
            if connection.changes():
                details: dict[str, object] = {"images": dataset.images}
                record(connection, now, actor, Event.DATASET_ERASE, dataset.customer, dataset.id, details)

        await self._ledger.write(act)
        await self._end_keys(dataset.number, dataset.id, dataset.customer)

    def end_all(self, connection: Connection, actor: Actor, customer: CustomerId) -> None:
        """Within an act of `Ledger.write`: every dataset of a customer is being erased from then on.

        `go_on` follows; where a stop comes before it, or between, the next start goes on.
        """
        while self._end_some(connection, actor, customer):
            pass

    async def go_on(self, customer: CustomerId) -> None:
        """As `erase`, for all datasets that the customer has ended: their keys are destroyed on return."""
        for dataset in await self._ledger.read(lambda connection: _erased(connection, customer)):
            await self._end_keys(*dataset)

    async def erase_all(self, actor: Actor, customer: CustomerId) -> None:
        """Erase every dataset of a customer whose erasure has begun; when this returns nothing is left.

        Also those whose erasure had begun before. Raises StorageFailed, VolumeOffline, VolumeFull: what is
        left goes with the next call.
        """
        await self.make_room()
        while await self._ledger.write(lambda connection: self._end_some(connection, actor, customer)):
            pass
        for dataset in await self._ledger.read(lambda connection: _erased(connection, customer)):
            await self._bury(*dataset)

    async def make_room(self) -> None:
        """Before anything is deleted: a full volume gives back what it keeps for that."""
        with contextlib.suppress(VolumeOffline):  # a key is destroyed without the volume too
            await asyncio.to_thread(self._space.before_deletion)

    async def _make(  # noqa: PLR0917 - the columns of the row, in their order
        self,
        actor: Actor,
        customer: CustomerId,
        name: str | None = None,
        visibility: Visibility = "link",
        keep_metadata: bool = False,
        retention_days: int | None = None,
    ) -> Dataset:
        """The key first: a row without one would be a dataset that nothing can be put into."""
        owner, identity, now = UUID(customer), uuid.uuid4(), self._now()
        keys = await asyncio.to_thread(self._keyring.add, owner, identity, "dataset")
        dataset = DatasetId(str(identity))

        def act(connection: Connection) -> Dataset:
            sealed = None if name is None else keys.seal("name", name.encode(), dataset.encode())
            row = connection.execute(
                _INSERT, (dataset, customer, sealed, visibility, keep_metadata, retention_days, now)
            ).fetchone()
            assert row is not None
            check_living(connection, customer)
            details: dict[str, object] = {"visibility": visibility}
            record(connection, now, actor, Event.DATASET_ADD, customer, dataset, details)
            return self._opened(row)

        try:
            return await self._ledger.write(act)
        except ApplianceError as error:
            if not may_be_kept(error):  # else the row may be there, and is nothing without its key
                await asyncio.to_thread(self._keyring.destroy, owner, identity)
            raise

    def _opened(self, row: tuple[Any, ...]) -> Dataset:
        number, identity, customer, sealed, visibility, keep, *rest = row
        name = None
        if sealed is not None:
            keys = self._keyring.container(UUID(customer), UUID(identity))
            try:
                name = keys.unseal("name", sealed, identity.encode()).decode()
            except SealBroken:  # a finding of the start; what is in it is whole, and can be erased
                name = _UNREADABLE
        return Dataset(number, identity, customer, name, visibility, bool(keep), *rest)

    def _end_some(self, connection: Connection, actor: Actor, customer: CustomerId) -> bool:
        """Take some datasets of a customer out of sight; whether there were any."""
        now = self._now()
        found: list[Any] = connection.execute(
            "SELECT id, images FROM datasets WHERE customer = ? AND erased_at IS NULL LIMIT ?",
            (customer, _DATASETS_AT_ONCE),
        ).fetchall()
        for identity, images in found:
            connection.execute("UPDATE datasets SET erased_at = ? WHERE id = ?", (now, identity))
            details: dict[str, object] = {"images": images}
            record(connection, now, actor, Event.DATASET_ERASE, customer, identity, details)
        return bool(found)

    async def _end_keys(self, number: int, identity: DatasetId, customer: CustomerId) -> None:
        await asyncio.to_thread(self._keyring.destroy, UUID(customer), UUID(identity))
        self._start_erasing((number, identity, customer))

    def _start_erasing(self, dataset: tuple[int, DatasetId, CustomerId]) -> None:
        task = asyncio.get_running_loop().create_task(self._finish_erasing(*dataset))
        self._erasing.add(task)
        task.add_done_callback(self._erasing.discard)

    async def _finish_erasing(self, number: int, identity: DatasetId, customer: CustomerId) -> None:
        try:
            await self._bury(number, identity, customer)
        except ApplianceError as error:
            _log.error("the rest of the erased dataset %s goes after the next start: %s", identity, error)

    async def _bury(self, number: int, identity: DatasetId, customer: CustomerId) -> None:
        await asyncio.to_thread(self._keyring.destroy, UUID(customer), UUID(identity))
        await self._files.remove_container(UUID(identity))

        def act(connection: Connection, most: int) -> bool:
            more, images, deleted = _bury_some(connection, number, identity, self._now(), most)
            if deleted:
                each = Erased("image", customer, identity, ids=deleted)
                self.certificates.add(connection, self._now(), each)
            if images is not None:
                erased = Erased("dataset", customer, identity, {"images": images}, keys=(identity,))
                self.certificates.add(connection, self._now(), erased)
            return more

        await self._ledger.write_on(act, _ROWS_AT_ONCE)
        while not await self._ledger.empty_log():
            pass

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _checked_name(name: str) -> str:
    cleaned = unicodedata.normalize("NFC", name).strip()
    reserved = {"default", _UNREADABLE}
    if not 1 <= len(cleaned) <= MAX_NAME or not cleaned.isprintable() or cleaned.lower() in reserved:
        raise InvalidInput(f'name: 1 to {MAX_NAME} printable characters, and neither "Default" nor "?"')
    return cleaned


def _check_retention(days: int | None) -> None:
    if days is not None and not 1 <= days <= 36500:
        raise InvalidInput("retention_days: 1 to 36500")


def _narrows(
    dataset: Dataset, visibility: Visibility | None, retention_days: int | None, *, forever: bool
) -> bool:
    """Whether a change takes something from who may see the images or for how long, and adds nothing."""
    if visibility is not None and _SEEN_BY.index(visibility) >= _SEEN_BY.index(dataset.visibility):
        return False
    shorter = retention_days is None or retention_days < (dataset.retention_days or math.inf)
    return shorter and not forever and (visibility is not None or retention_days is not None)


def _all(connection: Connection, customer: CustomerId) -> list[tuple[Any, ...]]:
    return connection.execute(
        f"SELECT {_COLUMNS} FROM datasets WHERE customer = ? AND erased_at IS NULL ORDER BY number",  # noqa: S608
        (customer,),
    ).fetchall()


def _all_living(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT {_COLUMNS} FROM datasets WHERE erased_at IS NULL").fetchall()  # noqa: S608


def _living(connection: Connection) -> list[DatasetId]:
    found = connection.execute(
        "SELECT datasets.id FROM datasets JOIN customers ON customers.id = customer"
        " WHERE datasets.erased_at IS NULL AND customers.erased_at IS NULL ORDER BY number"
    )
    return [DatasetId(row[0]) for row in found]


def _one(connection: Connection, customer: CustomerId, dataset: str) -> tuple[Any, ...] | None:
    return connection.execute(
        f"SELECT {_COLUMNS} FROM datasets WHERE id = ? AND customer = ? AND erased_at IS NULL",  # noqa: S608
        (dataset, customer),
    ).fetchone()


def _default(connection: Connection, customer: CustomerId) -> tuple[Any, ...] | None:
    return connection.execute(
        f"SELECT {_COLUMNS} FROM datasets WHERE customer = ? AND name IS NULL AND erased_at IS NULL",  # noqa: S608
        (customer,),
    ).fetchone()


def _owner(connection: Connection, identity: str) -> CustomerId | None:
    found: str | None = connection.execute(
        "SELECT customer FROM datasets WHERE id = ?1 AND erased_at IS NULL"
        " UNION ALL SELECT id FROM customers WHERE id = ?1",
        (identity,),
    ).get
    return None if found is None else CustomerId(found)


def _erased(
    connection: Connection, customer: CustomerId | None = None
) -> list[tuple[int, DatasetId, CustomerId]]:
    found = connection.execute(
        "SELECT number, id, customer FROM datasets"
        " WHERE erased_at IS NOT NULL AND (?1 IS NULL OR customer = ?1)",
        (customer,),
    )
    return [(number, DatasetId(identity), CustomerId(customer)) for number, identity, customer in found]


def _bury_some(
    connection: Connection, number: int, identity: DatasetId, now: int, most: int
) -> tuple[bool, int | None, list[str]]:
    """At most so many rows of an erased dataset, and at last its own.

    Whether there are more, with its own how many images it had when it was erased, and the ids of images that
    were being deleted one by one when it was.
    """
    gone: list[Any] = connection.execute(
        "DELETE FROM images WHERE key IN (SELECT key FROM images WHERE dataset = ? LIMIT ?)"
        " RETURNING id, deleted_at",
        (number, most),
    ).fetchall()
    for image, _ in gone:
        rows.bury(connection, image, identity, now)
    if gone:
        return True, None, [image for image, deleted_at in gone if deleted_at is not None]
    for table in ("points", "labels", "tasks"):
        connection.execute(
            f"DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE dataset = ? LIMIT ?)",  # noqa: S608
            (number, most),
        )
        if connection.changes():
            return True, None, []
    images = connection.execute("DELETE FROM datasets WHERE number = ? RETURNING images", (number,)).get
    rows.bury(connection, identity, identity, now)
    return False, images, []
