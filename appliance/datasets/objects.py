"""Objects: boxes on images, each with one detection label, recognition labels and metadata."""

import math
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.datasets import ids, rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.gallery import Gallery
from appliance.datasets.labels import Labels
from appliance.datasets.pages import Cut, Page, Query, cut
from appliance.datasets.records import Box, Dataset, Described, Given, Image, Object
from appliance.datasets.words import ObjectWords, checked_meta_data, opened, opened_meta_data, sealed
from appliance.errors import CapacityExceeded, InvalidInput, NotFound
from appliance.ledger import Connection, Ledger
from appliance.vault import Container

MAX_OBJECTS = 1000  # of an image
MAX_LABELS = 100  # of an object

_SEALED_AT_ONCE = 200

_COLUMNS = "key, id, image, label, words, created_at"


class Objects:
    """The objects of all datasets.

    Raises NotFound for the ids of what is another customer's, and InvalidInput where a label and an image lie
    in different datasets.
    """

    def __init__(
        self,
        ledger: Ledger,
        datasets: Datasets,
        labels: Labels,
        gallery: Gallery,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._labels = labels
        self._gallery = gallery
        self._clock = clock

    async def seal_boxes(self) -> None:
        """Seal the boxes that an older version had in clear; after that they are in no file any more."""
        if not await self._ledger.read(_boxes_in_clear):
            return
        after = -1
        while (last := await self._ledger.write(partial(self._seal_boxes, after=after))) is not None:
            after = last
        while not await self._ledger.empty_log():
            pass

    def _seal_boxes(self, connection: Connection, after: int) -> int | None:
        """Some of them, the last one's key; None when there are none."""
        found: list[tuple[Any, ...]] = connection.execute(
            "SELECT key, id, image, words, xmin, ymin, xmax, ymax FROM clear_boxes"
            " JOIN objects ON objects.key = clear_boxes.object WHERE object > ? ORDER BY object LIMIT ?",
            (after, _SEALED_AT_ONCE),
        ).fetchall()
        images = rows.described(connection, {row[2] for row in found})
        for key, identity, image, blob, *sides in found:
            try:
                keys = self._datasets.keys_at(images[image][1])
            except (KeyError, NotFound):  # it is being deleted, or nothing of it can be opened any more
                continue
            words = words_of(Box(*sides), opened_meta_data(keys, "object", identity, blob))
            connection.execute(
                "UPDATE objects SET words = ? WHERE key = ?", (sealed(keys, "object", identity, words), key)
            )
            connection.execute("DELETE FROM clear_boxes WHERE object = ?", (key,))
        return found[-1][0] if found else None

    async def add(
        self,
        actor: Actor,
        customer: CustomerId,
        image: str,
        *,
        label: str,
        box: Box,
        meta_data: dict[str, object] | None = None,
    ) -> Object:
        """A new object on an image, under a detection label.

        Raises NotFound, InvalidInput for a box that is empty or not within the image, CapacityExceeded for
        more than 1,000 objects on an image, VolumeFull.
        """
        identity, now = str(uuid.uuid4()), self._now()
        words = words_of(box, meta_data or {})

        def act(connection: Connection) -> Object:
            image_key = ids.image(connection, customer, image)
            label_key = ids.label(connection, customer, label, "detection")
            ids.check_together(image_key >> 32, label_key, "label", "image")
            described = self._gallery.described(connection, [image_key])[image_key]
            keys = self._datasets.keys_at(described.place)
            key = insert(connection, keys, described.image, label_key, identity, words, now)
            details: dict[str, object] = {"dataset": described.place.dataset, "image": image, "label": label}
            record(connection, now, actor, Event.OBJECT_ADD, customer, identity, details)
            return self._of_keys(connection, [key])[0]

        return await self._ledger.write(act)

    async def page(
        self,
        dataset: Dataset,
        wanted: Cut,
        *,
        image: str | None = None,
        label: str | None = None,
        labels: Sequence[str] = (),
    ) -> Page[Object]:
        """A dataset's objects in the order in which they were made: of an image, under a detection label,
        with these recognition labels. Raises NotFound.
        """

        def query(connection: Connection) -> Page[Object]:
            customer, objects = dataset.customer, Query("objects", "key")
            known = connection.execute("SELECT objects FROM datasets WHERE number = ?", (dataset.number,)).get
            if image is not None:
                objects.where("image = ?", ids.image(connection, customer, image))
            if label is not None:
                key = ids.label(connection, customer, label, "detection")
                objects.where("label = ?", key)
                known = _objects_of(connection, key)
            if labels:  # the first one's rows are walked, the others looked up
                first, *others = (ids.label(connection, customer, one, "recognition") for one in labels)
                objects = Query(
                    "object_labels JOIN objects ON objects.key = object_labels.object",
                    "object_labels.object",
                    ["object_labels.label = ?", *(f"objects.{one}" for one in objects.conditions)],
                    [first, *objects.values],
                )
                known = _objects_of(connection, first)
                for one in others:
                    objects.where(
                        "EXISTS (SELECT 1 FROM object_labels AS other"
                        " WHERE other.label = ? AND other.object = object_labels.object)",
                        one,
                    )
            keys = objects.keys(connection, dataset.number, wanted)
            works = (image is not None) + (label is not None) + len(labels) > 1
            if image is not None or works:
                known = wanted.counted if works else None
            count = objects.count(connection, dataset.number) if known is None else known
            found = self._of_keys(connection, keys[: wanted.size])
            page = cut(keys, keys, wanted, count)
            return Page(found, count, page.after, works)

        return await self._ledger.read(query)

    async def get(self, customer: CustomerId, identity: str) -> Object:
        """Raises NotFound."""
        return await self._ledger.read(lambda connection: self._one(connection, customer, identity))

    async def change(
        self,
        actor: Actor,
        customer: CustomerId,
        identity: str,
        *,
        image: str | None = None,
        label: str | None = None,
        box: Box | None = None,
        meta_data: dict[str, object] | None = None,
    ) -> Object:
        """Set what is given; `image` can only be the one on which it is.

        Raises NotFound, and InvalidInput and VolumeFull as `add`.
        """
        now = self._now()

        def act(connection: Connection) -> Object:
            found = self._one(connection, customer, identity)
            if image not in {None, found.image.image.id}:
                ids.image(connection, customer, image or "")
                raise InvalidInput("image: an object stays on its image")
            if label is not None:
                key = ids.label(connection, customer, label, "detection")
                ids.check_together(found.place.number, key, "label", "image")
                connection.execute("UPDATE objects SET label = ? WHERE key = ?", (key, found.key))
            if box is not None:
                _check_within(box, found.image.image)
            if box is not None or meta_data is not None:
                words = words_of(box or found.box, found.meta_data if meta_data is None else meta_data)
                blob = sealed(self._datasets.keys_at(found.place), "object", identity, words)
                connection.execute("UPDATE objects SET words = ? WHERE key = ?", (blob, found.key))
            self._record(connection, actor, Event.OBJECT_CHANGE, found, now)
            return self._one(connection, customer, identity)

        return await self._ledger.write(act)

    async def delete(self, actor: Actor, customer: CustomerId, identity: str) -> None:
        """Delete an object for good. Raises NotFound."""
        now = self._now()

        def act(connection: Connection) -> None:
            found = self._one(connection, customer, identity)
            connection.execute("DELETE FROM objects WHERE key = ?", (found.key,))
            self._record(connection, actor, Event.OBJECT_DELETE, found, now)

        await self._ledger.write(act)
        while not await self._ledger.empty_log():  # somebody reads: a moment only
            pass

    async def add_label(
        self, actor: Actor, customer: CustomerId, identity: str, label: str, value: float | None = None
    ) -> Object:
        """Put a recognition label on an object; on one that has it, this value replaces that.

        Raises NotFound, InvalidInput, CapacityExceeded for more than 100 labels.
        """

        def act(connection: Connection, found: Object, key: int) -> None:
            put_on(connection, found.key, key, value)

        return await self._with_label(actor, customer, identity, label, act)

    async def change_value(
        self, actor: Actor, customer: CustomerId, identity: str, label: str, value: float | None
    ) -> Object:
        """Change the value of a label that the object has. Raises NotFound also when it has it not."""

        def act(connection: Connection, found: Object, key: int) -> None:
            connection.execute(
                "UPDATE object_labels SET value = ? WHERE label = ? AND object = ?", (value, key, found.key)
            )
            if connection.changes() == 0:
                raise NotFound("the object has no such label")

        return await self._with_label(actor, customer, identity, label, act)

    async def remove_label(self, actor: Actor, customer: CustomerId, identity: str, label: str) -> Object:
        """Take a recognition label off an object; twice is as good as once. Raises NotFound."""

        def act(connection: Connection, found: Object, key: int) -> None:
            connection.execute("DELETE FROM object_labels WHERE label = ? AND object = ?", (key, found.key))

        return await self._with_label(actor, customer, identity, label, act)

    async def _with_label(
        self,
        actor: Actor,
        customer: CustomerId,
        identity: str,
        label: str,
        change: Callable[[Connection, Object, int], None],
    ) -> Object:
        now = self._now()

        def act(connection: Connection) -> Object:
            found = self._one(connection, customer, identity)
            key = ids.label(connection, customer, label, "recognition")
            ids.check_together(found.place.number, key, "label", "object")
            change(connection, found, key)
            self._record(connection, actor, Event.OBJECT_CHANGE, found, now, label=label)
            return self._one(connection, customer, identity)

        return await self._ledger.write(act)

    def _one(self, connection: Connection, customer: CustomerId, identity: str) -> Object:
        return ids.only(self._of_keys(connection, [ids.object_(connection, customer, identity)]), "object")

    def _of_keys(self, connection: Connection, keys: Sequence[int]) -> list[Object]:
        """Objects by their keys, in ascending order, with all that belongs to them."""
        found: list[tuple[Any, ...]] = connection.execute(
            f"SELECT {_COLUMNS} FROM objects WHERE key IN ({rows.marks(keys)}) ORDER BY key",  # noqa: S608
            keys,
        ).fetchall()
        given: list[tuple[Any, ...]] = connection.execute(
            f"SELECT object, label, value FROM object_labels WHERE object IN ({rows.marks(keys)})",  # noqa: S608
            keys,
        ).fetchall()
        wanted = {row[3] for row in found} | {label for _, label, _ in given}
        labels = {label.key: label for label in self._labels.of_keys(connection, sorted(wanted))}
        images = self._gallery.described(connection, {row[2] for row in found})
        values: dict[int, list[Given]] = {key: [] for key in keys}
        for key, label, value in sorted(given, key=lambda one: one[:2]):
            if label in labels:
                values[key].append(Given(labels[label], value))
        return [
            self._object(row, images[row[2]], labels, values[row[0]])
            for row in found
            if row[2] in images and row[3] in labels
        ]

    def _object(
        self, row: tuple[Any, ...], image: Described, labels: dict[int, Any], given: list[Given]
    ) -> Object:
        key, identity, _, label, blob, created_at = row
        words = opened(self._datasets.keys_at(image.place), "object", identity, blob, ObjectWords)
        return Object(
            key,
            identity,
            image.place,
            image,
            labels[label],
            Box(*words.box),
            created_at,
            tuple(given),
            words.meta_data,
        )

    def _record(
        self, connection: Connection, actor: Actor, event: Event, subject: Object, now: int, **more: object
    ) -> None:
        image = subject.image.image
        details = {"dataset": image.dataset, "image": image.id, **more}
        record(connection, now, actor, event, image.customer, subject.id, details)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _boxes_in_clear(connection: Connection) -> bool:
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM clear_boxes)").get)


def words_of(box: Box, meta_data: dict[str, object]) -> ObjectWords:
    """Raises as `checked_meta_data`."""
    checked_meta_data(meta_data)
    return ObjectWords((box.xmin, box.ymin, box.xmax, box.ymax), meta_data)


def insert(  # noqa: PLR0917 - the columns of the row
    connection: Connection,
    keys: Container,
    image: Image,
    label: int,
    identity: str,
    words: ObjectWords,
    now: int,
) -> int:
    """The key of a new object on an image, under a detection label; `keys` are those of its dataset.

    Raises InvalidInput for a box that is empty or not within the image, CapacityExceeded for more than 1,000
    objects on an image.
    """
    _check_within(Box(*words.box), image)
    count = connection.execute("SELECT count(*) FROM objects WHERE image = ?", (image.key,)).get
    if count >= MAX_OBJECTS:
        raise CapacityExceeded(f"an image has at most {MAX_OBJECTS} objects")
    dataset = image.key >> 32
    key = rows.next_key(connection, dataset)
    connection.execute(
        "INSERT INTO objects (key, id, dataset, image, label, words, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (key, identity, dataset, image.key, label, sealed(keys, "object", identity, words), now),
    )
    return key


def put_on(connection: Connection, subject: int, label: int, value: float | None) -> None:
    """Put a recognition label on an object: one that is there keeps its value unless there is a new one.

    Raises CapacityExceeded for more than 100 labels of an object.
    """
    connection.execute(
        "INSERT INTO object_labels (label, object, value) VALUES (?, ?, ?)"
        " ON CONFLICT (label, object) DO UPDATE SET value = coalesce(excluded.value, value)",
        (label, subject, value),
    )
    count = connection.execute("SELECT count(*) FROM object_labels WHERE object = ?", (subject,)).get
    if count > MAX_LABELS:
        raise CapacityExceeded(f"an object has at most {MAX_LABELS} labels")


def _check_within(box: Box, image: Image) -> None:
    sides = (box.xmin, box.ymin, box.xmax, box.ymax)
    if not (
        all(math.isfinite(side) for side in sides)
        and 0 <= box.xmin < box.xmax <= image.width
        and 0 <= box.ymin < box.ymax <= image.height
    ):
        reason = f"[xmin, ymin, xmax, ymax] within the image of {image.width} x {image.height} px is expected"
        raise InvalidInput(f"data: {reason}")


def _objects_of(connection: Connection, label: int) -> int:
    return int(connection.execute("SELECT objects FROM labels WHERE key = ?", (label,)).get)
