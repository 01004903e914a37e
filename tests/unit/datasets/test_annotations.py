"""Tasks, labels, objects and notes: whose they are, what becomes of them, that none is readable at rest."""

import asyncio
import os
import struct
from pathlib import Path

import pytest

from appliance.accounts.audit import Entry, entries
from appliance.datasets import labels as labels_module
from appliance.datasets import notes, objects, tasks
from appliance.datasets.filters import Filter
from appliance.datasets.gallery import Change
from appliance.datasets.pages import Cut
from appliance.datasets.records import Box, Dataset, Image, Label
from appliance.datasets.words import sealed
from appliance.errors import ApplianceError, CapacityExceeded, InvalidInput, NotFound, StorageFailed, TooLarge
from appliance.ledger import Connection
from tests.storing import ACTOR, Stand, stand

BOX = Box(10, 20, 110, 220)
SECRETS = [
    *("secret task", "secret description", "secret label", "secret output", "#A1B2C3"),
    *("secret meta data", "secret box", "secret user", "secret point", "secret coordinates"),
]


async def default(one: Stand, name: str = "Alice") -> Dataset:
    return await one.datasets.default(await one.customer(name))


async def photo(one: Stand, dataset: Dataset) -> Image:
    return await one.store.put(ACTOR, dataset, os.urandom(2000))


async def label(one: Stand, dataset: Dataset, name: str = "label") -> Label:
    return await one.annotations.labels.add(ACTOR, dataset, "category", name)


async def box_label(one: Stand, dataset: Dataset, name: str = "box") -> Label:
    return await one.annotations.labels.add(ACTOR, dataset, "detection", name)


async def log(one: Stand, dataset: Dataset) -> list[Entry]:
    return await one.ledger.read(lambda connection: entries(connection, dataset.customer))


def everything(state: Path) -> bytes:
    return b"".join(path.read_bytes() for path in state.rglob("*") if path.is_file())


async def test_tasks_and_their_labels(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, owner = one.annotations, dataset.customer
        shapes = await part.tasks.add(ACTOR, dataset, "multi_class", "shapes", "what it is")
        boxes = await part.tasks.add(ACTOR, dataset, "detection", "boxes")
        round_, square = await label(one, dataset, "round"), await label(one, dataset, "square")
        for name in (round_, square, round_):
            shapes = await part.tasks.add_label(ACTOR, owner, shapes.id, name.id, side="recognition")
        assert shapes.labels == 2
        page = await part.labels.page(dataset, "recognition", Cut(), task=shapes.id)
        assert [(one.name, one.tasks) for one in page.rows] == [("round", 1), ("square", 1)]
        shapes = await part.tasks.remove_label(ACTOR, owner, shapes.id, round_.id, side="recognition")
        assert shapes.labels == 1
        for task, name, side in (
            (shapes, await box_label(one, dataset), "recognition"),
            (boxes, square, "detection"),
        ):
            with pytest.raises(NotFound):
                await part.tasks.add_label(ACTOR, owner, task.id, name.id, side=side)  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            await part.tasks.get(owner, boxes.id, "recognition")
        await part.tasks.delete(ACTOR, owner, shapes.id, "recognition")
        assert (await part.labels.get(owner, square.id, "recognition")).tasks == 0
        assert [entry.event for entry in await log(one, dataset)][-1] == "task.delete"


async def test_a_tagging_task_comes_with_its_negative_label(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        task = await one.annotations.tasks.add(ACTOR, dataset, "multi_label", "tags")
        [negative] = (await one.annotations.labels.page(dataset, "recognition", Cut(), task=task.id)).rows
        assert (negative.negative_for, negative.kind, negative.tasks) == (task.id, "tag", 1)
        await one.annotations.tasks.delete(ACTOR, dataset.customer, task.id, "recognition")
        left = await one.annotations.labels.get(dataset.customer, negative.id, "recognition")
        assert left.negative_for is None


async def test_names_repeat_and_are_found_by_any_part_in_any_case(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part = one.annotations
        for name in ("Straße", "STRASSE", "street", "Straße"):
            await label(one, dataset, name)
        await box_label(one, dataset, "Straße")
        found = await part.labels.page(dataset, "recognition", Cut(), search="strasse")
        assert [each.name for each in found.rows] == ["Straße", "STRASSE", "Straße"]
        first = await part.labels.page(dataset, "recognition", Cut(size=2), search="strasse")
        assert (first.count, len(first.rows)) == (3, 2)
        rest = await part.labels.page(
            dataset, "recognition", Cut(number=2, size=2, after=first.after), search="strasse"
        )
        by_number = await part.labels.page(dataset, "recognition", Cut(number=2, size=2), search="strasse")
        assert [each.name for each in rest.rows] == [each.name for each in by_number.rows] == ["Straße"]
        assert rest.after is None
        await part.tasks.add(ACTOR, dataset, "regression", "How Wide")
        assert len((await part.tasks.page(dataset, "recognition", Cut(), "wide")).rows) == 1
        assert (await part.tasks.page(dataset, "recognition", Cut(), "narrow")).count == 0


async def test_labels_of_images_and_their_values(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        gallery, owner = one.annotations.gallery, dataset.customer
        image, width = await photo(one, dataset), await label(one, dataset, "width")
        await gallery.add_label(ACTOR, owner, image.id, width.id, 1.5)
        _, [given] = await gallery.add_label(ACTOR, owner, image.id, width.id)
        assert (given.label.name, given.value, given.label.images) == ("width", 1.5, 1)
        _, [given] = await gallery.change_value(ACTOR, owner, image.id, width.id, 2)
        assert given.value == 2
        for low, high, count in ((None, 2.0, 1), (2.0, 2.0, 1), (2.1, None, 0)):
            wanted = Filter(values={width.id: (low, high)})
            assert (await gallery.page(dataset, wanted, Cut())).count == count
        described, given_none = await gallery.remove_label(ACTOR, owner, image.id, width.id)
        assert (described.image, given_none) == (image, [])
        with pytest.raises(NotFound, match="no such label"):
            await gallery.change_value(ACTOR, owner, image.id, width.id, 3)
        changed = [entry for entry in await log(one, dataset) if entry.event == "image.update"]
        assert {entry.subject for entry in changed} == {image.id}
        assert len(changed) == 4


async def test_many_images_are_changed_at_once_or_not_at_all(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        gallery, owner = one.annotations.gallery, dataset.customer
        images = [await photo(one, dataset) for _ in range(3)]
        old, new = await label(one, dataset, "old"), await label(one, dataset, "new")
        ids = [image.id for image in images]
        assert await gallery.modify(ACTOR, owner, ids, Change(add=[old.id], test=True)) == 3
        with pytest.raises(NotFound):
            await gallery.modify(ACTOR, owner, [*ids, "nobody"], Change(add=[new.id], real=True))
        assert (await gallery.page(dataset, Filter(real=True), Cut())).count == 0
        wanted = Filter(labels=[old.id])
        change = Change(add=[new.id], remove=[old.id], test=False, real=True)
        assert await gallery.modify_all(ACTOR, dataset, wanted, change) == 3
        assert (await gallery.page(dataset, wanted, Cut())).count == 0
        page = await gallery.page(dataset, Filter(labels=[new.id], real=True, test=False), Cut())
        assert [each.image.id for each in page.rows] == ids
        assert await gallery.modify_all(ACTOR, dataset, wanted, change) == 0


async def test_a_change_of_all_goes_on_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.datasets.gallery._AT_ONCE", 2)
    async with stand(tmp_path) as one:
        dataset = await default(one)
        images = [await photo(one, dataset) for _ in range(5)]
        name = await label(one, dataset)
        await one.annotations.gallery.modify(
            ACTOR, dataset.customer, [image.id for image in images], Change(add=[name.id])
        )
        change = Change(remove=[name.id], test=True)
        assert await one.annotations.gallery.modify_all(ACTOR, dataset, Filter(labels=[name.id]), change) == 5
        assert (await one.annotations.gallery.page(dataset, Filter(test=True), Cut())).count == 5
        steps = [
            entry.details["images"] for entry in await log(one, dataset) if entry.event == "image.update"
        ]
        assert steps == [5, 2, 2, 1]


async def test_metadata_of_images(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        image = await one.store.put(ACTOR, dataset, b"x", b'{"a": 1}', test=True)
        described, _ = await one.annotations.gallery.get(dataset.customer, image.id)
        assert (described.meta_data, described.image.test, described.image.real) == ({"a": 1}, True, False)
        put = one.annotations.gallery.set_meta_data
        described, _ = await put(ACTOR, dataset.customer, image.id, {"b": [None]})
        assert described.meta_data == {"b": [None]}
        with pytest.raises(TooLarge):
            await put(ACTOR, dataset.customer, image.id, {"b": "x" * 70_000})


async def test_boxes_that_were_in_clear_are_sealed_by_the_next_start(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        image, car = await photo(one, dataset), await box_label(one, dataset)
        described: list[dict[str, object]] = [{}, {"plate": "secret"}]
        made = [
            await one.annotations.objects.add(
                ACTOR, dataset.customer, image.id, label=car.id, box=BOX, meta_data=meta_data
            )
            for meta_data in described
        ]
        keys = one.datasets.keys(dataset)
        as_before = [None, sealed(keys, "object", made[1].id, made[1].meta_data)]

        def unseal(connection: Connection) -> None:
            for found, words in zip(made, as_before, strict=True):
                connection.execute("UPDATE objects SET words = ? WHERE key = ?", (words, found.key))
                connection.execute("INSERT INTO clear_boxes VALUES (?, 10, 20, 110.5, 220)", (found.key,))

        await one.ledger.write(unseal)
    async with stand(tmp_path) as again:
        for found in made:
            now = await again.annotations.objects.get(dataset.customer, found.id)
            assert now.box == Box(10, 20, 110.5, 220)
            assert now.meta_data == found.meta_data
        assert await again.ledger.read(lambda c: c.execute("SELECT count(*) FROM clear_boxes").get) == 0


async def test_objects_and_their_boxes(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, owner = one.annotations.objects, dataset.customer
        image, car = await photo(one, dataset), await box_label(one, dataset, "car")
        truck, red = await box_label(one, dataset, "truck"), await label(one, dataset, "red")
        made = await part.add(ACTOR, owner, image.id, label=car.id, box=BOX, meta_data={"n": 1})
        assert (made.box, made.label.name, made.meta_data, made.image.image) == (BOX, "car", {"n": 1}, image)
        assert all(isinstance(side, int) for side in (made.box.xmin, made.box.ymax))
        other = await part.add(ACTOR, owner, image.id, label=car.id, box=Box(0, 0, 640, 0.5))
        for box in (
            *(Box(0, 0, 641, 480), Box(-1, 0, 9, 9), Box(5, 5, 5, 9), Box(0, 0, float("nan"), 9)),
            *(Box(0, 9, 9, 8), Box(0, 0, 9, float("inf"))),
        ):
            with pytest.raises(InvalidInput, match="640 x 480"):
                await part.add(ACTOR, owner, image.id, label=car.id, box=box)
        changed = await part.change(
            ACTOR, owner, made.id, image=image.id, label=truck.id, box=Box(1, 2, 3, 4)
        )
        assert (changed.label.name, changed.box, changed.meta_data) == ("truck", Box(1, 2, 3, 4), {"n": 1})
        with pytest.raises(InvalidInput, match="stays"):
            await part.change(ACTOR, owner, made.id, image=(await photo(one, dataset)).id)
        red_truck = await part.add_label(ACTOR, owner, made.id, red.id, 0.5)
        assert [(each.label.name, each.value) for each in red_truck.labels] == [("red", 0.5)]
        await part.change_value(ACTOR, owner, made.id, red.id, 0.7)
        with pytest.raises(NotFound, match="no such label"):
            await part.change_value(ACTOR, owner, other.id, red.id, 0.7)
        counts = {
            "all": await part.page(dataset, Cut()),
            "of the image": await part.page(dataset, Cut(), image=image.id),
            "cars": await part.page(dataset, Cut(), label=car.id),
            "red": await part.page(dataset, Cut(), labels=[red.id]),
            "red trucks": await part.page(dataset, Cut(), label=truck.id, labels=[red.id], image=image.id),
            "red cars": await part.page(dataset, Cut(), label=car.id, labels=[red.id]),
        }
        expected = [2, 2, 1, 1, 1, 0]
        assert [page.count for page in counts.values()] == [len(page.rows) for page in counts.values()]
        assert [page.count for page in counts.values()] == expected
        first = await part.page(dataset, Cut(size=1))
        last = await part.page(dataset, Cut(size=1, after=first.after))
        assert [page.rows[0].id for page in (first, last)] == [made.id, other.id]
        assert (await part.remove_label(ACTOR, owner, made.id, red.id)).labels == ()
        await part.delete(ACTOR, owner, made.id)
        with pytest.raises(NotFound):
            await part.delete(ACTOR, owner, made.id)
        by_box = await one.annotations.gallery.page(dataset, Filter(objects=[car.id]), Cut())
        assert [each.image.id for each in by_box.rows] == [image.id]


async def test_an_image_takes_along_what_was_written_about_it(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, owner = one.annotations, dataset.customer
        image, name, car = await photo(one, dataset), await label(one, dataset), await box_label(one, dataset)
        await part.gallery.add_label(ACTOR, owner, image.id, name.id)
        made = await part.objects.add(ACTOR, owner, image.id, label=car.id, box=BOX)
        verified = await part.notes.verify(ACTOR, owner, image.id, "anna")
        await part.notes.add_point(ACTOR, dataset, image.id, None, [1, 2])
        task = await part.tasks.add(ACTOR, dataset, "detection", "cars")
        assert (await part.tasks.add_negative_image(ACTOR, owner, task.id, image.id)).negatives == 1
        await one.store.delete(ACTOR, image)
        for gone in (
            part.gallery.get(owner, image.id),
            part.objects.get(owner, made.id),
            part.notes.unverify(ACTOR, owner, verified.id),
            part.notes.verifications(owner, image.id),
        ):
            with pytest.raises(NotFound):
                await gone
        assert (await part.labels.get(owner, name.id, "recognition")).images == 0
        assert (await part.labels.get(owner, car.id, "detection")).objects == 0
        assert (await part.tasks.get(owner, task.id, "detection")).negatives == 0
        assert (await part.notes.points(dataset, Cut())).count == 0
        assert (await default(one)).images == 0


async def test_verifications_count_once_for_a_user(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, owner = one.annotations.notes, dataset.customer
        image = await photo(one, dataset)
        first = await part.verify(ACTOR, owner, image.id, "7")
        assert await part.verify(ACTOR, owner, image.id, "7") == first
        second = await part.verify(ACTOR, owner, image.id, 7)
        assert await part.verifications(owner, image.id) == [first, second]
        assert (await one.store.get(owner, image.id)).verifications == 2
        assert (await one.annotations.gallery.page(dataset, Filter(verified=2), Cut())).count == 1
        await part.unverify(ACTOR, owner, first.id)
        assert (await one.store.get(owner, image.id)).verifications == 1
        with pytest.raises(InvalidInput):
            await part.verify(ACTOR, owner, image.id, "")
        with pytest.raises(InvalidInput):
            await part.verify(ACTOR, owner, image.id, "x" * 300)


async def test_points_of_images_and_of_the_whole(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, image = one.annotations.notes, await photo(one, dataset)
        point = await part.add_point(ACTOR, dataset, image.id, "eye", {"x": 1})
        loose = await part.add_point(ACTOR, dataset, None, None, None)
        assert list((await part.points(dataset, Cut())).rows) == [point, loose]
        assert list((await part.points(dataset, Cut(), image.id)).rows) == [point]
        await part.delete_point(ACTOR, dataset.customer, point.id)
        assert list((await part.points(dataset, Cut())).rows) == [loose]
        with pytest.raises(TooLarge):
            await part.add_point(ACTOR, dataset, None, None, "x" * 70_000)


async def test_a_label_is_deleted_in_steps_with_all_that_it_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels_module, "_AT_ONCE", 2)
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, owner = one.annotations, dataset.customer
        name, car = await label(one, dataset), await box_label(one, dataset)
        for image in (images := [await photo(one, dataset) for _ in range(5)]):
            await part.gallery.add_label(ACTOR, owner, image.id, name.id)
            made = await part.objects.add(ACTOR, owner, image.id, label=car.id, box=BOX)
            await part.objects.add_label(ACTOR, owner, made.id, name.id)
        await part.labels.delete(ACTOR, owner, name.id, "recognition")
        assert [each.labels for each in (await part.objects.page(dataset, Cut())).rows] == [()] * 5
        assert (await part.gallery.get(owner, images[4].id))[1] == []
        await part.labels.delete(ACTOR, owner, car.id, "detection")
        assert (await part.objects.page(dataset, Cut())).count == 0
        assert (await default(one)).images == 5
        left = await one.ledger.read(lambda connection: connection.execute("SELECT count(*) FROM labels").get)
        assert left == 0
        with pytest.raises(NotFound):
            await part.labels.delete(ACTOR, owner, name.id, "recognition")


async def test_a_wipe_takes_the_images_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_WIPED_AT_ONCE", 2)
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, owner = one.annotations, dataset.customer
        name, images = await label(one, dataset), [await photo(one, dataset) for _ in range(4)]
        for image in images[:3]:
            await part.gallery.add_label(ACTOR, owner, image.id, name.id)
        await part.labels.wipe(ACTOR, owner, name.id)
        assert [image.id for image in await one.store.list(dataset)] == [images[3].id]
        assert len([path for path in (tmp_path / "images").glob("*/*") if path.is_file()]) == 1
        events = [entry.event.value for entry in await log(one, dataset)]
        assert (events.count("label.wipe"), events.count("image.delete")) == (1, 3)


async def test_a_wipe_that_was_interrupted_goes_on_after_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        name, image = await label(one, dataset), await photo(one, dataset)
        await one.annotations.gallery.add_label(ACTOR, dataset.customer, image.id, name.id)

        async def interrupted(*_: object) -> None:
            raise StorageFailed("interrupted")

        monkeypatch.setattr(one.store, "delete_all", interrupted)
        with pytest.raises(StorageFailed):
            await one.annotations.labels.wipe(ACTOR, dataset.customer, name.id)
        with pytest.raises(NotFound):  # out of sight all the same
            await one.annotations.labels.get(dataset.customer, name.id, "recognition")
        assert (await one.annotations.gallery.get(dataset.customer, image.id))[1] == []
    monkeypatch.undo()
    async with stand(tmp_path) as again:
        await asyncio.gather(*again.annotations.labels._under_way)
        assert await again.store.list(await default(again)) == []
        left = await again.ledger.read(
            lambda connection: connection.execute("SELECT count(*) FROM labels").get
        )
        assert left == 0


async def test_nothing_of_one_dataset_meets_what_is_of_another(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        owner, part = dataset.customer, one.annotations
        beside = await one.datasets.add(ACTOR, owner, "beside")
        image, name, task = (
            await photo(one, dataset),
            await label(one, beside),
            await part.tasks.add(ACTOR, beside, "multi_class", "task"),
        )
        car, here = await box_label(one, beside), await label(one, dataset)
        boxes = await part.tasks.add(ACTOR, beside, "detection", "boxes")
        for refused in (
            part.gallery.add_label(ACTOR, owner, image.id, name.id),
            part.gallery.modify(ACTOR, owner, [image.id], Change(add=[name.id])),
            part.gallery.page(dataset, Filter(labels=[name.id]), Cut()),
            part.objects.add(ACTOR, owner, image.id, label=car.id, box=BOX),
            part.tasks.add_label(ACTOR, owner, task.id, here.id, side="recognition"),
            part.tasks.add_negative_image(ACTOR, owner, boxes.id, image.id),
            part.labels.add_task(ACTOR, owner, here.id, task.id, side="recognition"),
            part.notes.add_point(ACTOR, beside, image.id, None, 1),
        ):
            with pytest.raises(InvalidInput, match="another workspace"):
                await refused


async def test_what_is_another_customers_is_not_there(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        owner, part = dataset.customer, one.annotations
        image, name, car = await photo(one, dataset), await label(one, dataset), await box_label(one, dataset)
        task = await part.tasks.add(ACTOR, dataset, "multi_class", "task")
        made = await part.objects.add(ACTOR, owner, image.id, label=car.id, box=BOX)
        verified = await part.notes.verify(ACTOR, owner, image.id, "anna")
        point = await part.notes.add_point(ACTOR, dataset, None, None, 1)
        bobs = await default(one, "Bob")
        bob, his = bobs.customer, await photo(one, bobs)
        for hidden in (
            part.tasks.get(bob, task.id, "recognition"),
            part.tasks.delete(ACTOR, bob, task.id, "recognition"),
            part.labels.get(bob, name.id, "recognition"),
            part.labels.delete(ACTOR, bob, name.id, "recognition"),
            part.labels.wipe(ACTOR, bob, name.id),
            part.labels.page(bobs, "recognition", Cut(), task=task.id),
            part.gallery.get(bob, image.id),
            part.gallery.add_label(ACTOR, bob, his.id, name.id),
            part.gallery.set_meta_data(ACTOR, bob, image.id, {}),
            part.gallery.modify(ACTOR, bob, [image.id], Change(test=True)),
            part.gallery.page(bobs, Filter(labels=[name.id]), Cut()),
            part.objects.get(bob, made.id),
            part.objects.add(ACTOR, bob, his.id, label=car.id, box=BOX),
            part.objects.change(ACTOR, bob, made.id, box=BOX),
            part.objects.page(bobs, Cut(), image=image.id),
            part.notes.verify(ACTOR, bob, image.id, "bob"),
            part.notes.unverify(ACTOR, bob, verified.id),
            part.notes.delete_point(ACTOR, bob, point.id),
            part.notes.add_point(ACTOR, bobs, image.id, None, 1),
        ):
            with pytest.raises(NotFound):
                await hidden
        assert (await part.labels.page(bobs, "recognition", Cut())).count == 0


async def test_following_tasks(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, owner = one.annotations, dataset.customer
        car, task = (
            await box_label(one, dataset),
            await part.tasks.add(ACTOR, dataset, "multi_class", "colour"),
        )
        found = await part.labels.add_task(ACTOR, owner, car.id, task.id, side="detection")
        assert await part.labels.following([found]) == {car.key: [task.id]}
        await part.labels.remove_task(ACTOR, owner, car.id, task.id, side="detection")
        assert await part.labels.following([found]) == {car.key: []}


async def test_there_is_an_end_to_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, limit in (
        (tasks, "MAX_TASKS"),
        (tasks, "MAX_NEGATIVES"),
        (labels_module, "MAX_LABELS"),
        (objects, "MAX_OBJECTS"),
        (objects, "MAX_LABELS"),
        (notes, "MAX_VERIFICATIONS"),
        (notes, "MAX_POINTS"),
        (notes, "MAX_LOOSE_POINTS"),
    ):
        monkeypatch.setattr(module, limit, 2)
    monkeypatch.setattr("appliance.datasets.gallery.MAX_LABELS", 1)
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, owner = one.annotations, dataset.customer
        car, name = await box_label(one, dataset), await label(one, dataset)
        task = await part.tasks.add(ACTOR, dataset, "detection", "t")
        image = await photo(one, dataset)
        await part.tasks.add(ACTOR, dataset, "multi_class", "u")
        made = await part.objects.add(ACTOR, owner, image.id, label=car.id, box=BOX)
        await part.objects.add(ACTOR, owner, image.id, label=car.id, box=BOX)
        for user in (1, 2):
            await part.notes.verify(ACTOR, owner, image.id, user)
            await part.notes.add_point(ACTOR, dataset, image.id, None, user)
            await part.notes.add_point(ACTOR, dataset, None, None, user)
            await part.tasks.add_negative_image(ACTOR, owner, task.id, (await photo(one, dataset)).id)
        for full in (
            part.tasks.add(ACTOR, dataset, "multi_class", "v"),
            label(one, dataset),
            part.gallery.add_label(ACTOR, owner, image.id, name.id),
            part.gallery.modify(ACTOR, owner, [image.id], Change(add=[name.id])),
            part.objects.add(ACTOR, owner, image.id, label=car.id, box=BOX),
            part.notes.verify(ACTOR, owner, image.id, 3),
            part.notes.add_point(ACTOR, dataset, image.id, None, 3),
            part.notes.add_point(ACTOR, dataset, None, None, 3),
            part.tasks.add_negative_image(ACTOR, owner, task.id, image.id),
        ):
            with pytest.raises(CapacityExceeded):
                await full
        assert (await part.objects.add_label(ACTOR, owner, made.id, name.id)).labels


@pytest.mark.parametrize("name", ["", "   ", "x" * 201])
async def test_what_is_no_name(tmp_path: Path, name: str) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        for refused in (
            one.annotations.tasks.add(ACTOR, dataset, "multi_class", name),
            label(one, dataset, name),
        ):
            with pytest.raises(InvalidInput, match="name"):
                await refused


async def test_what_is_no_text_and_no_colour(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        add, dataset = one.annotations.labels.add, await default(one)
        for color in ("red", "#12345", "#12345g", "#1234567"):
            with pytest.raises(InvalidInput, match="#RRGGBB"):
                await add(ACTOR, dataset, "detection", "x", color=color)
        assert (await add(ACTOR, dataset, "detection", "x")).color == "#FFFFFF"
        assert (await add(ACTOR, dataset, "category", "x", color="red")).color is None
        with pytest.raises(TooLarge):
            await add(ACTOR, dataset, "category", "x", description="x" * 5000)


async def test_nobody_reads_at_rest_what_was_written(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        part, owner = one.annotations, dataset.customer
        await part.tasks.add(ACTOR, dataset, "multi_class", SECRETS[0], SECRETS[1])
        car = await part.labels.add(
            ACTOR, dataset, "detection", SECRETS[2], output_name=SECRETS[3], color=SECRETS[4]
        )
        image = await photo(one, dataset)
        await part.gallery.set_meta_data(ACTOR, owner, image.id, {"x": SECRETS[5]})
        box = Box(1.0625, 2.125, 333.4375, 444.9375)
        await part.objects.add(ACTOR, owner, image.id, label=car.id, box=box, meta_data={"x": SECRETS[6]})
        await part.notes.verify(ACTOR, owner, image.id, SECRETS[7])
        await part.notes.add_point(ACTOR, dataset, image.id, SECRETS[8], SECRETS[9])
        kept = everything(tmp_path)
        assert image.id.encode() in kept
        sides = [struct.pack(">d", side) for side in (box.xmin, box.ymin, box.xmax, box.ymax)]
        secrets = [*(secret.encode() for secret in SECRETS), *sides, b"333.4375", b"444.9375"]
        for secret in secrets:
            assert secret not in kept, secret
    kept = everything(tmp_path)
    assert not any(secret in kept for secret in secrets)


async def test_a_sealed_word_opens_in_its_own_row_alone(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset = await default(one)
        first, second = await label(one, dataset, "first"), await label(one, dataset, "second")
        await one.ledger.write(
            lambda connection: connection.execute(
                "UPDATE labels SET words = (SELECT words FROM labels WHERE key = ?) WHERE key = ?",
                (first.key, second.key),
            ).fetchall()
        )
        with pytest.raises(ApplianceError, match="does not open"):
            await one.annotations.labels.get(dataset.customer, second.id, "recognition")


async def test_an_erased_dataset_takes_along_all_that_was_written(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        owner = await one.customer()
        dataset = await one.datasets.add(ACTOR, owner, "short-lived")
        part = one.annotations
        image, name, car = await photo(one, dataset), await label(one, dataset), await box_label(one, dataset)
        task = await part.tasks.add(ACTOR, dataset, "multi_label", "tags")
        await part.gallery.add_label(ACTOR, owner, image.id, name.id)
        await part.objects.add(ACTOR, owner, image.id, label=car.id, box=BOX)
        await part.notes.verify(ACTOR, owner, image.id, 1)
        await part.notes.add_point(ACTOR, dataset, None, None, 1)
        await one.datasets.erase(ACTOR, dataset)
        for gone in (
            part.tasks.get(owner, task.id, "recognition"),
            part.labels.get(owner, name.id, "recognition"),
            part.gallery.get(owner, image.id),
            label(one, dataset),
        ):
            with pytest.raises(NotFound):
                await gone
        await asyncio.gather(*one.datasets._erasing)
        tables = (
            *("tasks", "labels", "task_labels", "image_labels", "objects", "verifications", "points"),
            *("dataset_counts", "label_counts", "images"),
        )
        for table in tables:
            left = await one.ledger.read(
                lambda connection, table=table: connection.execute(f"SELECT count(*) FROM {table}").get  # type: ignore[misc]
            )
            assert left == 0, table
