"""Labels: what images and objects can be called."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Self

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.background import end_tasks
from appliance.datasets import ids, rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.ids import only
from appliance.datasets.pages import Cut, Page, Query, cut
from appliance.datasets.records import Dataset, Image, Label, LabelKind, Side, TaskId
from appliance.datasets.store import Store
from appliance.datasets.words import LabelWords, checked_color, checked_name, checked_text, opened, sealed
from appliance.errors import ApplianceError, CapacityExceeded
from appliance.ledger import Connection, Ledger

MAX_LABELS = 10_000  # of a dataset

_AT_ONCE = 500
_WIPED_AT_ONCE = 100
_COLUMNS = (
    "labels.key, labels.id, labels.kind, labels.created_at,"  # noqa: S608
    " (SELECT tasks.id FROM tasks WHERE tasks.key = labels.negative_for), labels.tasks,"
    " (SELECT coalesce(sum(images), 0) FROM label_counts WHERE label_counts.label = labels.key),"
    f" labels.objects, labels.words, {rows.PLACE}"
)
_LIVING = (
    f"SELECT {_COLUMNS} FROM labels JOIN datasets ON datasets.number = labels.dataset"  # noqa: S608
    " WHERE labels.deleted_at IS NULL AND datasets.erased_at IS NULL"
)
_SYSTEM = Actor("system", "labels")

_log = logging.getLogger(__name__)


class Labels:
    """The labels of all datasets. Raises NotFound for the ids of what is another customer's.

    Entering goes on with deletions that a stop interrupted.
    """

    def __init__(self, ledger: Ledger, datasets: Datasets, store: Store, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._store = store
        self._clock = clock
        self._under_way: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        for key, wipes in await self._ledger.read(_being_deleted):
            _ = self._start(self._finish_later(key, wipes=wipes))
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(*self._under_way)  # what is left goes after the next start

    async def add(
        self,
        actor: Actor,
        dataset: Dataset,
        kind: LabelKind,
        name: str,
        *,
        description: str | None = None,
        output_name: str | None = None,
        color: str | None = None,
    ) -> Label:
        """A new label; others may have its name. Only a detection label has a colour (#RRGGBB).

        Those that are added at the same time are in the order of the calls.
        Raises InvalidInput for a name or a colour, CapacityExceeded for more than 10,000 in a dataset.
        """
        words = LabelWords(
            checked_name(name),
            checked_text(description, "description"),
            None if output_name is None else checked_text(output_name, "output_name"),
            checked_color(color) if kind == "detection" else None,
        )
        identity, now = str(uuid.uuid4()), self._now()
        blob = sealed(self._datasets.keys(dataset), "label", identity, words)

        def act(connection: Connection) -> Label:
            number = dataset.number
            _check_room(connection, dataset, 1)
            connection.execute(
                "INSERT INTO labels (key, id, dataset, kind, words, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                (rows.next_key(connection, number), identity, number, kind, blob, now),
            )
            details: dict[str, object] = {"dataset": dataset.id, "kind": kind}
            record(connection, now, actor, Event.LABEL_ADD, dataset.customer, identity, details)
            return self._one(connection, dataset.customer, identity, None)

        return await self._ledger.write(act)

    async def check_room(self, dataset: Dataset, more: int) -> None:
        """Raises CapacityExceeded unless the dataset can have so many labels more."""
        await self._ledger.read(lambda connection: _check_room(connection, dataset, more))

    async def page(
        self,
        dataset: Dataset,
        side: Side,
        wanted: Cut,
        *,
        task: str | None = None,
        kind: LabelKind | None = None,
        search: str = "",
    ) -> Page[Label]:
        """A dataset's labels in the order in which they were made: of a task, of a kind, or with `search` in
        their names in upper or lower case. Raises NotFound for a task.
        """

        def query(connection: Connection) -> Page[Label]:
            labels = Query("labels", "key")
            labels.where("deleted_at IS NULL")
            labels.where(ids.LABELS[side])
            if kind is not None:
                labels.where("kind = ?", kind)
            if task is not None:
                taught = ids.task(connection, dataset.customer, task, side)
                labels.where("key IN (SELECT label FROM task_labels WHERE task = ?)", taught)
            if search:
                return self._found(connection, dataset, labels, wanted, search.casefold())
            keys = labels.keys(connection, dataset.number, wanted)
            return cut(self.of_keys(connection, keys), keys, wanted, labels.count(connection, dataset.number))

        return await self._ledger.read(query)

    async def by_name(self, dataset: Dataset, side: Side) -> dict[str, Label]:
        """All labels of a side in the order in which they were made, by their names.

        Of several with one name the oldest, and one that says of a task that nothing applies only where no
        other has the name.
        """

        named: dict[str, Label] = {}
        for label in await self._ledger.read(lambda connection: self.all(connection, dataset)):
            if (label.kind == "detection") != (side == "detection"):
                continue
            known = named.setdefault(label.name, label)
            if known.negative_for is not None and label.negative_for is None:
                named[label.name] = label
        return named

    async def get(self, customer: CustomerId, label: str, side: Side) -> Label:
        """Raises NotFound."""
        return await self._ledger.read(lambda connection: self._one(connection, customer, label, side))

    async def following(self, labels: Sequence[Label]) -> dict[int, list[TaskId]]:
        """The tasks that are asked next where a label was given, by the label's key."""
        keys = [label.key for label in labels]

        def query(connection: Connection) -> dict[int, list[TaskId]]:
            tasks: dict[int, list[TaskId]] = {key: [] for key in keys}
            for label, task in connection.execute(
                "SELECT following_tasks.label, tasks.id FROM following_tasks"  # noqa: S608
                " JOIN tasks ON tasks.key = following_tasks.task"
                f" WHERE following_tasks.label IN ({rows.marks(keys)}) ORDER BY tasks.key",
                keys,
            ):
                tasks[label].append(TaskId(task))
            return tasks

        return await self._ledger.read(query)

    async def add_task(
        self, actor: Actor, customer: CustomerId, label: str, task: str, *, side: Side
    ) -> Label:
        """Have a recognition task asked where this label was given; twice is as good as once.

        Raises NotFound, and InvalidInput when they lie in different datasets.
        """
        return await self._with_task(
            "INSERT OR IGNORE INTO following_tasks (label, task) VALUES (?, ?)",
            actor,
            customer,
            label,
            task,
            side=side,
        )

    async def remove_task(
        self, actor: Actor, customer: CustomerId, label: str, task: str, *, side: Side
    ) -> Label:
        """Undo `add_task`. Raises as that."""
        return await self._with_task(
            "DELETE FROM following_tasks WHERE label = ? AND task = ?",
            actor,
            customer,
            label,
            task,
            side=side,
        )

    async def delete(self, actor: Actor, customer: CustomerId, label: str, side: Side) -> None:
        """Delete a label for good: off every image and object; with a detection label go its objects.

        It is out of sight at once, and in no file any more when this returns; a caller who goes away
        meanwhile stops nothing. Raises NotFound.
        """
        await self._delete(Event.LABEL_DELETE, actor, customer, label, side=side)

    async def wipe(self, actor: Actor, customer: CustomerId, label: str) -> None:
        """Delete a recognition label and every image that has it, as `delete` and `Store.delete` do."""
        await self._delete(Event.LABEL_WIPE, actor, customer, label, side="recognition")

    def all(self, connection: Connection, dataset: Dataset) -> list[Label]:
        """All labels of a dataset in the order in which they were made."""
        found = connection.execute(f"{_LIVING} AND labels.dataset = ? ORDER BY labels.key", (dataset.number,))
        return [self._label(row) for row in found]

    def of_keys(self, connection: Connection, keys: Sequence[int]) -> list[Label]:
        """Labels by their keys, in the order of these."""
        found = connection.execute(
            f"{_LIVING} AND labels.key IN ({rows.marks(keys)}) ORDER BY labels.key", keys
        )
        return [self._label(row) for row in found]

    async def _delete(
        self, event: Event, actor: Actor, customer: CustomerId, label: str, *, side: Side
    ) -> None:
        await self._datasets.make_room()
        now, wipes = self._now(), event is Event.LABEL_WIPE

        def act(connection: Connection) -> int:
            found = self._one(connection, customer, label, side)
            connection.execute(
                "UPDATE labels SET deleted_at = ?, wipes = ? WHERE key = ?", (now, wipes, found.key)
            )
            details: dict[str, object] = {
                "dataset": found.place.dataset,
                "images": found.images,
                "objects": found.objects,
            }
            record(connection, now, actor, event, customer, label, details)
            return found.key

        key = await self._ledger.write(act)
        await asyncio.shield(self._start(self._finish(key, actor, wipes=wipes)))

    async def _finish(self, label: int, actor: Actor, *, wipes: bool) -> None:
        """A label out of sight goes, some of its rows at a time, so that others' writes come between."""
        while wipes and (
            images := await self._ledger.read(
                lambda connection: _images_of(connection, label, _WIPED_AT_ONCE)
            )
        ):
            await self._store.delete_all(actor, images)
        await self._ledger.write_on(partial(_take_off, label=label), _AT_ONCE)
        while not await self._ledger.empty_log():  # somebody reads: a moment only
            pass

    async def _finish_later(self, label: int, *, wipes: bool) -> None:
        try:
            await self._finish(label, _SYSTEM, wipes=wipes)
        except ApplianceError as error:
            _log.error("the rest of a deleted label goes after the next start: %s", error)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _with_task(
        self, statement: str, actor: Actor, customer: CustomerId, label: str, task: str, *, side: Side
    ) -> Label:
        now = self._now()

        def act(connection: Connection) -> Label:
            found = self._one(connection, customer, label, side)
            key = ids.task(connection, customer, task, "recognition")
            ids.check_together(found.place.number, key, "task", "label")
            connection.execute(statement, (found.key, key))
            record(connection, now, actor, Event.LABEL_CHANGE, customer, label, {"task": task})
            return found

        return await self._ledger.write(act)

    def _one(self, connection: Connection, customer: CustomerId, label: str, side: Side | None) -> Label:
        more = "" if side is None else f" AND {ids.LABELS[side]}"
        found = connection.execute(
            f"{_LIVING} AND labels.id = ? AND datasets.customer = ?{more}", (label, customer)
        ).fetchall()
        return self._label(only(found, "label"))

    def _found(
        self, connection: Connection, dataset: Dataset, labels: Query, wanted: Cut, search: str
    ) -> Page[Label]:
        """Names are sealed: those of all labels are opened and looked into, here and nowhere kept."""
        keys = self._datasets.keys(dataset)
        matching = [
            key
            for key, identity, blob in labels.rows(connection, dataset.number, "id, words")
            if search in opened(keys, "label", identity, blob, LabelWords).name.casefold()
        ]
        rest = [key for key in matching if key > wanted.floor(dataset.number)][wanted.offset :]
        rest = rest[: wanted.size + 1]
        return cut(self.of_keys(connection, rest), rest, wanted, len(matching))

    def _label(self, row: tuple[Any, ...]) -> Label:
        key, identity, kind, created_at, negative_for, tasks, images, objects, blob, *rest = row
        place = rows.place(tuple(rest))
        words = opened(self._datasets.keys_at(place), "label", identity, blob, LabelWords)
        return Label(
            key,
            identity,
            place,
            kind,
            created_at,
            negative_for,
            tasks,
            images,
            objects,
            words.name,
            words.description,
            words.output_name,
            words.color,
        )

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _check_room(connection: Connection, dataset: Dataset, more: int) -> None:
    count = connection.execute("SELECT count(*) FROM labels WHERE dataset = ?", (dataset.number,)).get
    if count + more > MAX_LABELS:
        raise CapacityExceeded(f"a dataset has at most {MAX_LABELS} labels")


def _being_deleted(connection: Connection) -> list[tuple[int, bool]]:
    found = connection.execute(
        "SELECT labels.key, labels.wipes FROM labels JOIN datasets ON datasets.number = labels.dataset"
        " WHERE labels.deleted_at IS NOT NULL AND datasets.erased_at IS NULL"
    )
    return [(key, bool(wipes)) for key, wipes in found]


def _images_of(connection: Connection, label: int, most: int) -> list[Image]:
    found = connection.execute("SELECT image FROM image_labels WHERE label = ? LIMIT ?", (label, most))
    described = rows.described(connection, [key for (key,) in found])
    return [image for image, _, _ in described.values()]


def _take_off(connection: Connection, most: int, label: int) -> bool:
    """Take a label off some of what has it, and at last remove it; whether there is more."""
    for statement in (
        "DELETE FROM objects WHERE key IN (SELECT key FROM objects WHERE label = ?1 LIMIT ?2)",
        (
            "DELETE FROM image_labels INDEXED BY labels_of_image WHERE label = ?1"
            " AND image IN (SELECT image FROM image_labels WHERE label = ?1 LIMIT ?2)"
        ),
        (
            "DELETE FROM object_labels WHERE label = ?1"
            " AND object IN (SELECT object FROM object_labels WHERE label = ?1 LIMIT ?2)"
        ),
    ):
        connection.execute(statement, (label, most))
        if connection.changes():
            return True
    connection.execute("DELETE FROM labels WHERE key = ?", (label,))
    return False
