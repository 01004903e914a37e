"""Puts on images what an import says of them: labels and tasks by their names, made where there are none."""

import asyncio
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from appliance.accounts.audit import Actor, Event, record
from appliance.datasets import gallery, objects, rows
from appliance.datasets.annotations import Annotations
from appliance.datasets.catalogue import Datasets
from appliance.datasets.interchange.annotated import Annotated, Region
from appliance.datasets.interchange.archive import shown
from appliance.datasets.interchange.parsing import Held, Parsed
from appliance.datasets.pages import Cut
from appliance.datasets.records import Box, Dataset, Image, Label, LabelKind, Side, TaskKind
from appliance.datasets.tasks import MAX_TASKS
from appliance.datasets.words import ObjectWords, checked_meta_data, opened, opened_meta_data
from appliance.errors import CapacityExceeded, InvalidInput
from appliance.ledger import Connection, Ledger
from appliance.vault import Container

_LABELS_AT_ONCE = 500
_ROWS_AT_ONCE = 500  # in one transaction: others wait for its end


@dataclass(slots=True)
class Put:
    """How many labels and objects an import has put on images that did not have them."""

    labels: int = 0
    objects: int = 0


class Annotating:
    """Applies what imports say; what is there already stays, and nothing is taken off."""

    def __init__(
        self, ledger: Ledger, datasets: Datasets, annotations: Annotations, clock: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._labels = annotations.labels
        self._tasks = annotations.tasks
        self._clock = clock

    async def apply(
        self, actor: Actor, dataset: Dataset, parsed: Parsed, images: Mapping[str, Held], task: str | None
    ) -> Put:
        """Apply all that was read of `images`, some hundred in one transaction.

        Labels that are declared come first. New recognition labels are categories where no image has more
        than one, else tags. `task` gathers all of them: one for each side, found by this name or made. Images
        that were deleted meanwhile are left out. Raises CapacityExceeded where the labels do not fit into the
        dataset, and none of them is made; InvalidInput and CapacityExceeded, naming the image: what was
        applied before stays.
        """
        kind: LabelKind = "tag" if parsed.several else "category"
        await self._datasets.check_room()
        classes = await self._labels.by_name(dataset, "recognition")
        things = await self._labels.by_name(dataset, "detection")
        new_classes = [name for name in parsed.labels if name not in classes]
        new_things = [name for name in parsed.regions if name not in things]
        await self._labels.check_room(dataset, len(new_classes) + len(new_things))
        classes |= await self._made(actor, dataset, kind, new_classes)
        things |= await self._made(actor, dataset, "detection", new_things)
        classes = {name: classes[name] for name in parsed.labels}
        things = {name: things[name] for name in parsed.regions}
        if task is not None and classes:
            teaches: TaskKind = "multi_label" if parsed.several else "multi_class"
            await self._gather(actor, dataset, task, "recognition", teaches, classes)
        if task is not None and things:
            await self._gather(actor, dataset, task, "detection", "detection", things)
        put = Put()
        async for said in parsed.batches():
            for some in _cut(said):
                await self._datasets.check_room()
                batch = _Batch(self._datasets.keys(dataset), some, images, classes, things)
                done = await self._ledger.write(
                    lambda connection, batch=batch: self._apply(connection, actor, dataset, batch)  # type: ignore[misc]
                )
                put.labels += done.labels
                put.objects += done.objects
        return put

    def _apply(self, connection: Connection, actor: Actor, dataset: Dataset, batch: "_Batch") -> Put:
        now = int(self._clock() * 1000)
        put = batch.apply(connection, now)
        details: dict[str, object] = {
            "annotated": len(batch.said),
            "labels": put.labels,
            "objects": put.objects,
        }
        record(connection, now, actor, Event.DATASET_IMPORT, dataset.customer, dataset.id, details)
        return put

    async def _made(
        self, actor: Actor, dataset: Dataset, kind: LabelKind, names: Sequence[str]
    ) -> dict[str, Label]:
        """New labels of these names, in their order."""
        labels: dict[str, Label] = {}
        for start in range(0, len(names), _LABELS_AT_ONCE):
            made = await asyncio.gather(  # queued in this order, and in one commit
                *(
                    self._labels.add(actor, dataset, kind, name)
                    for name in names[start : start + _LABELS_AT_ONCE]
                )
            )
            labels |= {label.name: label for label in made}
        return labels

    async def _gather(  # noqa: PLR0917
        self,
        actor: Actor,
        dataset: Dataset,
        name: str,
        side: Side,
        kind: TaskKind,
        labels: Mapping[str, Label],
    ) -> None:
        """Have a task of this name learn these labels."""
        found = await self._tasks.page(dataset, side, Cut(size=MAX_TASKS), search=name)
        task = next((one for one in found.rows if one.name == name), None)
        if task is None:
            task = await self._tasks.add(actor, dataset, kind, name)
        page = await self._labels.page(dataset, side, Cut(size=task.labels + 1), task=task.id)
        taught = {label.key for label in page.rows}
        for label in labels.values():
            if label.key not in taught:
                await self._tasks.add_label(actor, dataset.customer, task.id, label.id, side=side)


def _cut(said: Sequence[Annotated]) -> Iterator[Sequence[Annotated]]:
    """Some images after others, of which not much more than _ROWS_AT_ONCE is said together."""
    start, count = 0, 0
    for end, one in enumerate(said, 1):
        count += len(one.labels) + sum(1 + len(region.labels) for region in one.regions)
        if count >= _ROWS_AT_ONCE or end == len(said):
            yield said[start:end]
            start, count = end, 0


class _Batch:
    """Some images of an import, for one transaction."""

    def __init__(
        self,
        seal: Container,
        said: Sequence[Annotated],
        images: Mapping[str, Held],
        classes: Mapping[str, Label],
        things: Mapping[str, Label],
    ) -> None:
        self._seal = seal
        self._images = images
        self._classes = classes
        self._things = things
        self.said = said

    def apply(self, connection: Connection, now: int) -> Put:
        put = Put()
        wanted = [self._images[one.name][0] for one in self.said]
        images = {key: image for key, (image, _, _) in rows.described(connection, set(wanted)).items()}
        for key, one in zip(wanted, self.said, strict=True):
            if (image := images.get(key)) is None:
                continue
            try:
                self._describe(connection, image, one)
                put.labels += self._put_labels(connection, image, one.labels)
                for region, known in self._regions(connection, image, one):
                    put.objects += known is None
                    self._put_region(connection, image, region, known, now)
            except (InvalidInput, CapacityExceeded) as error:
                raise type(error)(f"{shown(one.name)}: {error}") from None
        return put

    def _describe(self, connection: Connection, image: Image, one: Annotated) -> None:
        if one.test and not image.test:
            connection.execute("UPDATE images SET facet = facet | 1 WHERE key = ?", (image.key,))
        if one.meta_data:
            blob = connection.execute("SELECT meta_data FROM images WHERE key = ?", (image.key,)).get
            present = opened_meta_data(self._seal, "meta_data", image.id, blob)
            merged = present | msgspec.to_builtins(dict(one.meta_data))
            if merged != present:
                blob = self._seal.seal("meta_data", checked_meta_data(merged), image.id.encode())
                connection.execute("UPDATE images SET meta_data = ? WHERE key = ?", (blob, image.key))

    def _put_labels(self, connection: Connection, image: Image, labels: Mapping[str, float | None]) -> int:
        """How many the image did not have."""
        if not labels:
            return 0
        present = dict(
            connection.execute("SELECT label, value FROM image_labels WHERE image = ?", (image.key,))
        )
        added = 0
        for name, value in labels.items():
            label = self._classes[name].key
            added += label not in present
            if label not in present or value not in {None, present[label]}:
                gallery.put_on(connection, image.key, label, value)
        return added

    def _regions(
        self, connection: Connection, image: Image, one: Annotated
    ) -> list[tuple[Region, int | None]]:
        """Each region with the object that it is already, None where it is new: as many as there are."""
        if not one.regions:
            return []
        present: dict[tuple[int, Box], list[int]] = {}
        for key, identity, label, blob in connection.execute(
            "SELECT key, id, label, words FROM objects WHERE image = ? ORDER BY key DESC", (image.key,)
        ):
            words = opened(self._seal, "object", identity, blob, ObjectWords)
            present.setdefault((label, Box(*words.box)), []).append(key)
        found = []
        for region in one.regions:
            same = present.get((self._things[region.label].key, region.box))
            found.append((region, same.pop() if same else None))
        return found

    def _put_region(
        self, connection: Connection, image: Image, region: Region, known: int | None, now: int
    ) -> None:
        if known is None:
            words = objects.words_of(region.box, dict(region.meta_data))
            label, identity = self._things[region.label].key, str(uuid.uuid4())
            known = objects.insert(connection, self._seal, image, label, identity, words, now)
        for name, value in region.labels.items():
            objects.put_on(connection, known, self._classes[name].key, value)
