"""The engine over a real device worker: what it answers, whatever else is going on."""

import asyncio
import dataclasses
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import psutil
import pytest

from appliance.config import Recognition
from appliance.errors import InvalidInput, ModelFailed, NotInstalled, Overloaded, WorkerLost, WorkerRefused
from appliance.metrics import Registry
from appliance.recognition.bundles import Bundle
from appliance.recognition.devices import Model
from appliance.recognition.engine import Engine
from appliance.recognition.slots import SLOT_BYTES, Loaded
from tests.unit.recognition.small_models import (
    CLASSES,
    SIZE,
    insatiable,
    made_for_one,
    network,
    trap,
    wrong_when_bright,
)
from tests.unit.workers.waiting import until

Pixels = npt.NDArray[np.uint8]


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


def process(engine: Engine) -> psutil.Process:
    return psutil.Process(engine._devices[0].worker.pid)


async def test_an_answer_is_what_the_session_itself_gives(bundle: Bundle) -> None:
    (photo,) = photos(1)
    session = onnxruntime.InferenceSession(str(bundle.model), providers=["CPUExecutionProvider"])
    names = ["map", "logits", "embedding"]
    expected = dict(zip(names, session.run(names, {"images": photo[np.newaxis]}), strict=True))
    async with serving(bundle) as engine:
        for asked in (("logits",), ("embedding", "map"), ("map", "embedding", "logits")):
            answer = await engine.infer(bundle, photo, asked)
            assert tuple(answer) == asked
            for name in asked:
                assert answer[name].dtype == np.float32
                assert answer[name].shape == bundle.outputs[name]
                assert np.allclose(answer[name], expected[name][0], atol=1e-6)
        embedding = await engine.embed(bundle, photo)
        assert embedding.shape == (8,)
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


async def test_a_shaped_memoryview_is_as_good_as_an_array(bundle: Bundle) -> None:
    (photo,) = photos(1)
    async with serving(bundle) as engine:
        shaped = memoryview(photo.tobytes()).cast("B", photo.shape)
        mirrored = photo[:, ::-1]
        assert np.array_equal(await engine.embed(bundle, shaped), await engine.embed(bundle, photo))
        assert np.array_equal(
            await engine.embed(bundle, mirrored), await engine.embed(bundle, np.ascontiguousarray(mirrored))
        )


async def test_the_same_answer_whoever_else_is_served(folder: Path, bundle: Bundle) -> None:
    other = network(folder, "other", seed=2, layers=1)
    pictures = photos(24)
    async with serving(bundle, other) as engine:
        alone = [await engine.infer(bundle, photo, ("logits", "embedding")) for photo in pictures]
        alone_other = [await engine.infer(other, photo, ("logits",)) for photo in pictures]
        together = await asyncio.gather(
            *(engine.infer(bundle, photo, ("logits", "embedding")) for photo in pictures),
            *(engine.infer(other, photo, ("logits",)) for photo in pictures),
            *(engine.infer(bundle, photo, ("map",)) for photo in pictures),
        )
        for before, after in zip(alone + alone_other, together, strict=False):
            for name, values in before.items():
                assert np.allclose(values, after[name], atol=1e-5)
            assert np.argsort(before["logits"]).tolist() == np.argsort(after["logits"]).tolist()
        assert engine.devices()[0].queued == 0


async def test_nothing_of_a_picture_stays_in_shared_memory(bundle: Bundle) -> None:
    async with serving(bundle, max_batch=1) as engine:
        await asyncio.gather(*(engine.infer(bundle, photo, ("map", "logits")) for photo in photos(5)))
        view = engine._devices[0]._memory.view
        for slot in range(2):
            assert not np.frombuffer(view[slot * SLOT_BYTES :][:200_000], np.uint8).any()


async def test_the_pixels_are_the_callers_again_at_once(bundle: Bundle) -> None:
    """Also of those that wait: a decoder wipes them, and decodes its next image there."""
    pictures = photos(6)
    async with serving(bundle, max_batch=1) as engine:
        expected = [await engine.embed(bundle, photo) for photo in pictures]
        process(engine).suspend()
        buffer = np.zeros_like(pictures[0])
        jobs = []
        for photo in pictures:
            buffer[:] = photo
            jobs.append(engine.start(bundle, buffer, ("embedding",)))
        buffer[:] = 0
        process(engine).resume()
        for job, wanted in zip(jobs, expected, strict=True):
            assert np.allclose((await engine.outcome(job))["embedding"], wanted, atol=1e-5)


async def test_a_full_queue_refuses_at_once_and_recovers(bundle: Bundle) -> None:
    async with serving(bundle, queue=4) as engine:
        process(engine).suspend()
        accepted = [asyncio.ensure_future(engine.embed(bundle, photo)) for photo in photos(4)]
        await until(lambda: engine.devices()[0].queued == 4)
        with pytest.raises(Overloaded, match="as many as the queue holds"):
            await engine.embed(bundle, photos(1)[0])
        process(engine).resume()
        assert len(await asyncio.gather(*accepted)) == 4
        assert (await engine.embed(bundle, photos(1)[0])).shape == (8,)


async def test_a_caller_that_leaves_takes_its_request_out_of_the_queue(bundle: Bundle) -> None:
    async with serving(bundle, max_batch=1) as engine:
        process(engine).suspend()
        callers = [asyncio.ensure_future(engine.embed(bundle, photo)) for photo in photos(4)]
        await until(lambda: engine.devices()[0].queued == 4)
        for caller in (callers[0], callers[3]):
            caller.cancel()
        await asyncio.gather(callers[0], callers[3], return_exceptions=True)
        # The first is in the worker's hands and keeps its slot; the last had not left the queue.
        assert engine.devices()[0].queued == 3
        process(engine).resume()
        assert len(await asyncio.gather(*callers[1:3])) == 2
        await until(lambda: engine.devices()[0].queued == 0)
        assert engine.devices()[0].restarts == 0


async def test_requests_of_a_worker_that_dies_are_answered_by_the_next(folder: Path, bundle: Bundle) -> None:
    other = network(folder, "second", seed=3)
    pictures = photos(20)
    async with serving(bundle, other) as engine:
        expected = [await engine.embed(bundle, photo) for photo in pictures]
        victim = process(engine)
        victim.suspend()
        waiting = [asyncio.ensure_future(engine.embed(bundle, photo)) for photo in pictures]
        elsewhere = asyncio.ensure_future(engine.embed(other, pictures[0]))
        await until(lambda: engine.devices()[0].queued == 21)
        victim.kill()
        for answer, before in zip(await asyncio.gather(*waiting), expected, strict=True):
            assert np.allclose(answer, before, atol=1e-5)
        assert (await elsewhere).shape == (8,)
        (status,) = engine.devices()
        assert (status.restarts, status.state, status.queued) == (1, "serving", 0)


async def test_a_model_that_cannot_be_loaded_again_is_out_by_itself(folder: Path, bundle: Bundle) -> None:
    damaged = network(folder, "damaged", seed=4)
    whole = damaged.model.read_bytes()
    (photo,) = photos(1)
    async with serving(damaged, bundle) as engine:
        damaged.model.write_bytes(whole[:100])
        victim = process(engine)
        victim.suspend()
        waiting = asyncio.ensure_future(engine.embed(damaged, photo))
        others = asyncio.ensure_future(engine.embed(bundle, photo))
        await until(lambda: engine.devices()[0].queued == 2)
        victim.kill()
        with pytest.raises(NotInstalled, match="bundle damaged 1 is damaged"):
            await waiting
        assert (await others).shape == (8,)
        assert (engine.devices()[0].restarts, engine.devices()[0].queued) == (1, 0)
        assert (engine.loaded(damaged), engine.serves(damaged)) == (False, False)
        assert (engine.loaded(bundle), engine.serves(bundle)) == (True, True)
        ((name, reason),) = engine.refused()
        assert name == "damaged"
        assert reason.startswith("damaged 1 on cpu: its model is not the file that was installed")
        assert engine.fault(damaged) == "its model is not the file that was installed: the SHA-256 differs"
        assert engine.fault(bundle) is None
        with pytest.raises(NotInstalled, match="damaged"):
            await engine.embed(damaged, photo)
        with pytest.raises(InvalidInput, match="bundle damaged 1: its model is not the file"):
            await engine.load(damaged)

        damaged.model.write_bytes(whole)
        await engine.load(damaged)
        assert engine.refused() == []
        assert (await engine.embed(damaged, photo)).shape == (8,)

        damaged.model.unlink()
        process(engine).kill()
        await until(lambda: engine.refused() != [] and engine.serves(bundle))
        assert "its model cannot be read: No such file" in engine.refused()[0][1]
        damaged.model.write_bytes(whole)
        process(engine).kill()
        await until(lambda: engine.serves(damaged))
        assert engine.refused() == []


@pytest.mark.parametrize("how", ["the worker ends", "it made room for others"])
async def test_another_model_in_the_place_of_an_installed_one_is_never_loaded(
    tmp_path: Path, bundle: Bundle, how: str
) -> None:
    """It would run, and promise the same outputs: its bytes are not those of the bundle."""
    exchanged, stranger = network(tmp_path, "exchanged", seed=4), network(tmp_path, "stranger", seed=9)
    whole = exchanged.model.read_bytes()
    (photo,) = photos(1)
    told: list[tuple[str, str]] = []

    async def damaged(pin: str, reason: str) -> None:
        told.append((pin, reason))

    async with Engine(Recognition(device="cpu", devices=2), Registry(), damaged=damaged) as engine:
        for one in (exchanged, bundle):
            await engine.load(one)
        before = await engine.embed(exchanged, photo)
        stranger.model.replace(exchanged.model)
        if how == "the worker ends":
            for device in engine._devices:
                psutil.Process(device.worker.pid).kill()
            await until(lambda: len(engine.refused()) == 2 and engine.serves(bundle))
        else:
            await engine._evict(engine._models["exchanged", "1"])
        for _ in range(2):
            with pytest.raises(NotInstalled, match="bundle exchanged 1 is damaged"):
                await engine.embed(exchanged, photo)
        assert (await engine.embed(bundle, photo)).shape == (8,)
        assert [name for name, _ in engine.refused()] == ["exchanged"] * 2
        assert told == [("exchanged@1", "its model is not the file that was installed: the SHA-256 differs")]
        assert (engine.loaded(exchanged), engine.serves(exchanged)) == (False, False)

        exchanged.model.write_bytes(whole)
        await engine.load(exchanged)
        assert engine.refused() == []
        assert np.allclose(await engine.embed(exchanged, photo), before, atol=1e-5)


@pytest.mark.parametrize("what", ["a link", "a pipe", "a folder", "10 GB of nothing"])
async def test_what_is_no_file_in_the_place_of_a_model_is_refused_at_once(tmp_path: Path, what: str) -> None:
    bundle = network(tmp_path, "replaced")
    aside = bundle.model.rename(tmp_path / "aside")
    if what == "a link":
        bundle.model.symlink_to(aside)
    elif what == "a pipe":
        os.mkfifo(bundle.model)
    elif what == "a folder":
        bundle.model.mkdir()
    else:
        with bundle.model.open("wb") as file:
            file.truncate(10 * 1024**3)
    async with serving() as engine:
        with pytest.raises(InvalidInput, match=r"bundle replaced: its model (cannot|has|is)"):
            await engine.load(bundle)


async def test_a_model_that_ends_every_worker_that_loads_it_again_is_out(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = network(folder, "deadly", seed=5)
    (photo,) = photos(1)
    async with serving(deadly, bundle) as engine:
        (device,) = engine._devices
        load = device.load

        async def die_of_it(model: Model) -> Loaded:
            if model.name == "deadly 1":
                process(engine).kill()
            return await load(model)

        monkeypatch.setattr(device, "load", die_of_it)
        process(engine).kill()
        await until(lambda: engine.refused() != [] and engine.serves(bundle))
        assert (await engine.embed(bundle, photo)).shape == (8,)
        ((name, reason),) = engine.refused()
        assert (name, engine.devices()[0].restarts) == ("deadly", 3)
        assert "ends its worker: device worker was killed by SIGKILL" in reason
        monkeypatch.undo()
        process(engine).kill()
        await until(lambda: engine.serves(deadly))
        assert engine.refused() == []


async def test_a_model_that_one_device_does_not_load_again_is_served_by_the_others(folder: Path) -> None:
    bundle = network(folder, "one of two", seed=6)
    whole = bundle.model.read_bytes()
    pictures = photos(12)
    async with serving(bundle, device="cpu", devices=2) as engine:
        bundle.model.write_bytes(b"damaged")
        victim = process(engine)
        victim.suspend()
        waiting = [asyncio.ensure_future(engine.embed(bundle, photo)) for photo in pictures]
        await until(lambda: engine.devices()[0].queued > 0)
        victim.kill()
        assert len(await asyncio.gather(*waiting)) == 12
        await until(lambda: engine.devices()[0].state == "serving")
        assert [name for name, _ in engine.refused()] == ["one of two"]
        assert engine.loaded(bundle)
        assert engine.serves(bundle)
        assert len(await asyncio.gather(*(engine.embed(bundle, photo) for photo in pictures))) == 12
        bundle.model.write_bytes(whole)


async def test_what_kills_workers_is_lost_and_its_neighbours_are_not(folder: Path) -> None:
    bundle = insatiable(folder)
    pictures = photos(12)
    pictures[5][0, 0, 0] = 255
    async with serving(bundle, max_batch=4) as engine:
        outcomes = await asyncio.gather(
            *(engine.infer(bundle, photo, ("logits",)) for photo in pictures), return_exceptions=True
        )
        failed = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)]
        assert failed == [5]
        assert isinstance(outcomes[5], WorkerLost)
        assert engine.devices()[0].restarts == 2


async def test_an_image_that_a_model_fails_for_costs_no_process_and_the_others_nothing(folder: Path) -> None:
    bundle = trap(folder)
    pictures = photos(12)
    for culprit in (2, 5):
        pictures[culprit][0, 0, 0] = 255
    async with serving(bundle, max_batch=4) as engine:
        outcomes = await asyncio.gather(
            *(engine.infer(bundle, photo, ("logits",)) for photo in pictures), return_exceptions=True
        )
        for culprit in (5, 2):
            failure = outcomes.pop(culprit)
            assert isinstance(failure, ModelFailed)
            assert str(failure).startswith("the model fails for this image: [ONNXRuntimeError]")
        assert [outcome["logits"].tolist() for outcome in outcomes] == [[1.0]] * 10  # type: ignore[index]
        assert engine.devices()[0].restarts == 0


async def test_a_worker_that_hangs_is_replaced(bundle: Bundle) -> None:
    (photo,) = photos(1)
    async with serving(bundle, infer_seconds=3) as engine:
        victim = process(engine)
        victim.suspend()
        hung = await engine.embed(bundle, photo)
        assert not victim.is_running()
        assert np.allclose(hung, await engine.embed(bundle, photo), atol=1e-5)
        assert engine.devices()[0].restarts == 1


@pytest.mark.parametrize("silent", [False, True])
async def test_a_model_made_for_one_image_gets_one_at_a_time(folder: Path, silent: bool) -> None:
    bundle = made_for_one(folder, silent=silent)
    session = onnxruntime.InferenceSession(str(bundle.model), providers=["CPUExecutionProvider"])
    pictures = photos(20)
    async with serving(bundle) as engine:
        answers = await asyncio.gather(*(engine.infer(bundle, photo, ("logits",)) for photo in pictures))
        for photo, answer in zip(pictures, answers, strict=True):
            (expected,) = session.run(["logits"], {"images": photo[np.newaxis]})
            assert np.allclose(answer["logits"], expected[0], atol=1e-4)
        assert engine.devices()[0].restarts == 0


async def test_who_asks_for_little_waits_for_two_runs_of_a_model_that_takes_one_image(
    folder: Path, bundle: Bundle
) -> None:
    slow = made_for_one(folder, silent=False)
    (photo,) = photos(1)
    async with serving(bundle) as engine:
        await engine.load(slow)
        answered: list[str] = []

        async def ask(one: Bundle, customer: str) -> None:
            await engine.infer(one, photo, ("logits",), customer=customer)
            answered.append(customer)

        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(ask(slow, "much"))
            group.create_task(ask(bundle, "little"))
        assert answered.index("little") <= 2


async def test_what_is_no_number_is_no_answer_and_costs_the_others_nothing(folder: Path) -> None:
    bundle = wrong_when_bright(folder)
    pictures = photos(8)
    for number, picture in enumerate(pictures):
        picture[0, 0, 0] = 200 if number == 3 else 36
    async with serving(bundle) as engine:
        outcomes = await asyncio.gather(
            *(engine.infer(bundle, photo, ("logits",)) for photo in pictures), return_exceptions=True
        )
        assert isinstance(outcomes.pop(3), ModelFailed)
        assert [outcome["logits"].tolist() for outcome in outcomes] == [[8.0]] * 7  # type: ignore[index]
        assert engine.devices()[0].restarts == 0


async def test_a_request_waits_for_so_long_and_no_longer(bundle: Bundle) -> None:
    (photo,) = photos(1)
    async with serving(bundle) as engine:
        process(engine).suspend()
        with pytest.raises(WorkerLost, match=r"no answer from the model within 0\.2 s"):
            await engine.infer(bundle, photo, ("logits",), seconds=0.2)
        process(engine).resume()
        assert (await engine.embed(bundle, photo)).shape == (8,)


async def test_leaving_answers_everyone_who_still_waits(bundle: Bundle) -> None:
    async with serving(bundle, max_batch=1) as engine:
        process(engine).suspend()
        waiting = [asyncio.ensure_future(engine.embed(bundle, photo)) for photo in photos(5)]
        await until(lambda: engine.devices()[0].queued == 5)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {WorkerLost}


async def test_what_is_no_model_is_refused_and_the_others_go_on(folder: Path, bundle: Bundle) -> None:
    garbage = folder / "garbage.onnx"
    garbage.write_bytes(b"not a model at all")
    digest = hashlib.sha256(b"not a model at all").hexdigest()
    wrong_shape = dataclasses.replace(bundle, name="shape", outputs={"logits": (CLASSES + 1,)})
    missing = dataclasses.replace(bundle, name="missing", outputs={"boxes": (4,)})
    too_large = dataclasses.replace(bundle, name="large", outputs={"map": (SLOT_BYTES // 4,)})
    async with serving(bundle) as engine:
        with pytest.raises(InvalidInput, match="cannot be loaded"):
            await engine.load(dataclasses.replace(bundle, name="garbage", model=garbage, sha256=digest))
        with pytest.raises(InvalidInput, match="output logits is"):
            await engine.load(wrong_shape)
        with pytest.raises(InvalidInput, match="output boxes is None"):
            await engine.load(missing)
        with pytest.raises(InvalidInput, match=str(SLOT_BYTES)):
            await engine.load(too_large)
        with pytest.raises(NotInstalled, match="shape"):
            await engine.infer(wrong_shape, photos(1)[0], ("logits",))
        assert (await engine.embed(bundle, photos(1)[0])).shape == (8,)
        assert engine.devices()[0].restarts == 0


async def test_pixels_and_outputs_must_fit_the_model(bundle: Bundle) -> None:
    (photo,) = photos(1)
    async with serving(bundle) as engine:
        wrongs: list[Any] = [photo[:-1], photo.astype(np.float32), photo[..., 0], photo.reshape(-1)]
        for wrong in wrongs:
            with pytest.raises(ValueError, match="pixels"):
                await engine.infer(bundle, wrong, ("logits",))
        for outputs in ((), ("nothing",)):
            with pytest.raises(ValueError, match="outputs"):
                await engine.infer(bundle, photo, outputs)


async def test_loading_twice_is_loading_once(bundle: Bundle) -> None:
    async with serving(bundle) as engine:
        await asyncio.gather(engine.load(bundle), engine.load(bundle))
        assert len(engine._models) == 1


async def test_the_device_that_really_runs_is_told(bundle: Bundle) -> None:
    async with serving(bundle, device="cpu") as engine:
        (status,) = engine.devices()
        assert (status.name, status.provider, status.note) == ("cpu", "CPUExecutionProvider", "")
    async with serving(bundle, device="auto") as engine:
        (status,) = engine.devices()
        assert status.provider == "CPUExecutionProvider"
        assert "CPU build" in status.note


async def test_cuda_that_cannot_be_served_is_refused_naming_what_is_missing() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("the GPU build is installed")
    with pytest.raises(WorkerRefused, match=r'device = "cuda" .* appliance\[gpu\] is not installed'):
        async with serving(device="cuda"):
            pass


async def test_two_builds_of_onnxruntime_at_once_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        information = tmp_path / f"{name}-1.28.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.28.0\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WorkerRefused, match=r"onnxruntime 1.28.0 and onnxruntime-gpu 1.28.0 .* together"):
        async with serving():
            pass


async def test_no_start_without_the_telemetry_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("0", ""):
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
        with pytest.raises(WorkerRefused, match="ORT_DISABLE_TELEMETRY"):
            async with serving():
                pass


async def test_counters_say_what_happened(bundle: Bundle) -> None:
    registry = Registry()
    async with Engine(Recognition(), registry) as engine:
        await engine.load(bundle)
        process(engine).suspend()
        waiting = [asyncio.ensure_future(engine.embed(bundle, photo)) for photo in photos(3)]
        await until(lambda: registry.get_sample_value("appliance_inference_queued") == 3)
        process(engine).kill()
        await asyncio.gather(*waiting)
    assert registry.get_sample_value("appliance_device_restarts_total") == 1
    assert registry.get_sample_value("appliance_inference_retries_total") == 3
