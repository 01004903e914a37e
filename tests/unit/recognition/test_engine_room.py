"""Who goes first, how much may wait, which models stay, and what several devices do for each other."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from appliance.config import MIB, Recognition
from appliance.errors import NotInstalled, Overloaded
from appliance.metrics import Registry
from appliance.recognition.bundles import Bundle, read
from appliance.recognition.engine import Engine, Priority
from tests.unit.recognition.small_models import SIZE, network
from tests.unit.workers.waiting import until

Pixels = npt.NDArray[np.uint8]
LOGITS = ("logits",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return network(folder)


@asynccontextmanager
async def serving(*bundles: Bundle, **settings: Any) -> AsyncIterator[Engine]:
    async with Engine(Recognition(**settings), Registry()) as engine:
        for bundle in bundles:
            await engine.load(bundle)
        yield engine


def photos(count: int, seed: int = 0) -> list[Pixels]:
    return list(np.random.default_rng(seed).integers(0, 250, (count, SIZE, SIZE, 3), np.uint8))


def process(engine: Engine, number: int = 0) -> psutil.Process:
    return psutil.Process(engine._devices[number].worker.pid)


def queued(engine: Engine) -> int:
    return sum(device.queued for device in engine.devices())


async def test_people_go_before_bulk_and_bulk_before_training(bundle: Bundle) -> None:
    ended: list[Priority] = []

    async def ask(engine: Engine, priority: Priority) -> None:
        await engine.infer(bundle, photos(1)[0], LOGITS, priority=priority)
        ended.append(priority)

    async with serving(bundle, max_batch=1) as engine:
        process(engine).suspend()
        async with asyncio.TaskGroup() as group:
            for priority in (Priority.TRAINING, Priority.BULK, Priority.INTERACTIVE):
                for _ in range(3):
                    group.create_task(ask(engine, priority))
                await until(lambda: queued(engine) % 3 == 0 and queued(engine) > 0)
            await until(lambda: queued(engine) == 9)
            process(engine).resume()
    # One of the first that came was with the worker already.
    assert ended == [
        Priority.TRAINING,
        *[Priority.INTERACTIVE] * 3,
        *[Priority.BULK] * 3,
        *[Priority.TRAINING] * 2,
    ]


async def test_bulk_leaves_slots_for_people(bundle: Bundle) -> None:
    async with serving(bundle, max_batch=4) as engine:
        process(engine).suspend()
        picture = photos(1)[0]
        bulk = [
            asyncio.ensure_future(engine.infer(bundle, picture, LOGITS, priority=Priority.BULK))
            for _ in range(20)
        ]
        await until(lambda: queued(engine) == 20)
        assert len(engine._devices[0]._running) == 4
        people = [asyncio.ensure_future(engine.infer(bundle, picture, LOGITS)) for _ in range(4)]
        await until(lambda: queued(engine) == 24)
        assert len(engine._devices[0]._running) == 8
        process(engine).resume()
        await asyncio.gather(*bulk, *people)


async def test_one_customer_at_full_load_leaves_another_its_share(bundle: Bundle) -> None:
    ended: list[str] = []
    picture = photos(1)[0]

    async def ask(engine: Engine, customer: str) -> None:
        await engine.infer(bundle, picture, LOGITS, customer=customer)
        ended.append(customer)

    async with serving(bundle, max_batch=4, queue=32) as engine:
        process(engine).suspend()
        async with asyncio.TaskGroup() as group:
            for _ in range(32):
                group.create_task(ask(engine, "flood"))
            await until(lambda: queued(engine) == 32)
            with pytest.raises(Overloaded, match="as many as the queue holds"):
                await engine.infer(bundle, picture, LOGITS, customer="flood")
            engine.check_room("little")
            for _ in range(3):
                group.create_task(ask(engine, "little"))
            await until(lambda: queued(engine) == 35)
            process(engine).resume()
        assert engine._devices[0].room.taken == engine._devices[0].bytes.taken == 0
    # Two batches lay in the slots already; from there on they take turns, and who comes has the first.
    assert [number for number, one in enumerate(ended) if one == "little"] == [8, 10, 12]


async def test_the_queue_is_bounded_in_bytes(bundle: Bundle, folder: Path) -> None:
    async with serving(bundle, queue_bytes=MIB, queue=10_000) as engine:
        process(engine).suspend()
        fits = MIB // photos(1)[0].nbytes
        accepted = [asyncio.ensure_future(engine.embed(bundle, photo)) for photo in photos(fits)]
        await until(lambda: queued(engine) == fits)
        with pytest.raises(Overloaded, match="memory"):
            await engine.embed(bundle, photos(1)[0])
        process(engine).resume()
        await asyncio.gather(*accepted)
        assert engine._devices[0].bytes.taken == 0


async def test_a_request_that_nobody_came_to_in_time_is_refused_as_overload(bundle: Bundle) -> None:
    async with serving(bundle, max_batch=1) as engine:
        process(engine).suspend()
        running = [asyncio.ensure_future(engine.embed(bundle, photo)) for photo in photos(2)]
        await until(lambda: queued(engine) == 2)
        with pytest.raises(Overloaded, match=r"within 0\.05 s"):
            await engine.infer(bundle, photos(1)[0], LOGITS, seconds=0.05)
        assert queued(engine) == 2
        process(engine).resume()
        await asyncio.gather(*running)


async def test_models_make_room_for_each_other(folder: Path) -> None:
    models = [
        replace(network(folder, f"model {number}", seed=number), kind="classifier") for number in range(3)
    ]
    pinned = replace(network(folder, "pinned", seed=7), kind="classifier")
    backbone = network(folder, "backbone", seed=8)
    async with serving(backbone, pinned, memory_bytes=1, pinned=("pinned",)) as engine:
        for model in models:
            await engine.load(model)
            assert engine.loaded(model)
        assert [engine.loaded(model) for model in models] == [False, False, True]
        assert engine.loaded(backbone)
        assert engine.loaded(pinned)
        stay = [engine._models[one.name, "1"].bytes for one in (backbone, pinned)]
        assert engine.pinned_bytes() == sum(stay) > 0
        before = {}
        for photo in photos(3):
            for model in models:
                answer = (await engine.infer(model, photo, LOGITS))["logits"]
                assert engine.loaded(model)
                assert sum(engine.loaded(other) for other in models) == 1
                again = (await engine.infer(model, photo, LOGITS))["logits"]
                assert np.array_equal(answer, again)
                before[model.name] = answer
        assert len({answer.tobytes() for answer in before.values()}) == 3
        # All at once, each needing the room of the others: everyone is answered.
        asked = [engine.infer(model, photo, LOGITS) for photo in photos(4) for model in models]
        assert len(await asyncio.gather(*asked)) == 12
        await engine.unload(models[0])
        with pytest.raises(NotInstalled):
            await engine.infer(models[0], photos(1)[0], LOGITS)


async def test_what_waits_for_models_to_be_loaded_is_bounded_in_bytes(folder: Path) -> None:
    models = [
        replace(network(folder, f"evicted {number}", seed=number), kind="classifier") for number in range(3)
    ]
    async with serving(*models, memory_bytes=1, queue_bytes=MIB, queue=10_000) as engine:
        process(engine).suspend()
        fits = MIB // photos(1)[0].nbytes
        accepted = [
            asyncio.ensure_future(engine.infer(models[number % 2], photo, LOGITS))
            for number, photo in enumerate(photos(fits))
        ]
        await until(lambda: sum(len(model.waiting) for model in engine._models.values()) == fits)
        for model in models[:2]:
            with pytest.raises(Overloaded, match="memory"):
                await engine.infer(model, photos(1)[0], LOGITS)
        process(engine).resume()
        await asyncio.gather(*accepted)


async def test_a_worker_that_dies_while_a_model_comes_back_costs_nobody_an_answer(folder: Path) -> None:
    models = [
        replace(network(folder, f"coming {number}", seed=number), kind="classifier") for number in range(2)
    ]
    async with serving(*models, memory_bytes=1) as engine:
        process(engine).suspend()
        (photo,) = photos(1)
        waiting = asyncio.ensure_future(engine.infer(models[0], photo, LOGITS))
        await until(lambda: len(engine._models[models[0].name, "1"].waiting) == 1)
        process(engine).kill()
        answer = (await waiting)["logits"]
        assert np.array_equal(answer, (await engine.infer(models[0], photo, LOGITS))["logits"])


async def test_a_budget_keeps_what_was_used_last(folder: Path) -> None:
    models = [
        replace(network(folder, f"big {number}", seed=number), kind="classifier") for number in range(3)
    ]
    async with serving(*models) as engine:
        sizes = [engine._models[model.name, "1"].bytes for model in models]
    assert min(sizes) > 0
    async with serving(*models[:2], memory_bytes=1 << 40) as engine:
        await engine.infer(models[0], photos(1)[0], LOGITS)
        engine._models[models[1].name, "1"].bytes = MIB << 10
        taken = sum(model.bytes for model in engine._models.values())
        engine._config = engine._config.model_copy(update={"memory_bytes": taken})
        await engine.load(models[2])
        assert [engine.loaded(model) for model in models] == [True, False, True]


async def test_serving_goes_on_while_a_model_is_loaded(bundle: Bundle, folder: Path) -> None:
    heavy = network(folder, "heavy", layers=3000)
    async with serving(bundle) as engine:
        loading = asyncio.ensure_future(engine.load(heavy))
        answered = 0
        while not loading.done():
            await engine.embed(bundle, photos(1)[0])
            answered += 1
        await loading
        assert answered > 3
        assert (await engine.embed(heavy, photos(1)[0])).shape == (8,)


async def test_several_devices_share_the_work_and_stand_in_for_each_other(bundle: Bundle) -> None:
    async with serving(bundle, device="cpu", devices=2, max_batch=1) as engine:
        assert [device.name for device in engine.devices()] == ["cpu", "cpu:1"]
        expected = [await engine.embed(bundle, photo) for photo in photos(8)]
        for number in range(2):
            process(engine, number).suspend()
        asked = [asyncio.ensure_future(engine.embed(bundle, photo)) for photo in photos(8)]
        await until(lambda: queued(engine) == 8)
        assert [device.queued for device in engine.devices()] == [4, 4]
        process(engine, 1).resume()
        victim = process(engine, 0)
        victim.kill()
        for answer, before in zip(await asyncio.gather(*asked), expected, strict=True):
            assert np.allclose(answer, before, atol=1e-5)
        await until(lambda: all(device.state == "serving" for device in engine.devices()))
        assert [device.restarts for device in engine.devices()] == [1, 0]
        assert np.allclose(await engine.embed(bundle, photos(8)[0]), expected[0], atol=1e-5)


async def test_every_size_of_batch_leaves_no_more_than_the_largest(starter_bundle: Path) -> None:
    """Each size that ever ran keeps memory of its own: those that may run are few."""
    manifest = read(starter_bundle)
    bundle = replace(
        network(starter_bundle.parent, "stand-in"),
        name="starter",
        preprocessing=manifest.preprocessing,
        outputs=dict(manifest.outputs),
        model=starter_bundle / "model.onnx",
        sha256=hashlib.sha256((starter_bundle / "model.onnx").read_bytes()).hexdigest(),
    )
    picture = np.random.default_rng(0).integers(0, 256, bundle.preprocessing.shape, np.uint8)

    async def resident(*sizes: int) -> int:
        async with serving(bundle, max_batch=32) as engine:
            for size in sizes:
                await asyncio.gather(*(engine.embed(bundle, picture) for _ in range(size)))
            return int(process(engine).memory_info().rss)

    largest = await resident(32, 32)
    assert await resident(*range(1, 33)) <= 1.3 * largest
