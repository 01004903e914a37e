"""What a customer says of its images, whole: a format of interchange keeps only what it has a place for.

    labels.jsonl    with their texts, and the tasks that are asked next where one was given
    tasks.jsonl     with the ids of their labels, and of images that show nothing of a detection task
    images.jsonl    with the path of the import, metadata, labels, and who found these right
    objects.jsonl   with box, metadata and labels
    points.jsonl    whatever else was noted

Everything is there, whatever becomes of the images themselves. Times are unix milliseconds.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from appliance.datasets.images import Images
from appliance.datasets.pages import Cut, Page
from appliance.datasets.records import Dataset, Given, Side
from appliance.errors import NotFound

T = TypeVar("T")

Lines = AsyncIterator[bytes]

_PAGE = 500
_SIDES: tuple[Side, ...] = ("recognition", "detection")


def written(images: Images, dataset: Dataset) -> dict[str, Lines]:
    """Each file by its name, to be gone through in turn. They raise SealBroken for a row that was changed."""
    return {
        "labels.jsonl": _labels(images, dataset),
        "tasks.jsonl": _tasks(images, dataset),
        "images.jsonl": _images(images, dataset),
        "objects.jsonl": _objects(images, dataset),
        "points.jsonl": _points(images, dataset),
    }


async def _labels(images: Images, dataset: Dataset) -> Lines:
    labels = images.annotations.labels
    for side in _SIDES:
        async for page in _pages(partial(labels.page, dataset, side)):
            following = await labels.following(page)
            for label in page:
                yield _line(_shown(label) | {"following_tasks": following[label.key]})


async def _tasks(images: Images, dataset: Dataset) -> Lines:
    tasks, labels = images.annotations.tasks, images.annotations.labels
    for side in _SIDES:
        async for page in _pages(partial(tasks.page, dataset, side)):
            for task in page:
                taught = _pages(partial(labels.page, dataset, side, task=task.id))
                shown = _shown(task) | {
                    "labels": [label.id async for some in taught for label in some],
                    "negative_images": await tasks.negative_images(task),
                }
                yield _line(shown)


async def _images(images: Images, dataset: Dataset) -> Lines:
    async for page in images.sources.pages(dataset):
        for image, source in page:
            try:
                described, given = await images.annotations.gallery.get(dataset.customer, image.id)
                verified = await images.annotations.notes.verifications(dataset.customer, image.id)
            except NotFound:  # deleted meanwhile
                continue
            yield _line(
                _shown(described.image)
                | {"test": image.test, "real": image.real}
                | {"imported_as": None if source is None else source.name}
                | {"meta_data": described.meta_data, "labels": _given(given)}
                | {"verifications": [_shown(one) for one in verified]}
            )


async def _objects(images: Images, dataset: Dataset) -> Lines:
    async for page in _pages(partial(images.annotations.objects.page, dataset)):
        for one in page:
            refers = {"image": one.image.image.id, "label": one.label.id, "labels": _given(one.labels)}
            yield _line(_shown(one) | refers)


async def _points(images: Images, dataset: Dataset) -> Lines:
    async for page in _pages(partial(images.annotations.notes.points, dataset)):
        for point in page:
            yield _line(_shown(point))


async def _pages(page: Callable[[Cut], Awaitable[Page[T]]]) -> AsyncIterator[Sequence[T]]:
    after = None
    while True:
        found = await page(Cut(size=_PAGE, after=after))
        yield found.rows
        if found.after is None:
            return
        after = found.after


def _given(given: Sequence[Given]) -> list[dict[str, object]]:
    return [{"label": one.label.id, "name": one.label.name, "value": one.value} for one in given]


def _shown(row: object) -> dict[str, Any]:
    """Without where it lies, which counts the rows of all customers."""
    shown: dict[str, Any] = msgspec.to_builtins(row)
    return {name: value for name, value in shown.items() if name not in {"key", "place", "facet"}}


def _line(document: object) -> bytes:
    return msgspec.json.encode(document) + b"\n"
