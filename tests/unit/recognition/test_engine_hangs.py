"""A model that hangs over one image: who has to wait for it, and who has not."""

import asyncio
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from appliance.config import Recognition
from appliance.errors import Overloaded, WorkerLost
from appliance.metrics import Registry
from appliance.recognition.bundles import Bundle
from appliance.recognition.engine import Engine
from tests.unit.recognition.small_models import SIZE, endless, network

Pixels = npt.NDArray[np.uint8]

PHOTO = np.zeros((SIZE, SIZE, 3), np.uint8)
FATAL = np.full_like(PHOTO, 255)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return network(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def hanging(tmp_path: Path) -> Bundle:
    return endless(tmp_path, trapped=True)


async def test_who_has_a_model_hang_waits_with_it_alone_and_the_others_do_not(
    bundle: Bundle, hanging: Bundle
) -> None:
    now = 0.0
    async with Engine(Recognition(infer_seconds=2, max_batch=2), Registry(), clock=lambda: now) as engine:
        await engine.load(bundle)
        await engine.load(hanging)

        async def ask(one: Bundle, pixels: Pixels, customer: str) -> object:
            try:
                return await engine.infer(one, pixels, ("logits",), customer=customer, seconds=120)
            except (WorkerLost, Overloaded) as error:
                return error

        many = [asyncio.ensure_future(ask(hanging, FATAL, "a")) for _ in range(8)]
        assert isinstance(await ask(bundle, PHOTO, "b"), dict)
        outcomes = await asyncio.gather(*many)
        assert sorted(type(one).__name__ for one in outcomes) == ["Overloaded"] * 7 + ["WorkerLost"]
        for customer, one in (("a", bundle), ("b", bundle), ("b", hanging)):
            assert isinstance(await ask(one, PHOTO, customer), dict)
        assert engine.devices()[0].restarts == 2
        refusal = await ask(hanging, PHOTO, "a")
        assert isinstance(refusal, Overloaded)
        assert refusal.retry_after == 60

        now += 60
        assert isinstance(await ask(hanging, PHOTO, "a"), dict)
        assert isinstance(await ask(hanging, FATAL, "a"), WorkerLost)
        refusal = await ask(hanging, PHOTO, "a")
        assert isinstance(refusal, Overloaded)
        assert refusal.retry_after == 120
        assert isinstance(await ask(bundle, PHOTO, "a"), dict)
        assert engine.devices()[0].restarts == 3


async def test_who_hangs_up_before_the_hang_is_noticed_waits_all_the_same(
    bundle: Bundle, hanging: Bundle
) -> None:
    async with Engine(Recognition(infer_seconds=2), Registry(), clock=lambda: 0.0) as engine:
        await engine.load(bundle)
        await engine.load(hanging)
        for restarts in (1, 2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(engine.infer(hanging, FATAL, ("logits",), customer="a"), 0.1)
            assert (await engine.embed(bundle, PHOTO)).shape == (8,)
            assert engine.devices()[0].restarts == restarts
        with pytest.raises(Overloaded, match="ask it later"):
            await engine.infer(hanging, PHOTO, ("logits",), customer="a")
        await engine.infer(hanging, PHOTO, ("logits",), customer="b")
        await engine.infer(bundle, PHOTO, ("logits",), customer="a")


async def test_nobody_is_suspected_whose_image_the_worker_had_not_come_to(
    bundle: Bundle, hanging: Bundle
) -> None:
    async with Engine(Recognition(infer_seconds=2), Registry(), clock=lambda: 0.0) as engine:
        await engine.load(bundle)
        await engine.load(hanging)
        asked = asyncio.ensure_future(engine.infer(hanging, FATAL, ("logits",), customer="a"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.infer(bundle, PHOTO, ("logits",), customer="b"), 0.1)
        waiting = engine.start(bundle, PHOTO, ("logits",), customer="c")
        await engine.outcome(waiting)
        assert not waiting.alone
        assert not engine.start(bundle, PHOTO, ("logits",), customer="b").alone
        with pytest.raises(WorkerLost):
            await asked
