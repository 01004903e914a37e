"""What else is written about images: who found their annotations right, and points."""

import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.datasets import ids, rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.pages import Cut, Page, Query, cut
from appliance.datasets.records import Dataset, ImageId, Point, Verification
from appliance.datasets.words import MAX_META_DATA, PointWords, checked_name, opened, sealed
from appliance.errors import CapacityExceeded, InvalidInput, TooLarge
from appliance.ledger import Connection, Ledger

MAX_VERIFICATIONS = 100  # of an image: each number of them is one more range for a list to walk
MAX_POINTS = 100  # of an image
MAX_LOOSE_POINTS = 10_000  # of a dataset as a whole
MAX_USER = 200  # bytes of JSON, the quotes of a text included

_POINT = (
    f"SELECT points.key, points.id, images.id, points.words, points.created_at, {rows.PLACE} FROM points"  # noqa: S608
    " JOIN datasets ON datasets.number = points.dataset LEFT JOIN images ON images.key = points.image"
    " WHERE datasets.erased_at IS NULL"
)
_VERIFICATION = (
    f"SELECT verifications.id, images.id, verifications.words, verifications.created_at, {rows.PLACE}"  # noqa: S608
    " FROM verifications JOIN images ON images.key = verifications.image"
    " JOIN datasets ON datasets.number = images.dataset"
    " WHERE images.deleted_at IS NULL AND datasets.erased_at IS NULL"
)


class Notes:
    """Verifications and points of all datasets. Raises NotFound for the ids of what is another customer's."""

    def __init__(self, ledger: Ledger, datasets: Datasets, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._clock = clock

    async def verify(self, actor: Actor, customer: CustomerId, image: str, user: str | int) -> Verification:
        """Note that a user has found the annotations of an image right; once, however often it is said.

        Raises NotFound, InvalidInput for a user, CapacityExceeded for more than 100 of an image, VolumeFull.
        """
        named = msgspec.json.encode(user)
        if not 3 <= len(named) <= MAX_USER and not isinstance(user, int):
            raise InvalidInput(f"user: a number, or a text of 1 to {MAX_USER - 2} bytes (UTF-8), is expected")
        identity, now = str(uuid.uuid4()), self._now()

        def act(connection: Connection) -> Verification:
            key = ids.image(connection, customer, image)
            place = rows.described(connection, [key])[key][1]
            keys = self._datasets.keys_at(place)
            known = keys.mac("verification", image.encode() + named)
            found = connection.execute(
                f"{_VERIFICATION} AND verifications.image = ? AND verifications.user = ?", (key, known)
            ).fetchall()
            if found:
                return self._verification(found[0])
            count = connection.execute("SELECT count(*) FROM verifications WHERE image = ?", (key,)).get
            if count >= MAX_VERIFICATIONS:
                raise CapacityExceeded(f"an image has at most {MAX_VERIFICATIONS} verifications")
            connection.execute(
                "INSERT INTO verifications (id, image, user, words, created_at) VALUES (?, ?, ?, ?, ?)",
                (identity, key, known, sealed(keys, "verification", identity, user), now),
            )
            details: dict[str, object] = {"dataset": place.dataset, "image": image}
            record(connection, now, actor, Event.VERIFICATION_ADD, customer, identity, details)
            return Verification(identity, ImageId(image), user, now)

        return await self._ledger.write(act)

    async def verifications(self, customer: CustomerId, image: str) -> list[Verification]:
        """All of an image, oldest first. Raises NotFound."""

        def query(connection: Connection) -> list[Verification]:
            key = ids.image(connection, customer, image)
            found = connection.execute(
                f"{_VERIFICATION} AND verifications.image = ? ORDER BY verifications.key", (key,)
            )
            return [self._verification(row) for row in found]

        return await self._ledger.read(query)

    async def unverify(self, actor: Actor, customer: CustomerId, verification: str) -> None:
        """Take a verification back. Raises NotFound."""
        now = self._now()

        def act(connection: Connection) -> None:
            found = self._verification(
                ids.only(
                    connection.execute(
                        f"{_VERIFICATION} AND verifications.id = ? AND datasets.customer = ?",
                        (verification, customer),
                    ).fetchall(),
                    "verification",
                )
            )
            connection.execute("DELETE FROM verifications WHERE id = ?", (verification,))
            details: dict[str, object] = {"image": found.image}
            record(connection, now, actor, Event.VERIFICATION_DELETE, customer, verification, details)

        await self._ledger.write(act)
        while not await self._ledger.empty_log():  # somebody reads: a moment only
            pass

    async def add_point(
        self, actor: Actor, dataset: Dataset, image: str | None, name: str | None, data: object
    ) -> Point:
        """A new point of an image, or of the dataset as a whole: any JSON.

        Raises NotFound, InvalidInput, TooLarge for more than 64 KiB, CapacityExceeded for more than 100
        points of an image or 10,000 of a dataset without one, VolumeFull.
        """
        identity, now = str(uuid.uuid4()), self._now()
        words = PointWords(None if name is None else checked_name(name), data)
        if len(msgspec.json.encode(words)) > MAX_META_DATA:
            raise TooLarge(f"data: at most {MAX_META_DATA} bytes of JSON")
        blob = sealed(self._datasets.keys(dataset), "point", identity, words)

        def act(connection: Connection) -> Point:
            key = None
            if image is not None:
                key = ids.image(connection, dataset.customer, image)
                ids.check_together(dataset.number, key, "image", "point")
            _check_room(connection, dataset.number, key)
            connection.execute(
                "INSERT INTO points (key, id, dataset, image, words, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                (rows.next_key(connection, dataset.number), identity, dataset.number, key, blob, now),
            )
            details: dict[str, object] = {"dataset": dataset.id, "image": image}
            record(connection, now, actor, Event.POINT_ADD, dataset.customer, identity, details)
            found = connection.execute(f"{_POINT} AND points.id = ?", (identity,)).fetchall()
            return self._point(found[0])

        return await self._ledger.write(act)

    async def points(self, dataset: Dataset, wanted: Cut, image: str | None = None) -> Page[Point]:
        """Points of an image, or all of a dataset, in the order in which they were made. Raises NotFound."""

        def query(connection: Connection) -> Page[Point]:
            points = Query("points", "key")
            if image is not None:
                points.where("image = ?", ids.image(connection, dataset.customer, image))
            keys = points.keys(connection, dataset.number, wanted)
            found = connection.execute(
                f"{_POINT} AND points.key IN ({rows.marks(keys)}) ORDER BY points.key", keys
            )
            listed = [self._point(row) for row in found]
            return cut(listed, keys, wanted, points.count(connection, dataset.number))

        return await self._ledger.read(query)

    async def delete_point(self, actor: Actor, customer: CustomerId, point: str) -> None:
        """Delete a point for good. Raises NotFound."""
        now = self._now()

        def act(connection: Connection) -> None:
            found = self._point(
                ids.only(
                    connection.execute(
                        f"{_POINT} AND points.id = ? AND datasets.customer = ?", (point, customer)
                    ).fetchall(),
                    "point",
                )
            )
            connection.execute("DELETE FROM points WHERE key = ?", (found.key,))
            details: dict[str, object] = {"dataset": found.place.dataset, "image": found.image}
            record(connection, now, actor, Event.POINT_DELETE, customer, point, details)

        await self._ledger.write(act)
        while not await self._ledger.empty_log():  # somebody reads: a moment only
            pass

    def _verification(self, row: tuple[Any, ...]) -> Verification:
        identity, image, blob, created_at, *rest = row
        keys = self._datasets.keys_at(rows.place(tuple(rest)))
        user: str | int = opened(keys, "verification", identity, blob, str | int)  # type: ignore[arg-type]
        return Verification(identity, image, user, created_at)

    def _point(self, row: tuple[Any, ...]) -> Point:
        key, identity, image, blob, created_at, *rest = row
        place = rows.place(tuple(rest))
        words = opened(self._datasets.keys_at(place), "point", identity, blob, PointWords)
        return Point(key, identity, place, image, words.name, words.data, created_at)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _check_room(connection: Connection, dataset: int, image: int | None) -> None:
    if image is not None:
        count = connection.execute("SELECT count(*) FROM points WHERE image = ?", (image,)).get
        if count >= MAX_POINTS:
            raise CapacityExceeded(f"an image has at most {MAX_POINTS} points")
        return
    count = connection.execute(
        "SELECT count(*) FROM points WHERE dataset = ? AND image IS NULL", (dataset,)
    ).get
    if count >= MAX_LOOSE_POINTS:
        raise CapacityExceeded(f"a dataset has at most {MAX_LOOSE_POINTS} points without an image")
