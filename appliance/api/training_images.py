"""`recognition/v2/training-image`: images that are stored under an agreement, their labels and flags."""

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack

from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.api.fields import identity, meta_data, truth, value, word, words
from appliance.api.labels import given_document
from appliance.api.paging import listing, wanted, workspace
from appliance.api.payload import Record, integer
from appliance.api.showing import Showing
from appliance.datasets.filters import Filter, Range
from appliance.datasets.gallery import Change
from appliance.datasets.images import Images
from appliance.datasets.notes import MAX_VERIFICATIONS
from appliance.datasets.records import Described, Given, Image
from appliance.datasets.words import checked_meta_data
from appliance.errors import InvalidInput
from appliance.outbound import Outbound

MAX_IMAGES = 1000  # of one change
MAX_LABELS = 20

_VALUE = re.compile(r"label_value_([0-9a-f-]{36})__(gte|lte)", re.ASCII)


class TrainingImages:
    """The handlers."""

    def __init__(self, images: Images, showing: Showing, outbound: Outbound) -> None:
        self._store = images.store
        self._datasets = images.datasets
        self._gallery = images.annotations.gallery
        self._labels = images.annotations.labels
        self._showing = showing
        self._outbound = outbound

    async def upload(self, call: Call) -> Answer:
        """Store one image as it was sent: upright and without metadata, and never resized.

        Labels are refused, in whatever form they come: they are put on an image that is there.
        """
        payload = call.payload
        test, real, written = payload.flag("test_image"), payload.flag("real"), meta_data(call)
        encoded = checked_meta_data(written) if written else None
        if payload.fields.get("labels"):
            raise InvalidInput("labels: an upload takes none: put them on the stored image with add-label")
        [record] = payload.records or [Record({})]
        if not (record.has_image or record.url):
            raise InvalidInput("base64: an image is expected, or a raw body, a multipart part or a url")
        dataset = await workspace(call, self._datasets)
        async with AsyncExitStack() as stack:
            url = record.url
            if url is None:
                data = record.take_image()
            else:
                with call.measures.stage("fetch"):
                    data = await stack.enter_async_context(self._outbound.image(url))
            image = await self._store.put(call.actor, dataset, data, encoded, test=test, real=real)
        return await self._answer(call, *await self._gallery.get(call.customer, image.id), status=201)

    async def list(self, call: Call) -> Answer:
        cutting, filtered = wanted(call), _filter(call)
        dataset = await workspace(call, self._datasets)
        page = await self._gallery.page(dataset, filtered, cutting)
        return listing(call, cutting, page, await self._showing.documents(call, page.rows))

    async def get(self, call: Call) -> Answer:
        return await self._answer(call, *await self._gallery.get(call.customer, call.parameters["id"]))

    async def put(self, call: Call) -> Answer:
        written = meta_data(call)
        if written is None:
            raise InvalidInput("meta_data: an object is expected")
        changed = await self._gallery.set_meta_data(call.actor, call.customer, call.parameters["id"], written)
        return await self._answer(call, *changed)

    async def delete(self, call: Call) -> Answer:
        image = await self._image(call)
        await self._store.delete(call.actor, image)
        return Answer(status=204)

    async def add_label(self, call: Call) -> Answer:
        image, label = call.parameters["id"], identity(call, "label_id")
        changed = await self._gallery.add_label(call.actor, call.customer, image, label, value(call))
        return await self._answer(call, *changed)

    async def update_label(self, call: Call) -> Answer:
        image, label = call.parameters["id"], identity(call, "label_id")
        changed = await self._gallery.change_value(call.actor, call.customer, image, label, value(call))
        return await self._answer(call, *changed)

    async def remove_label(self, call: Call) -> Answer:
        image, label = call.parameters["id"], identity(call, "label_id")
        changed = await self._gallery.remove_label(call.actor, call.customer, image, label)
        return await self._answer(call, *changed)

    async def update(self, call: Call) -> Answer:
        """Change many images, given by their ids or by labels that they have."""
        images, labels = _ids(call, "images", MAX_IMAGES), _ids(call, "labels", MAX_LABELS)
        change = Change(
            add=_ids(call, "labels-add", MAX_LABELS),
            remove=_ids(call, "labels-remove", MAX_LABELS),
            test=_marked(call, "test"),
            real=_marked(call, "real"),
        )
        if bool(images) == bool(labels):
            raise InvalidInput("images or labels: one of them is expected, with at least one id")
        if images:
            count = await self._gallery.modify(call.actor, call.customer, images, change)
        else:
            first = await self._labels.get(call.customer, labels[0], "recognition")
            dataset = await self._datasets.get(call.customer, first.place.dataset)
            count = await self._gallery.modify_all(call.actor, dataset, Filter(labels=labels), change)
        return Answer({"count": count})

    async def _image(self, call: Call) -> Image:
        return await self._store.get(call.customer, call.parameters["id"])

    async def _answer(
        self, call: Call, described: Described, labels: Sequence[Given], status: int = 200
    ) -> Answer:
        document = await self._showing.document(call, described)
        return Answer(document | {"labels": [given_document(given) for given in labels]}, status)


def _filter(call: Call) -> Filter:
    verified = word(call, "verified")
    return Filter(
        labels=words(call, "labels"),
        without=words(call, "not_labels"),
        objects=words(call, "detection_labels"),
        values=_values(call),
        test=truth(call, "test"),
        real=truth(call, "real"),
        verified=None if verified is None else integer(verified, "verified", 0, 0, MAX_VERIFICATIONS),
    )


def _values(call: Call) -> dict[str, Range]:
    """The bounds of labels' values: `label_value_ID__gte=1&label_value_ID__lte=2`."""
    ranges: dict[str, Range] = {}
    for name, text in call.query.items():
        if not name.startswith("label_value_"):
            continue
        found = _VALUE.fullmatch(name)
        if found is None:
            raise InvalidInput("label_value_ID__gte, label_value_ID__lte: the id of a label is expected")
        try:
            bound = float(text)
        except ValueError:
            raise InvalidInput("label_value_ID__gte, label_value_ID__lte: a number is expected") from None
        low, high = ranges.get(found[1], (None, None))
        ranges[found[1]] = (bound, high) if found[2] == "gte" else (low, bound)
    return ranges


def _ids(call: Call, name: str, most: int) -> list[str]:
    given = call.payload.fields.get(name)
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given) or len(given) > most:
        raise InvalidInput(f"{name}: a list of at most {most} ids is expected")
    return list(dict.fromkeys(given))


def _marked(call: Call, flag: str) -> bool | None:
    on, off = call.payload.flag(f"mark-{flag}"), call.payload.flag(f"unmark-{flag}")
    if on and off:
        raise InvalidInput(f"mark-{flag}, unmark-{flag}: one of them is expected")
    return on if on or off else None
