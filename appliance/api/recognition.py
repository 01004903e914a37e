"""Classification, tags and descriptors: records with images in, the same records with what was seen out."""

from collections.abc import Sequence

from appliance.api.answers import Answer, status, status_of
from appliance.api.call import Call
from appliance.api.payload import MAX_IMAGES, Record
from appliance.api.vision import Seen, Vision, each
from appliance.errors import ApplianceError, InvalidInput, NotFound
from appliance.recognition.bundles import Bundle, Bundles, TaskId
from appliance.recognition.tasks import ranked

LABELS = 100  # best labels of a classification
TAGS = 20  # best tags of a photo


class Recognition:
    """The handlers of `recognition/v2/classify`, `photo/tags/v2/tags` and the descriptors."""

    def __init__(self, vision: Vision, bundles: Bundles) -> None:
        self._vision = vision
        self._bundles = bundles

    async def classify(self, call: Call) -> Answer:
        """`best_label` and `labels` (the 100 most probable) of the task named by `task_id` or `task`."""
        bundle = self._task(call)
        if call.payload.flag("store_images"):
            raise InvalidInput(
                "store_images: images sent for recognition are never stored"
                " without a training-data agreement, and there is none"
            )
        outcomes = await self._see(call, bundle, "logits")
        for record, outcome in outcomes:
            if isinstance(outcome, Seen):
                labels = [
                    {"id": label.id, "name": label.name, "prob": label.prob}
                    for label in ranked(outcome.output, bundle.labels, LABELS)
                ]
                record.fields |= {"best_label": labels[0], "labels": labels}
        return _answer(call, outcomes)

    async def tags(self, call: Call) -> Answer:
        """`_tags`: the 20 best general tags of each photo."""
        bundle = self._bundles.for_route("photo/tags/v2/tags")
        outcomes = await self._see(call, bundle, "logits")
        for record, outcome in outcomes:
            if isinstance(outcome, Seen):
                record.fields["_tags"] = [
                    {"name": label.name, "prob": label.prob, "id": label.id}
                    for label in ranked(outcome.output, bundle.labels, TAGS)
                ]
        return _answer(call, outcomes)

    async def descriptor(self, call: Call) -> Answer:
        """`_descriptor`: the L2-normalised vector that search compares. A `task_id` is the backbone's."""
        bundle = self._vision.backbone()
        task = call.payload.text("task_id") or call.payload.text("task")
        if task is not None and task != bundle.task:
            raise NotFound("no such task")
        outcomes = await self._see(call, bundle, "embedding")
        for record, outcome in outcomes:
            if isinstance(outcome, Seen):
                record.fields["_descriptor"] = outcome.output.tolist()
        return _answer(call, outcomes)

    def _task(self, call: Call) -> Bundle:
        task = call.payload.text("task_id") or call.payload.text("task")
        if task is None:
            raise InvalidInput("task_id: the id of a task is expected")
        bundle = self._bundles.for_task(TaskId(task))
        if not bundle.labels:
            raise NotFound("the task does not classify")
        version = call.payload.fields.get("version")
        if version is not None and str(version) != bundle.version:
            raise NotFound("the task has no such version")
        return bundle

    async def _see(
        self, call: Call, bundle: Bundle, output: str
    ) -> list[tuple[Record, Seen | ApplianceError]]:
        records = call.payload.records
        if not records or len(records) > MAX_IMAGES:
            raise InvalidInput(f"records: 1 to {MAX_IMAGES} are expected")
        for record in records:
            record.ensure_id()
        seen = await each(records, lambda record: self._vision.infer(bundle, record, output))
        return list(zip(records, seen, strict=True))


def _answer(call: Call, outcomes: Sequence[tuple[Record, Seen | ApplianceError]]) -> Answer:
    """The cloud's envelope: 200 even when records were refused, each says so in its `_status`."""
    for record, outcome in outcomes:
        if isinstance(outcome, Seen):
            record.fields |= {"_width": outcome.width, "_height": outcome.height}
            record.fields["_status"] = status(200, "OK", call.id)
        else:
            record.fields["_status"] = status_of(outcome, call.id)
    return Answer(
        call.payload.fields
        | {
            "records": [record.fields for record, _ in outcomes],
            "status": status(200, "OK", call.id),
            "statistics": {"processing time": call.elapsed},
        }
    )
