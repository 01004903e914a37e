"""Tasks: what models are to learn, and from which labels."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.datasets import ids, rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.ids import only
from appliance.datasets.pages import Cut, Page, Query, cut
from appliance.datasets.records import Dataset, ImageId, Side, Task, TaskKind
from appliance.datasets.words import LabelWords, TaskWords, checked_name, checked_text, opened, sealed
from appliance.errors import CapacityExceeded
from appliance.ledger import Connection, Ledger

MAX_TASKS = 1000  # of a dataset
MAX_NEGATIVES = 10_000  # images of a task

NEGATIVE = "negative"

_COLUMNS = (
    "tasks.key, tasks.id, tasks.kind, tasks.created_at, tasks.labels, tasks.negatives, tasks.words,"
    f" {rows.PLACE}"
)
_LIVING = (
    f"SELECT {_COLUMNS} FROM tasks JOIN datasets ON datasets.number = tasks.dataset"  # noqa: S608
    " WHERE datasets.erased_at IS NULL"
)


class Tasks:
    """The tasks of all datasets. Raises NotFound for the ids of what is another customer's."""

    def __init__(self, ledger: Ledger, datasets: Datasets, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._clock = clock

    async def add(
        self, actor: Actor, dataset: Dataset, kind: TaskKind, name: str, description: str | None = None
    ) -> Task:
        """A new task; one that tags (multi_label) comes with a label for images without any of its tags.

        Raises InvalidInput for a name, CapacityExceeded for more than 1,000 tasks in a dataset, VolumeFull.
        """
        words = TaskWords(checked_name(name), checked_text(description, "description"))
        keys, now = self._datasets.keys(dataset), self._now()
        identity, negative = str(uuid.uuid4()), str(uuid.uuid4())
        task_words = sealed(keys, "task", identity, words)
        label_words = sealed(keys, "label", negative, LabelWords(NEGATIVE))

        def act(connection: Connection) -> Task:
            if _count(connection, dataset.number) >= MAX_TASKS:
                raise CapacityExceeded(f"a dataset has at most {MAX_TASKS} tasks")
            key = rows.next_key(connection, dataset.number)
            connection.execute(
                "INSERT INTO tasks (key, id, dataset, kind, words, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                (key, identity, dataset.number, kind, task_words, now),
            )
            if kind == "multi_label":
                label = rows.next_key(connection, dataset.number)
                connection.execute(
                    "INSERT INTO labels (key, id, dataset, kind, words, created_at, negative_for)"
                    " VALUES (?, ?, ?, 'tag', ?, ?, ?)",
                    (label, negative, dataset.number, label_words, now, key),
                )
                connection.execute("INSERT INTO task_labels (task, label) VALUES (?, ?)", (key, label))
            details: dict[str, object] = {"dataset": dataset.id, "kind": kind}
            record(connection, now, actor, Event.TASK_ADD, dataset.customer, identity, details)
            return self._one(connection, dataset.customer, identity, None)

        return await self._ledger.write(act)

    async def page(self, dataset: Dataset, side: Side, wanted: Cut, search: str = "") -> Page[Task]:
        """A dataset's tasks in the order in which they were made; only those with `search` in their names."""

        def query(connection: Connection) -> Page[Task]:
            if search:
                return self._found(connection, dataset, side, wanted, search.casefold())
            tasks = Query("tasks", "key")
            tasks.where(ids.TASKS[side])
            keys = tasks.keys(connection, dataset.number, wanted)
            found = self._of_keys(connection, keys)
            return cut(found, keys, wanted, tasks.count(connection, dataset.number))

        return await self._ledger.read(query)

    async def get(self, customer: CustomerId, task: str, side: Side) -> Task:
        """Raises NotFound."""
        return await self._ledger.read(lambda connection: self._one(connection, customer, task, side))

    async def delete(self, actor: Actor, customer: CustomerId, task: str, side: Side) -> None:
        """Delete a task for good; labels and images stay, its negative label as an ordinary one.

        Raises NotFound.
        """
        now = self._now()

        def act(connection: Connection) -> None:
            found = self._one(connection, customer, task, side)
            connection.execute("DELETE FROM tasks WHERE key = ?", (found.key,))
            details: dict[str, object] = {"dataset": found.place.dataset}
            record(connection, now, actor, Event.TASK_DELETE, customer, task, details)

        await self._ledger.write(act)
        while not await self._ledger.empty_log():  # somebody reads: a moment only
            pass

    async def add_label(
        self, actor: Actor, customer: CustomerId, task: str, label: str, *, side: Side
    ) -> Task:
        """Have a task learn a label; twice is as good as once. Raises NotFound, and InvalidInput when they
        lie in different datasets.
        """
        return await self._with_label(
            "INSERT OR IGNORE INTO task_labels (task, label) VALUES (?, ?)",
            actor,
            customer,
            task,
            label,
            side=side,
        )

    async def remove_label(
        self, actor: Actor, customer: CustomerId, task: str, label: str, *, side: Side
    ) -> Task:
        """Undo `add_label`. Raises as that."""
        return await self._with_label(
            "DELETE FROM task_labels WHERE task = ? AND label = ?", actor, customer, task, label, side=side
        )

    async def add_negative_image(self, actor: Actor, customer: CustomerId, task: str, image: str) -> Task:
        """Have a detection task learn from an image that shows nothing of it; twice is as good as once.

        Raises NotFound, InvalidInput when they lie in different datasets, CapacityExceeded for more than
        10,000 such images.
        """
        now = self._now()

        def act(connection: Connection) -> Task:
            found = self._one(connection, customer, task, "detection")
            negative = ids.image(connection, customer, image)
            ids.check_together(found.place.number, negative, "image", "task")
            if found.negatives >= MAX_NEGATIVES:
                raise CapacityExceeded(f"a task has at most {MAX_NEGATIVES} negative images")
            connection.execute(
                "INSERT OR IGNORE INTO negative_images (task, image) VALUES (?, ?)", (found.key, negative)
            )
            record(connection, now, actor, Event.TASK_CHANGE, customer, task, {"image": image})
            return self._one(connection, customer, task, "detection")

        return await self._ledger.write(act)

    async def negative_images(self, task: Task) -> list[ImageId]:
        """The images that show nothing of a task, in the order of their upload."""
        query = (
            "SELECT images.id FROM negative_images JOIN images ON images.key = image"
            " WHERE task = ? AND images.deleted_at IS NULL ORDER BY image"
        )
        return await self._ledger.read(
            lambda connection: [ImageId(row[0]) for row in connection.execute(query, (task.key,))]
        )

    async def _with_label(
        self, statement: str, actor: Actor, customer: CustomerId, task: str, label: str, *, side: Side
    ) -> Task:
        now = self._now()

        def act(connection: Connection) -> Task:
            found = self._one(connection, customer, task, side)
            key = ids.label(connection, customer, label, side)
            ids.check_together(found.place.number, key, "label", "task")
            connection.execute(statement, (found.key, key))
            record(connection, now, actor, Event.TASK_CHANGE, customer, task, {"label": label})
            return self._one(connection, customer, task, side)

        return await self._ledger.write(act)

    def _one(self, connection: Connection, customer: CustomerId, task: str, side: Side | None) -> Task:
        condition = "" if side is None else f" AND {ids.TASKS[side]}"
        found = connection.execute(
            f"{_LIVING} AND tasks.id = ? AND datasets.customer = ?{condition}", (task, customer)
        ).fetchall()
        return self._task(only(found, "task"))

    def _of_keys(self, connection: Connection, keys: Sequence[int]) -> list[Task]:
        found = connection.execute(
            f"{_LIVING} AND tasks.key IN ({rows.marks(keys)}) ORDER BY tasks.key", keys
        )
        return [self._task(row) for row in found]

    def _found(
        self, connection: Connection, dataset: Dataset, side: Side, wanted: Cut, search: str
    ) -> Page[Task]:
        found = connection.execute(
            f"{_LIVING} AND tasks.dataset = ? AND {ids.TASKS[side]} ORDER BY tasks.key", (dataset.number,)
        )
        tasks = [task for task in map(self._task, found) if search in task.name.casefold()]
        count = len(tasks)
        rest = [task for task in tasks if task.key > wanted.floor(dataset.number)][wanted.offset :]
        return cut(rest, [task.key for task in rest], wanted, count)

    def _task(self, row: tuple[Any, ...]) -> Task:
        key, identity, kind, created_at, labels, negatives, blob, *rest = row
        place = rows.place(tuple(rest))
        words = opened(self._datasets.keys_at(place), "task", identity, blob, TaskWords)
        return Task(key, identity, place, kind, created_at, labels, negatives, words.name, words.description)

    def _now(self) -> int:
        return int(self._clock() * 1000)


def _count(connection: Connection, dataset: int) -> int:
    return int(connection.execute("SELECT count(*) FROM tasks WHERE dataset = ?", (dataset,)).get)
