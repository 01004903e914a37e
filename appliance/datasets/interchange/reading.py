"""What a dataset says of its images, as formats write it."""

from collections.abc import Iterator, Sequence
from typing import Any

from appliance.datasets import rows
from appliance.datasets.annotations import Annotations
from appliance.datasets.catalogue import Datasets
from appliance.datasets.interchange.annotated import Annotated, Declared, Region, Size
from appliance.datasets.records import Box, Dataset
from appliance.datasets.words import ObjectWords, opened, opened_meta_data
from appliance.errors import Conflict
from appliance.ledger import Connection

_AT_ONCE = 500


class Reading:
    """A dataset's labels as they are now, and its images as they are asked for.

    For one thread with a connection of its own. Raises SealBroken.
    """

    def __init__(
        self, connection: Connection, datasets: Datasets, annotations: Annotations, dataset: Dataset
    ) -> None:
        self._connection = connection
        self._keys = datasets.keys(dataset)
        labels = annotations.labels.all(connection, dataset)
        self._labels = {label.key: label for label in labels}
        self.declared = Declared(
            tuple(dict.fromkeys(label.name for label in labels if label.kind != "detection")),
            tuple(dict.fromkeys(label.name for label in labels if label.kind == "detection")),
        )

    def annotated(self, images: Sequence[tuple[int, str]]) -> Iterator[tuple[int, Annotated]]:
        """The images of these keys under these names, in this order, without those that were deleted."""
        for start in range(0, len(images), _AT_ONCE):
            some = images[start : start + _AT_ONCE]
            keys = [key for key, _ in some]
            described = rows.described(self._connection, keys)
            labels, regions = self._given(keys), self._regions(keys)
            for key, name in some:
                if (found := described.get(key)) is None:
                    continue
                image, _, blob = found
                yield (
                    key,
                    Annotated(
                        name,
                        Size(image.width, image.height),
                        labels.get(key, {}),
                        tuple(regions.get(key, ())),
                        image.test,
                        opened_meta_data(self._keys, "meta_data", image.id, blob),
                    ),
                )

    def _given(self, images: Sequence[int]) -> dict[int, dict[str, float | None]]:
        """The recognition labels of images."""
        found = self._connection.execute(
            "SELECT image, label, value FROM image_labels"  # noqa: S608
            f" WHERE image IN ({rows.marks(images)}) ORDER BY image, label",
            images,
        )
        return self._named(found)

    def _regions(self, images: Sequence[int]) -> dict[int, list[Region]]:
        found: list[tuple[Any, ...]] = self._connection.execute(
            "SELECT image, key, label, id, words FROM objects"  # noqa: S608
            f" WHERE image IN ({rows.marks(images)}) ORDER BY key",
            images,
        ).fetchall()
        said = self._said([row[1] for row in found])
        regions: dict[int, list[Region]] = {}
        for image, key, label, identity, blob in found:
            if (known := self._labels.get(label)) is not None:
                words = opened(self._keys, "object", identity, blob, ObjectWords)
                region = Region(known.name, Box(*words.box), said.get(key, {}), words.meta_data)
                regions.setdefault(image, []).append(region)
        return regions

    def _said(self, objects: Sequence[int]) -> dict[int, dict[str, float | None]]:
        """The recognition labels of objects."""
        said: dict[int, dict[str, float | None]] = {}
        for start in range(0, len(objects), _AT_ONCE):
            some = objects[start : start + _AT_ONCE]
            found = self._connection.execute(
                "SELECT object, label, value FROM object_labels"  # noqa: S608
                f" WHERE object IN ({rows.marks(some)}) ORDER BY object, label",
                some,
            )
            said |= self._named(found)
        return said

    def _named(self, given: Iterator[tuple[int, int, float | None]]) -> dict[int, dict[str, float | None]]:
        """Labels by their names; several with one name become one.

        Raises Conflict where their values differ: one of them would be lost.
        """
        named: dict[int, dict[str, float | None]] = {}
        for subject, label, value in given:
            known = self._labels.get(label)
            if known is None or known.kind == "detection":
                continue
            values = named.setdefault(subject, {})
            present = values.get(known.name)
            if present is None:
                values[known.name] = value
            elif value not in {None, present}:
                raise Conflict(
                    "an image or an object has two labels of one name with different values: take one off"
                )
        return named
