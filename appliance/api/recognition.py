"""Classification, tags, objects, descriptors: records with images in, the same with what was seen out."""

import asyncio
from collections.abc import Iterator

from appliance.accounts.agreements import Agreements, Kind
from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.api.payload import Record
from appliance.api.vision import Seen, Vision, answer, each, images
from appliance.errors import ApplianceError, InvalidInput, NotFound, NotInstalled
from appliance.recognition.bundles import Bundle, Bundles, TaskId
from appliance.recognition.heads import Head, Heads
from appliance.recognition.preprocessing import window
from appliance.recognition.tasks import RankedLabel, detected, ranked, tagged

LABELS = 100  # best labels of a classification
TAGS = 20  # best tags of a photo
KEEP = 0.3  # objects less probable than this are left out, as in the cloud
BOXES = ("boxes", "scores", "classes")

Outcomes = list[tuple[Record, Seen | ApplianceError]]


class Recognition:
    """The handlers of classification, tagging, detection and the descriptors."""

    def __init__(self, vision: Vision, bundles: Bundles, heads: Heads, agreements: Agreements) -> None:
        self._vision = vision
        self._bundles = bundles
        self._heads = heads
        self._agreements = agreements

    async def classify(self, call: Call) -> Answer:
        """`best_label` and `labels` (the 100 most probable) of the task named by `task_id` or `task`."""
        task, version = _asked(call)
        self._refuse_to_store(call)
        head = await self._heads.find(call.customer, task, version)
        bundle = self._task(call) if head is None else self._backbone(head)
        if head is None and not bundle.classifies:
            raise NotFound("the task does not classify")
        outcomes = await self._see(call, bundle, "logits" if head is None else head.feature)
        with call.measures.cpu("answer"):
            for record, seen in _served(outcomes):
                labels = _labels(bundle, seen, LABELS) if head is None else _by_head(head, seen)
                record.fields |= {"best_label": labels[0] if labels else None, "labels": labels}
            return answer(call, outcomes)

    async def tags(self, call: Call) -> Answer:
        """`_tags`: the 20 best tags of each photo, by the bundle that serves this path."""
        bundle = self._bundles.catalogue(call.customer).for_route(call.path.removeprefix("/"))
        outcomes = await self._see(call, bundle, "logits")
        for record, seen in _served(outcomes):
            record.fields["_tags"] = _labels(bundle, seen, TAGS)
        return answer(call, outcomes)

    async def detect(self, call: Call) -> Answer:
        """`_objects` of the detection task named by `task_id` or `task`, more probable than `keep_prob`."""
        bundle = self._task(call)
        if bundle.kind != "detector":
            raise NotFound("the task does not detect")
        self._refuse_to_store(call)
        keep = call.payload.fraction("keep_prob", KEEP)
        outcomes = await self._see(call, bundle, *BOXES)
        for record, seen in _served(outcomes):
            place = window(bundle.preprocessing, seen.width, seen.height)
            record.fields["_objects"] = await asyncio.to_thread(
                detected, seen.outputs, bundle.labels, place, keep=keep, overlap=bundle.overlap
            )
        return answer(call, outcomes)

    async def descriptor(self, call: Call) -> Answer:
        """`_descriptor`: the L2-normalised vector that search compares. A `task_id` is the backbone's."""
        bundle = self._vision.backbone()
        task = call.payload.text("task_id") or call.payload.text("task")
        if task is not None and task != bundle.task:
            raise NotFound("no such task")
        outcomes = await self._see(call, bundle, "embedding")
        for record, seen in _served(outcomes):
            record.fields["_descriptor"] = seen.outputs["embedding"].tolist()
        return answer(call, outcomes)

    def _refuse_to_store(self, call: Call) -> None:
        """Raises Forbidden without a training-data agreement, InvalidInput with one: nothing stores yet."""
        if call.payload.flag("store_images"):
            self._agreements.require(call.customer, Kind.TRAINING_DATA)
            raise InvalidInput(
                "store_images: images sent for recognition are never stored; the training-data agreement"
                " would allow it, but this version does not: leave it out"
            )

    def _task(self, call: Call) -> Bundle:
        return self._bundles.catalogue(call.customer).for_task(*_asked(call))

    def _backbone(self, head: Head) -> Bundle:
        backbone = self._vision.backbone(head.backbone)
        if not head.fits(backbone):
            raise NotInstalled(f"the backbone {head.backbone} has no feature {head.feature} for this head")
        return backbone

    async def _see(self, call: Call, bundle: Bundle, *outputs: str) -> Outcomes:
        records = images(call)
        seen = await each(records, lambda record: self._vision.infer(bundle, record, *outputs))
        return list(zip(records, seen, strict=True))


def _asked(call: Call) -> tuple[TaskId, str | None]:
    task = call.payload.text("task_id") or call.payload.text("task")
    if task is None:
        raise InvalidInput("task_id: the id of a task is expected")
    version = call.payload.fields.get("version")
    return TaskId(task), None if version is None else str(version)


def _by_head(head: Head, seen: Seen) -> list[RankedLabel]:
    logits = head.logits(seen.outputs[head.feature])
    if head.kind == "tagger":
        return tagged(logits, head.labels, LABELS, head.threshold)
    return ranked(logits, head.labels, LABELS)


def _labels(bundle: Bundle, seen: Seen, limit: int) -> list[RankedLabel]:
    logits = seen.outputs["logits"]
    if bundle.kind == "tagger":
        return tagged(logits, bundle.labels, limit, bundle.threshold)
    return ranked(logits, bundle.labels, limit)


def _served(outcomes: Outcomes) -> Iterator[tuple[Record, Seen]]:
    return ((record, outcome) for record, outcome in outcomes if isinstance(outcome, Seen))
