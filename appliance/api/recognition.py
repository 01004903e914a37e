"""Classification, tags, objects, descriptors: records with images in, the same with what was seen out."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

from appliance.accounts.rights import Scope
from appliance.api.answers import Answer, code_of, status, text_of
from appliance.api.call import Call
from appliance.api.payload import Image, Record
from appliance.api.ports import Keep, TrainingSink
from appliance.api.vision import Seen, Vision, answer, each, images
from appliance.errors import ApplianceError, Forbidden, InvalidInput, NotFound, NotInstalled
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
    """The handlers of classification, tagging, detection and the descriptors.

    Images go through `sink`, and so to rest, for calls with `store_images` alone.
    """

    def __init__(self, vision: Vision, bundles: Bundles, heads: Heads, sink: TrainingSink | None) -> None:
        self._vision = vision
        self._bundles = bundles
        self._heads = heads
        self._sink = sink

    async def classify(self, call: Call) -> Answer:
        """`best_label` and `labels` (the 100 most probable) of the task named by `task_id` or `task`."""
        task, version = _asked(call)
        head = await self._heads.find(call.customer, task, version) if call.knows_task(task) else None
        bundle = self._task(call) if head is None else self._backbone(head)
        if head is None and not bundle.classifies:
            raise NotFound("the task does not classify")
        feature = "logits" if head is None else head.feature
        outcomes = await self._see(call, bundle, feature, keep=await self._keep(call))
        with call.measures.cpu("answer"):
            for record, seen in _served(outcomes):
                labels = _labels(bundle, seen, LABELS) if head is None else _by_head(head, seen)
                record.fields |= {"best_label": labels[0] if labels else None, "labels": labels}
            return _answer(call, outcomes)

    async def tags(self, call: Call) -> Answer:
        """`_tags`: the 20 best tags of each photo, by the bundle that serves this path."""
        bundle = call.bundles(self._bundles).for_route(call.path.removeprefix("/"))
        outcomes = await self._see(call, bundle, "logits")
        for record, seen in _served(outcomes):
            record.fields["_tags"] = _labels(bundle, seen, TAGS)
        return answer(call, outcomes)

    async def detect(self, call: Call) -> Answer:
        """`_objects` of the detection task named by `task_id` or `task`, more probable than `keep_prob`."""
        bundle = self._task(call)
        if bundle.kind != "detector":
            raise NotFound("the task does not detect")
        likely = call.payload.fraction("keep_prob", KEEP)
        outcomes = await self._see(call, bundle, *BOXES, keep=await self._keep(call))
        for record, seen in _served(outcomes):
            place = window(bundle.preprocessing, seen.width, seen.height)
            record.fields["_objects"] = await asyncio.to_thread(
                detected, seen.outputs, bundle.labels, place, keep=likely, overlap=bundle.overlap
            )
        return _answer(call, outcomes)

    async def descriptor(self, call: Call) -> Answer:
        """`_descriptor`: the L2-normalised vector that search compares. The task is the backbone's: a
        `task_id` names no other one.
        """
        bundle = self._vision.backbone()
        task = call.payload.text("task_id") or call.payload.text("task")
        if task not in {None, bundle.task} or not call.knows_task(bundle.task):
            raise NotFound("no such task")
        outcomes = await self._see(call, bundle, "embedding")
        for record, seen in _served(outcomes):
            record.fields["_descriptor"] = seen.outputs["embedding"].tolist()
        return answer(call, outcomes)

    async def _keep(self, call: Call) -> Keep | None:
        """What stores the images of a call with `store_images`; None for every other one.

        Raises Forbidden without the scope or the agreement for it, NotFound for the workspace.
        """
        if not call.payload.flag("store_images"):
            return None
        if Scope.DATASETS_WRITE not in call.principal.scopes:
            raise Forbidden(f"store_images: the token lacks the scope {Scope.DATASETS_WRITE}")
        if self._sink is None:
            raise NotInstalled("this process manages the appliance and stores no images")
        workspace = call.payload.text("workspace") or "Default"
        return await self._sink.open(call.actor, call.customer, workspace)

    def _task(self, call: Call) -> Bundle:
        return call.bundles(self._bundles).for_task(*_asked(call))

    def _backbone(self, head: Head) -> Bundle:
        backbone = self._vision.backbone(head.backbone)
        if not head.fits(backbone):
            raise NotInstalled(f"the backbone {head.backbone} has no feature {head.feature} for this head")
        return backbone

    async def _see(self, call: Call, bundle: Bundle, *outputs: str, keep: Keep | None = None) -> Outcomes:
        vision = self._vision.of(call.customer)

        async def see(record: Record) -> Seen:
            if keep is None:
                return await vision.infer(bundle, record, *outputs)
            async with vision.fetched(record):
                image = record.image
                seen = await vision.infer(bundle, record, *outputs)
                assert image is not None  # or nothing would have been seen
                return replace(seen, kept=await _kept(keep, image))

        records = images(call)
        return list(zip(records, await each(records, see), strict=True))


def _asked(call: Call) -> tuple[TaskId, str | None]:
    task = call.payload.text("task_id") or call.payload.text("task")
    if task is None:
        raise InvalidInput("task_id: the id of a task is expected")
    version = call.payload.fields.get("version")
    return TaskId(task), None if version is None else str(version)


async def _kept(keep: Keep, image: Image | memoryview) -> str | ApplianceError:
    try:
        return await keep(image)
    except ApplianceError as refusal:
        return refusal


def _answer(call: Call, outcomes: Outcomes) -> Answer:
    """As `answer`, and what became of images that were to be stored. What was seen stands in any case."""
    answered = answer(call, outcomes)
    for record, seen in _served(outcomes):
        if isinstance(seen.kept, ApplianceError):
            reason = f"the image was seen, but not stored: {text_of(seen.kept, call.id)}"
            record.fields["_status"] = status(code_of(seen.kept), reason, call.id)
            record.fields["_stored_image_id"] = None
        elif seen.kept is not None:
            record.fields["_stored_image_id"] = seen.kept
    return answered


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
