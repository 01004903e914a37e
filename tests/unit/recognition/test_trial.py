"""A model that is tried before it is installed: what it shows there, and what it cannot do to the machine."""

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest

from appliance.errors import InvalidInput
from appliance.recognition.preprocessing import Preprocessing
from appliance.recognition.trial import Trial
from tests.unit.recognition.small_models import SIZE, endless, gigabytes, network, trap
from tests.unit.workers.waiting import until


async def test_a_sound_model_gives_what_the_session_itself_gives_locked_in(tmp_path: Path) -> None:
    bundle = network(tmp_path)
    photo = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    session = onnxruntime.InferenceSession(str(bundle.model), providers=["CPUExecutionProvider"])
    expected = dict(
        zip(bundle.outputs, session.run([*bundle.outputs], {"images": photo[np.newaxis]}), strict=True)
    )
    async with Trial(bundle) as trial:
        assert trial._worker.info["sandbox"].startswith("seccomp")
        for asked in (("logits",), ("embedding", "map")):
            answer = await trial.infer(bundle, photo, asked)
            assert tuple(answer) == asked
            for name, values in answer.items():
                assert values.shape == bundle.outputs[name]
                assert np.allclose(values, expected[name][0], atol=1e-6)


async def test_one_that_never_ends_or_takes_gigabytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"crashed its trial, or took 1 s of the processor") as refused:
        async with Trial(endless(tmp_path), cpu_seconds=1):
            pass
    assert "SIGXCPU" in str(refused.value.__cause__), "its own limit, and not the patience of who waits"
    with pytest.raises(InvalidInput, match=r"the model cannot be loaded: .*alloc"):
        async with Trial(gigabytes(tmp_path)):
            pass


async def test_one_that_does_not_give_what_is_promised_is_refused(tmp_path: Path) -> None:
    bundle = network(tmp_path)
    with pytest.raises(InvalidInput, match="output boxes is None for one image"):
        async with Trial(dataclasses.replace(bundle, outputs={"boxes": (4,)})):
            pass
    with pytest.raises(InvalidInput, match="pixels and outputs of one image exceed"):
        async with Trial(dataclasses.replace(bundle, preprocessing=Preprocessing(size=2048))):
            pass
    photo = np.zeros((SIZE, SIZE, 3), np.uint8)
    photo[0, 0, 0] = 255
    failing = trap(tmp_path)
    async with Trial(failing) as trial:
        with pytest.raises(InvalidInput, match="self-test: the model fails for this image"):
            await trial.infer(failing, photo, ("logits",))


async def test_it_ends_with_whoever_waits_for_it(tmp_path: Path) -> None:
    trial = Trial(endless(tmp_path))
    waiting = asyncio.ensure_future(trial.__aenter__())
    await until(lambda: bool(getattr(trial, "_worker", None) and trial._worker.serving))
    assert trial._worker.pid is not None
    process = psutil.Process(trial._worker.pid)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not process.is_running()
