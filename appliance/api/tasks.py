"""`recognition/v2/task`, `detection/v2/task` and `recognition/v2/model`: what models are to learn."""

from appliance.api.answers import Answer, Refused, moment
from appliance.api.call import Call
from appliance.api.fields import identity, word
from appliance.api.installed_tasks import InstalledTasks, behind, task_document
from appliance.api.paging import listing, wanted, workspace
from appliance.datasets.annotations import Annotations
from appliance.datasets.catalogue import Datasets
from appliance.datasets.records import Side, Task, TaskKind
from appliance.errors import InvalidInput, NotFound
from appliance.recognition.bundles import Bundle

_KINDS: dict[str, TaskKind] = {
    "multi_class": "multi_class",
    "multi_label": "multi_label",
    "regression": "regression",
}


class Tasks:
    """The handlers; those of both families are the same."""

    def __init__(self, datasets: Datasets, annotations: Annotations, installed: InstalledTasks) -> None:
        self._datasets = datasets
        self._tasks = annotations.tasks
        self._installed = installed

    async def list(self, call: Call) -> Answer:
        """The dataset's own tasks, in the default one followed by those that installed models answer."""
        cutting, dataset = wanted(call), await workspace(call, self._datasets)
        search = word(call, "search") or ""
        own = await self._tasks.page(dataset, side(call), cutting, search)
        installed = self._installed.list(call.customer, side(call), search) if dataset.name is None else ()
        page = behind(own, installed, cutting)
        return listing(call, cutting, page, [_shown(call, task) for task in page.rows])

    async def add(self, call: Call) -> Answer:
        name, kind = called(call), "detection" if side(call) == "detection" else _kind(call)
        dataset = await workspace(call, self._datasets)
        description = call.payload.text("description")
        task = await self._tasks.add(call.actor, dataset, kind, name, description)
        return Answer(_document(task), 201)

    async def get(self, call: Call) -> Answer:
        installed = self._installed.find(call.customer, call.parameters["id"], side(call))
        return Answer(_shown(call, await self._named(call) if installed is None else installed))

    async def delete(self, call: Call) -> Answer:
        await self._tasks.delete(call.actor, call.customer, self._own(call), side(call))
        return Answer(status=204)

    async def train(self, call: Call) -> Answer:
        """The client hands the answer on as it is: whoever reads it finds the reason under `detail`."""
        self._own(call)
        await self._named(call)
        raise Refused(409, "training is not available on this appliance yet: no model was made")

    async def add_label(self, call: Call) -> Answer:
        task, label = self._own(call), identity(call, "label_id")
        changed = await self._tasks.add_label(call.actor, call.customer, task, label, side=side(call))
        return Answer(_document(changed))

    async def remove_label(self, call: Call) -> Answer:
        task, label = self._own(call), identity(call, "label_id")
        changed = await self._tasks.remove_label(call.actor, call.customer, task, label, side=side(call))
        return Answer(_document(changed))

    async def add_image(self, call: Call) -> Answer:
        task, image = self._own(call), identity(call, "image_id")
        changed = await self._tasks.add_negative_image(call.actor, call.customer, task, image)
        return Answer(_document(changed))

    async def model(self, call: Call) -> Answer:  # noqa: ARG002 - as all handlers
        """There are models as soon as there is training."""
        raise NotFound("no such model")

    async def _named(self, call: Call) -> Task:
        return await self._tasks.get(call.customer, call.parameters["id"], side(call))

    def _own(self, call: Call) -> str:
        """The id of the task that is to change. Raises Conflict for one that an installed model answers."""
        task = call.parameters["id"]
        self._installed.check_own(call.customer, task, side(call))
        return task


def side(call: Call) -> Side:
    """To which of the two families a path belongs."""
    return "detection" if call.path.startswith("/detection/") else "recognition"


def called(call: Call) -> str:
    """The name in the body. Raises InvalidInput where there is none."""
    name = call.payload.text("name")
    if name is None:
        raise InvalidInput("name: a string is expected")
    return name


def _kind(call: Call) -> TaskKind:
    kind = _KINDS.get(call.payload.text("type") or "multi_class")
    if kind is None:
        raise InvalidInput(f"type: one of {', '.join(_KINDS)} is expected")
    return kind


def _shown(call: Call, task: Task | Bundle) -> dict[str, object]:
    return task_document(task, call.customer) if isinstance(task, Bundle) else _document(task)


def _document(task: Task) -> dict[str, object]:
    document: dict[str, object] = {
        "id": task.id,
        "name": task.name,
        "description": task.description,
        "workspace": task.place.workspace,
        "created": moment(task.created_at),
        "labels_count": task.labels,
        "production_version": None,
        "last_train_status": None,
    }
    if task.kind == "detection":
        return document | {"negative_images_count": task.negatives}
    return document | {"type": task.kind}
