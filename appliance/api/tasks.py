"""`recognition/v2/task`, `detection/v2/task` and `recognition/v2/model`: what models are to learn."""

from appliance.api.answers import Answer, Refused, moment
from appliance.api.call import Call
from appliance.api.paging import identity, listing, wanted, word, workspace
from appliance.datasets.annotations import Annotations
from appliance.datasets.catalogue import Datasets
from appliance.datasets.records import Side, Task, TaskKind
from appliance.errors import InvalidInput, NotFound

_KINDS: dict[str, TaskKind] = {
    "multi_class": "multi_class",
    "multi_label": "multi_label",
    "regression": "regression",
}


class Tasks:
    """The handlers; those of both families are the same."""

    def __init__(self, datasets: Datasets, annotations: Annotations) -> None:
        self._datasets = datasets
        self._tasks = annotations.tasks

    async def list(self, call: Call) -> Answer:
        cutting, dataset = wanted(call), await workspace(call, self._datasets)
        page = await self._tasks.page(dataset, side(call), cutting, word(call, "search") or "")
        return listing(call, cutting, page, [_document(task) for task in page.rows])

    async def add(self, call: Call) -> Answer:
        name, kind = called(call), "detection" if side(call) == "detection" else _kind(call)
        dataset = await workspace(call, self._datasets)
        description = call.payload.text("description")
        task = await self._tasks.add(call.actor, dataset, kind, name, description)
        return Answer(_document(task), 201)

    async def get(self, call: Call) -> Answer:
        return Answer(_document(await self._named(call)))

    async def delete(self, call: Call) -> Answer:
        await self._tasks.delete(call.actor, call.customer, call.parameters["id"], side(call))
        return Answer(status=204)

    async def train(self, call: Call) -> Answer:
        """The client hands the answer on as it is: whoever reads it finds the reason under `detail`."""
        await self._named(call)
        raise Refused(409, "training is not available on this appliance yet: no model was made")

    async def add_label(self, call: Call) -> Answer:
        task, label = call.parameters["id"], identity(call, "label_id")
        changed = await self._tasks.add_label(call.actor, call.customer, task, label, side=side(call))
        return Answer(_document(changed))

    async def remove_label(self, call: Call) -> Answer:
        task, label = call.parameters["id"], identity(call, "label_id")
        changed = await self._tasks.remove_label(call.actor, call.customer, task, label, side=side(call))
        return Answer(_document(changed))

    async def add_image(self, call: Call) -> Answer:
        task, image = call.parameters["id"], identity(call, "image_id")
        changed = await self._tasks.add_negative_image(call.actor, call.customer, task, image)
        return Answer(_document(changed))

    async def model(self, call: Call) -> Answer:  # noqa: ARG002 - as all handlers
        """There are models as soon as there is training."""
        raise NotFound("no such model")

    async def _named(self, call: Call) -> Task:
        return await self._tasks.get(call.customer, call.parameters["id"], side(call))


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
