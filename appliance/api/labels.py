"""`recognition/v2/label` and `detection/v2/label`: what images and objects can be called."""

from collections.abc import Sequence

from appliance.api import installed_tasks
from appliance.api.answers import Answer, moment
from appliance.api.call import Call
from appliance.api.fields import identity, word
from appliance.api.installed_tasks import InstalledTasks
from appliance.api.paging import listing, wanted, workspace
from appliance.api.tasks import called, side
from appliance.datasets.annotations import Annotations
from appliance.datasets.catalogue import Datasets
from appliance.datasets.records import Given, Label, LabelKind, TaskId
from appliance.errors import InvalidInput

_KINDS: dict[str, LabelKind] = {"category": "category", "tag": "tag"}


class Labels:
    """The handlers; those of both families are the same but for the wipe."""

    def __init__(self, datasets: Datasets, annotations: Annotations, installed: InstalledTasks) -> None:
        self._datasets = datasets
        self._labels = annotations.labels
        self._installed = installed

    async def list(self, call: Call) -> Answer:
        """Those of a dataset, or of a task that an installed model answers."""
        cutting, dataset = wanted(call), await workspace(call, self._datasets)
        task, named, search = word(call, "task") or None, word(call, "type"), word(call, "search") or ""
        kind = None if named is None else _kind(named)
        bundle = self._installed.find(call.customer, task, side(call)) if task else None
        if bundle is not None:
            told = installed_tasks.labels_page(bundle, cutting, kind, search)
            shown = [installed_tasks.label_document(bundle, label, call.customer) for label in told.rows]
            return listing(call, cutting, told, shown)
        page = await self._labels.page(dataset, side(call), cutting, task=task, kind=kind, search=search)
        return listing(call, cutting, page, await self._documents(page.rows))

    async def add(self, call: Call) -> Answer:
        name, payload, detects = called(call), call.payload, side(call) == "detection"
        kind = "detection" if detects else _kind(payload.text("type") or "category")
        dataset = await workspace(call, self._datasets)
        label = await self._labels.add(
            call.actor,
            dataset,
            kind,
            name,
            description=payload.text("description"),
            output_name=payload.text("output_name"),
            color=payload.text("color") if detects else None,
        )
        return Answer(label_document(label, []), 201)

    async def get(self, call: Call) -> Answer:
        label = await self._labels.get(call.customer, call.parameters["id"], side(call))
        return Answer((await self._documents([label]))[0])

    async def delete(self, call: Call) -> Answer:
        await self._labels.delete(call.actor, call.customer, call.parameters["id"], side(call))
        return Answer(status=204)

    async def wipe(self, call: Call) -> Answer:
        await self._labels.wipe(call.actor, call.customer, call.parameters["id"])
        return Answer(status=204)

    async def add_task(self, call: Call) -> Answer:
        label, task = call.parameters["id"], identity(call, "task_id")
        changed = await self._labels.add_task(call.actor, call.customer, label, task, side=side(call))
        return Answer((await self._documents([changed]))[0])

    async def remove_task(self, call: Call) -> Answer:
        label, task = call.parameters["id"], identity(call, "task_id")
        changed = await self._labels.remove_task(call.actor, call.customer, label, task, side=side(call))
        return Answer((await self._documents([changed]))[0])

    async def _documents(self, labels: Sequence[Label]) -> Sequence[dict[str, object]]:
        following = await self._labels.following(labels)
        return [label_document(label, following[label.key]) for label in labels]


def label_document(label: Label, following: Sequence[TaskId]) -> dict[str, object]:
    """A label with the tasks that are asked next where it was given."""
    document: dict[str, object] = {
        "id": label.id,
        "name": label.name,
        "description": label.description,
        "output_name": label.output_name,
        "workspace": label.place.workspace,
        "created": moment(label.created_at),
        "tasks_count": label.tasks,
        "images_count": label.images,
        "objects_count": label.objects,
        "recognition_tasks": [{"id": task} for task in following],
    }
    if label.kind == "detection":
        return document | {"color": label.color}
    return document | {"type": label.kind, "negative_for_task": label.negative_for}


def given_document(given: Given) -> dict[str, object]:
    """A label as an image or an object has it."""
    label = given.label
    return {
        "id": label.id,
        "name": label.name,
        "type": label.kind,
        "output_name": label.output_name,
        "workspace": label.place.workspace,
        "negative_for_task": label.negative_for,
        "images_count": label.images,
        "tasks_count": label.tasks,
        "value": given.value,
    }


def _kind(text: str) -> LabelKind:
    kind = _KINDS.get(text)
    if kind is None:
        raise InvalidInput(f"type: one of {', '.join(_KINDS)} is expected")
    return kind
