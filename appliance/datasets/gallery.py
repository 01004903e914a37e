"""What is known of stored images beside their pixels: labels, flags, metadata, and lists by all of these."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.datasets import ids, rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.filters import Filter, planned
from appliance.datasets.labels import Labels
from appliance.datasets.pages import Cut, Page, cut
from appliance.datasets.records import Dataset, Described, Given
from appliance.datasets.words import checked_meta_data, opened_meta_data
from appliance.errors import CapacityExceeded, NotFound
from appliance.ledger import Connection, Ledger

MAX_LABELS = 1000  # of an image

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be different on images: labels put on and taken off, flags set; None leaves a flag."""

    add: Sequence[str] = ()
    remove: Sequence[str] = ()
    test: bool | None = None
    real: bool | None = None


class Gallery:
    """The images of all datasets as their customers describe them.

    Raises NotFound for the ids of what is another customer's, and InvalidInput where a label and an image lie
    in different datasets.
    """

    def __init__(
        self, ledger: Ledger, datasets: Datasets, labels: Labels, clock: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._labels = labels
        self._clock = clock

    async def page(self, dataset: Dataset, wanted: Filter, cutting: Cut) -> Page[Described]:
        """Images of a dataset in the order of their upload."""

        def query(connection: Connection) -> Page[Described]:
            walk = planned(connection, dataset.customer, dataset.number, wanted)
            keys = walk.keys(connection, cutting)
            works = walk.known is None
            count = cutting.counted if works and cutting.counted is not None else walk.count(connection)
            found = self.described(connection, keys[: cutting.size])
            page = cut(keys, keys, cutting, count, worked=works)
            return Page([found[key] for key in page.rows if key in found], count, page.after, works)

        return await self._ledger.read(query)

    async def get(self, customer: CustomerId, image: str) -> tuple[Described, list[Given]]:
        """An image and its recognition labels. Raises NotFound."""

        def query(connection: Connection) -> tuple[Described, list[Given]]:
            key = ids.image(connection, customer, image)
            return self._one(connection, key)

        return await self._ledger.read(query)

    async def set_meta_data(
        self, actor: Actor, customer: CustomerId, image: str, meta_data: dict[str, object]
    ) -> tuple[Described, list[Given]]:
        """Put this in the place of an image's metadata. Raises NotFound, TooLarge for more than 64 KiB,
        VolumeFull.
        """
        encoded, now = checked_meta_data(meta_data), self._now()

        def act(connection: Connection) -> tuple[Described, list[Given]]:
            key = ids.image(connection, customer, image)
            described, _ = self._one(connection, key)
            blob = self._datasets.keys_at(described.place).seal("meta_data", encoded, image.encode())
            connection.execute("UPDATE images SET meta_data = ? WHERE key = ?", (blob, key))
            details: dict[str, object] = {"dataset": described.place.dataset}
            record(connection, now, actor, Event.IMAGE_UPDATE, customer, image, details)
            return self._one(connection, key)

        return await self._ledger.write(act)

    async def add_label(
        self, actor: Actor, customer: CustomerId, image: str, label: str, value: float | None = None
    ) -> tuple[Described, list[Given]]:
        """Put a recognition label on an image; on one that has it, this value replaces that.

        Raises NotFound, InvalidInput, CapacityExceeded for more than 1,000 labels.
        """

        def act(connection: Connection, image_key: int, label_key: int) -> None:
            put_on(connection, image_key, label_key, value)

        return await self._with_label(actor, customer, image, label, act)

    async def change_value(
        self, actor: Actor, customer: CustomerId, image: str, label: str, value: float | None
    ) -> tuple[Described, list[Given]]:
        """Change the value of a label that the image has. Raises NotFound also when it has it not."""

        def act(connection: Connection, image_key: int, label_key: int) -> None:
            connection.execute(
                "UPDATE image_labels SET value = ? WHERE image = ? AND label = ?",
                (value, image_key, label_key),
            )
            if connection.changes() == 0:
                raise NotFound("the image has no such label")

        return await self._with_label(actor, customer, image, label, act)

    async def remove_label(
        self, actor: Actor, customer: CustomerId, image: str, label: str
    ) -> tuple[Described, list[Given]]:
        """Take a recognition label off an image; twice is as good as once. Raises NotFound."""

        def act(connection: Connection, image_key: int, label_key: int) -> None:
            _take_off(connection, image_key, label_key)

        return await self._with_label(actor, customer, image, label, act)

    async def modify(self, actor: Actor, customer: CustomerId, images: Sequence[str], change: Change) -> int:
        """Change these images, all of them or none; how many they are.

        Raises NotFound, InvalidInput, CapacityExceeded for more than 1,000 labels of an image.
        """
        return await self._ledger.write(
            lambda connection: self._modify(
                connection,
                actor,
                customer,
                [ids.image(connection, customer, image) for image in dict.fromkeys(images)],
                change,
            )
        )

    async def modify_all(self, actor: Actor, dataset: Dataset, wanted: Filter, change: Change) -> int:
        """Change all images of a dataset that are asked for, 500 in one transaction; how many they are.

        Raises as `modify`: what was changed before stays changed.
        """
        changed, position = 0, -1
        while True:
            cutting = Cut(size=_AT_ONCE, after=position)

            def act(connection: Connection, cutting: Cut = cutting) -> tuple[int, int | None]:
                walk = planned(connection, dataset.customer, dataset.number, wanted)
                keys = walk.keys(connection, cutting)
                page = cut(keys, keys, cutting, 0)
                return self._modify(connection, actor, dataset.customer, page.rows, change), page.after

            some, following = await self._ledger.write(act)
            changed += some
            if following is None:
                return changed
            position = following

    def described(self, connection: Connection, keys: Iterable[int]) -> dict[int, Described]:
        """Images by their keys, those that are not being deleted."""
        found: dict[int, Described] = {}
        for key, (image, place, blob) in rows.described(connection, keys).items():
            opened = opened_meta_data(self._datasets.keys_at(place), "meta_data", image.id, blob)
            found[key] = Described(image, place, opened)
        return found

    def _one(self, connection: Connection, key: int) -> tuple[Described, list[Given]]:
        given = connection.execute(
            "SELECT image_labels.label, image_labels.value FROM image_labels"
            " JOIN labels ON labels.key = image_labels.label"
            " WHERE image_labels.image = ? AND labels.kind <> 'detection' AND labels.deleted_at IS NULL",
            (key,),
        )
        values: dict[int, float | None] = {label: value for label, value in given}  # noqa: C416
        labels = [Given(label, values[label.key]) for label in self._labels.of_keys(connection, [*values])]
        return self.described(connection, [key])[key], labels

    async def _with_label(
        self,
        actor: Actor,
        customer: CustomerId,
        image: str,
        label: str,
        change: Callable[[Connection, int, int], None],
    ) -> tuple[Described, list[Given]]:
        now = self._now()

        def act(connection: Connection) -> tuple[Described, list[Given]]:
            image_key = ids.image(connection, customer, image)
            label_key = ids.label(connection, customer, label, "recognition")
            ids.check_together(image_key >> 32, label_key, "label", "image")
            change(connection, image_key, label_key)
            record(connection, now, actor, Event.IMAGE_UPDATE, customer, image, {"label": label})
            return self._one(connection, image_key)

        return await self._ledger.write(act)

    def _modify(
        self,
        connection: Connection,
        actor: Actor,
        customer: CustomerId,
        images: Sequence[int],
        change: Change,
    ) -> int:
        add = [ids.label(connection, customer, label, "recognition") for label in change.add]
        remove = [ids.label(connection, customer, label, "recognition") for label in change.remove]
        flags = [(1, change.test), (2, change.real)]
        clear = ~sum(bit for bit, flag in flags if flag is not None)
        for image in images:
            for label in (*add, *remove):
                ids.check_together(image >> 32, label, "label", "image")
            for label in add:
                put_on(connection, image, label, None)
            for label in remove:
                _take_off(connection, image, label)
            if clear != -1:
                wanted = sum(bit for bit, flag in flags if flag)
                connection.execute(
                    "UPDATE images SET facet = facet & ? | ? WHERE key = ?", (clear, wanted, image)
                )
        for number in dict.fromkeys(image >> 32 for image in images):
            those = [image for image in images if image >> 32 == number]
            details: dict[str, object] = {
                "images": len(those),
                "labels_added": list(change.add),
                "labels_removed": list(change.remove),
                "test": change.test,
                "real": change.real,
            }
            dataset = self.described(connection, those[:1])[those[0]].place.dataset
            record(connection, self._now(), actor, Event.IMAGE_UPDATE, customer, dataset, details)
        return len(images)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def put_on(connection: Connection, image: int, label: int, value: float | None) -> None:
    """Put a recognition label on an image: one that is there keeps its value unless there is a new one.

    Raises CapacityExceeded for more than 1,000 labels of an image.
    """
    connection.execute(
        "INSERT INTO image_labels (label, facet, image, value) SELECT ?1, facet, key, ?3 FROM images"
        " WHERE key = ?2 ON CONFLICT (image, label) DO UPDATE SET value = coalesce(excluded.value, value)",
        (label, image, value),
    )
    count = connection.execute("SELECT count(*) FROM image_labels WHERE image = ?", (image,)).get
    if count > MAX_LABELS:
        raise CapacityExceeded(f"an image has at most {MAX_LABELS} labels")


def _take_off(connection: Connection, image: int, label: int) -> None:
    connection.execute("DELETE FROM image_labels WHERE image = ? AND label = ?", (image, label))
