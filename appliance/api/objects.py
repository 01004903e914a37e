"""`detection/v2/object`: boxes on stored images, with labels of their own."""

from collections.abc import Sequence

from appliance.api.answers import Answer, moment
from appliance.api.call import Call
from appliance.api.fields import identity, meta_data, value, word, words
from appliance.api.labels import given_document
from appliance.api.paging import listing, wanted, workspace
from appliance.api.showing import Showing
from appliance.datasets.filters import MAX_CONDITIONS
from appliance.datasets.images import Images
from appliance.datasets.records import Box, Object
from appliance.errors import InvalidInput


class Objects:
    """The handlers."""

    def __init__(self, images: Images, showing: Showing) -> None:
        self._datasets = images.datasets
        self._objects = images.annotations.objects
        self._showing = showing

    async def list(self, call: Call) -> Answer:
        cutting, labels = wanted(call), words(call, "object_labels")
        if len(labels) > MAX_CONDITIONS:
            raise InvalidInput(f"object_labels: at most {MAX_CONDITIONS} labels in one filter")
        page = await self._objects.page(
            await workspace(call, self._datasets),
            cutting,
            image=word(call, "image") or None,
            label=word(call, "object_detection_label") or None,
            labels=labels,
        )
        return listing(call, cutting, page, await self._documents(call, page.rows))

    async def add(self, call: Call) -> Answer:
        label, image = _reference(call, "detection_label"), _reference(call, "image")
        box = _box(call)
        if label is None or image is None or box is None:
            raise InvalidInput(
                "detection_label, image, data: the ids and [xmin, ymin, xmax, ymax] are expected"
            )
        made = await self._objects.add(
            call.actor, call.customer, image, label=label, box=box, meta_data=meta_data(call)
        )
        return await self._answer(call, made, 201)

    async def get(self, call: Call) -> Answer:
        return await self._answer(call, await self._objects.get(call.customer, call.parameters["id"]))

    async def put(self, call: Call) -> Answer:
        changed = await self._objects.change(
            call.actor,
            call.customer,
            call.parameters["id"],
            image=_reference(call, "image"),
            label=_reference(call, "detection_label"),
            box=_box(call),
            meta_data=meta_data(call),
        )
        return await self._answer(call, changed)

    async def delete(self, call: Call) -> Answer:
        await self._objects.delete(call.actor, call.customer, call.parameters["id"])
        return Answer(status=204)

    async def add_label(self, call: Call) -> Answer:
        own, label = call.parameters["id"], identity(call, "label_id")
        changed = await self._objects.add_label(call.actor, call.customer, own, label, value(call))
        return await self._answer(call, changed)

    async def update_label(self, call: Call) -> Answer:
        own, label = call.parameters["id"], identity(call, "label_id")
        changed = await self._objects.change_value(call.actor, call.customer, own, label, value(call))
        return await self._answer(call, changed)

    async def remove_label(self, call: Call) -> Answer:
        own, label = call.parameters["id"], identity(call, "label_id")
        changed = await self._objects.remove_label(call.actor, call.customer, own, label)
        return await self._answer(call, changed)

    async def _answer(self, call: Call, found: Object, status: int = 200) -> Answer:
        return Answer((await self._documents(call, [found]))[0], status)

    async def _documents(self, call: Call, objects: Sequence[Object]) -> Sequence[dict[str, object]]:
        distinct = {one.image.image.key: one.image for one in objects}
        shown = dict(zip(distinct, await self._showing.documents(call, [*distinct.values()]), strict=True))
        return [_document(one, shown[one.image.image.key]) for one in objects]


def _document(one: Object, image: dict[str, object]) -> dict[str, object]:
    label, box = one.label, one.box
    return {
        "id": one.id,
        "image": image,
        "detection_label": {
            "id": label.id,
            "name": label.name,
            "color": label.color,
            "output_name": label.output_name,
            "workspace": label.place.workspace,
        },
        "data": [box.xmin, box.ymin, box.xmax, box.ymax],
        "recognition_labels": [given_document(given) for given in one.labels],
        "meta_data": one.meta_data,
        "workspace": one.place.workspace,
        "created": moment(one.created_at),
    }


def _reference(call: Call, name: str) -> str | None:
    """An id, or the whole thing as an answer showed it: clients send back what they got."""
    given = call.payload.fields.get(name)
    if isinstance(given, dict):
        given = given.get("id")
    if given is None or isinstance(given, str):
        return given
    raise InvalidInput(f"{name}: an id is expected")


def _box(call: Call) -> Box | None:
    given = call.payload.fields.get("data")
    if given is None:
        return None
    if (
        isinstance(given, list)
        and len(given) == 4
        and all(isinstance(side, int | float) and not isinstance(side, bool) for side in given)
        and all(abs(side) <= 1 << 20 for side in given)
    ):
        return Box(*given)
    raise InvalidInput("data: [xmin, ymin, xmax, ymax] in pixels is expected")
