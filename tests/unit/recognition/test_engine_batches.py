"""The batches of a device worker, as the worker makes them: any composition, the same answers."""

from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph

from appliance.recognition.session import CPU, CPU_BATCH, CUDA, Device, _Model, are
from appliance.recognition.slots import SLOT_BYTES, Load, Run, aligned, places
from tests.unit.recognition.small_models import SIZE, elastic, made_for_one, network, quantised_as_it_runs

SLOTS = 12
PIXELS = SIZE * SIZE * 3
SHAPES: dict[str, tuple[int, ...]] = {"logits": (5,), "embedding": (8,)}

Values = npt.NDArray[np.float32]


@cache
def pictures() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    bundle = network(tmp_path_factory.mktemp("models"))
    device = Device(memoryview(bytearray(SLOTS * SLOT_BYTES)), CPU, 1, 8)
    loaded = device.load(Load(0, str(bundle.model), (SIZE, SIZE, 3), bundle.sha256))
    assert {name: tuple(shape) for name, shape in loaded.outputs.items()} == dict(bundle.outputs)
    assert loaded.provider == CPU
    return device


def answers(device: Device, chosen: list[int], outputs: tuple[str, ...]) -> list[dict[str, Values]]:
    """What a burst of these pictures gets, served in the batches that the device makes of it."""
    for slot, picture in enumerate(chosen):
        device._slots[slot * SLOT_BYTES :][:PIXELS] = pictures()[picture].tobytes()
    waiting = deque((slot, Run(0, slot, outputs)) for slot in range(len(chosen)))
    while waiting:
        device.run([request for _, request in device.take(waiting)])
    layout = places(PIXELS, [SHAPES[name] for name in outputs])
    return [
        {
            name: np.frombuffer(device._slots, np.float32, count, slot * SLOT_BYTES + offset).copy()
            for name, (offset, count) in zip(outputs, layout, strict=True)
        }
        for slot in range(len(chosen))
    ]


@settings(max_examples=60, deadline=None)
@given(chosen=st.lists(st.integers(0, 19), min_size=1, max_size=SLOTS))
def test_the_same_answer_whatever_the_batch(device: Device, chosen: list[int]) -> None:
    together = answers(device, chosen, ("logits", "embedding"))
    for picture, answer in zip(chosen, together, strict=True):
        (alone,) = answers(device, [picture], ("logits", "embedding"))
        assert np.allclose(answer["embedding"], alone["embedding"], atol=1e-5)
        assert np.allclose(softmax(answer["logits"]), softmax(alone["logits"]), atol=1e-5)
        assert np.argsort(-answer["logits"]).tolist() == np.argsort(-alone["logits"]).tolist()


def test_only_what_does_not_depend_on_its_batch_is_batched(tmp_path: Path) -> None:
    """The answers of the quantised one differ by a thousandth: more than is promised, little to look at."""
    bundles = [
        network(tmp_path),
        quantised_as_it_runs(tmp_path),
        made_for_one(tmp_path, silent=True),
        made_for_one(tmp_path, silent=False),
    ]
    device = Device(memoryview(bytearray(SLOT_BYTES)), CPU, 1, 8)
    for number, bundle in enumerate(bundles):
        device.load(Load(number, str(bundle.model), (SIZE, SIZE, 3), bundle.sha256))
    assert [device._models[number].singly for number in range(4)] == [False, True, True, True]


def softmax(logits: Values) -> Values:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)


runs = st.builds(
    Run,
    model=st.integers(0, 1),
    slot=st.just(0),
    outputs=st.sampled_from([("logits",), ("embedding",), ("logits", "embedding")]),
    alone=st.sampled_from([False, False, False, True]),
)


@given(requests=st.lists(runs, min_size=1, max_size=30), provider=st.sampled_from([CPU, CUDA]))
def test_batches_are_alike_bounded_and_nobody_is_left_or_overtaken(
    requests: list[Run], provider: str
) -> None:
    device = Device(memoryview(b""), provider, 1, 8)
    waiting = deque(enumerate(requests))
    served: list[int] = []
    while waiting:
        oldest = waiting[0][0]
        batch = device.take(waiting)
        numbers = [number for number, _ in batch]
        assert numbers[0] == oldest
        assert numbers == sorted(numbers)
        assert len({(request.model, request.outputs) for _, request in batch}) == 1
        assert len(batch) == 1 or not any(request.alone for _, request in batch)
        if provider == CPU:
            assert len(batch) in (1, 2, CPU_BATCH)
        assert len(batch) <= 8
        served += numbers
    assert sorted(served) == list(range(len(requests)))


@given(
    pixels=st.integers(1, 10_000),
    shapes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=5),
)
def test_outputs_lie_behind_the_pixels_aligned_and_apart(pixels: int, shapes: list[tuple[int, int]]) -> None:
    end = pixels
    for (offset, count), shape in zip(places(pixels, shapes), shapes, strict=True):
        assert offset == aligned(end)
        assert count == shape[0] * shape[1]
        end = offset + count * 4


def test_a_batch_that_memory_does_not_suffice_for_is_halved(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(device, list(range(8)), ("logits",))
    run, sizes = _Model.run, []

    def scarce(model: _Model, outputs: list[str], pixels: npt.NDArray[np.uint8]) -> list[Values]:
        sizes.append(len(pixels))
        if len(pixels) > 1:
            raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer")
        return run(model, outputs, pixels)

    monkeypatch.setattr(_Model, "run", scarce)
    monkeypatch.setattr(device, "_max_batch", CPU_BATCH)
    for answer, wanted in zip(answers(device, list(range(8)), ("logits",)), expected, strict=True):
        assert np.allclose(answer["logits"], wanted["logits"], atol=1e-5)
    assert sizes[:4] == [4, 2, 1, 1]
    assert sizes[-4:] == [1] * 4, "the device has learned"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("an illegal memory access was encountered"),
        Fail("CUDA failure 700: an illegal memory access was encountered"),
        InvalidArgument("CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR"),
        InvalidGraph("CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_what_may_have_broken_a_gpus_context_ends_the_worker(
    device: Device, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> list[Values]:
        raise error

    monkeypatch.setattr(_Model, "run", broken)
    monkeypatch.setattr(device, "_provider", CUDA)
    with pytest.raises(type(error)):
        answers(device, [1, 2, 3, 4], ("logits",))


@pytest.mark.parametrize("provider", [CPU, CUDA])
def test_what_a_model_refuses_is_the_failure_of_that_image_alone(
    device: Device, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    run = _Model.run
    culprit = pictures()[2]

    def particular(model: _Model, outputs: list[str], pixels: npt.NDArray[np.uint8]) -> list[Values]:
        if any(np.array_equal(image, culprit) for image in pixels):
            raise InvalidArgument("indices element out of data bounds\nin a second line")
        return run(model, outputs, pixels)

    monkeypatch.setattr(_Model, "run", particular)
    monkeypatch.setattr(device, "_provider", provider)
    for slot in range(4):
        device._slots[slot * SLOT_BYTES :][:PIXELS] = pictures()[slot].tobytes()
    failures = device.run([Run(0, slot, ("logits",)) for slot in range(4)])
    assert list(failures) == [2]
    assert str(failures[2]) == "the model fails for this image: indices element out of data bounds"


def test_bound_buffers_give_what_the_session_gives(tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(str(network(tmp_path).model), providers=[CPU])
    plain, bound = (_Model(session, (SIZE, SIZE, 3), SHAPES, place) for place in (None, ("cpu", 0)))
    for count in (1, 4, 1, 4, 2):
        batch = pictures()[count : 2 * count]
        for first, second in zip(
            plain.run(["embedding", "logits"], batch), bound.run(["embedding", "logits"], batch), strict=True
        ):
            assert np.array_equal(first, second)


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Device:
    bundle = elastic(tmp_path_factory.mktemp("elastic"))
    device = Device(memoryview(bytearray(SLOTS * SLOT_BYTES)), CPU, 1, 8)
    assert device.load(Load(0, str(bundle.model), (SIZE, SIZE, 3), bundle.sha256)).outputs == {"logits": (2,)}
    return device


# Of the bytes behind the first: 200,000 values more, values fewer, images more, dimensions more, above 240.
PLAIN = (0, 0, 0, 0)
CHANGES = st.sampled_from(
    [PLAIN, (241, 0, 0, 0), (255, 0, 0, 0), (0, 241, 0, 0), (0, 242, 0, 0), (0, 0, 241, 0), (0, 0, 0, 242)]
)


@settings(max_examples=25, deadline=None)
@given(changes=st.lists(CHANGES | st.just(PLAIN), min_size=1, max_size=CPU_BATCH))
def test_nothing_is_written_beyond_what_was_promised(
    changing: Device, changes: list[tuple[int, int, int, int]]
) -> None:
    """Nor is an image answered that makes the model give another shape; its neighbours are, and right."""
    slots = range(1, 2 * len(changes), 2)
    # The first megabyte of each, and of one more: whatever is written is written there first.
    memory = np.frombuffer(changing._slots, np.uint8).reshape(SLOTS, SLOT_BYTES)[: slots[-1] + 2, : 1 << 20]
    memory[:] = 170
    for number, (slot, change) in enumerate(zip(slots, changes, strict=True)):
        memory[slot, :PIXELS] = 0
        memory[slot, :5] = (10 + number, *change)
    before = memory.copy()
    failures = changing.run([Run(0, slot, ("logits",)) for slot in slots])

    assert set(failures) == {slot for slot, change in zip(slots, changes, strict=True) if change != PLAIN}
    for failure in failures.values():
        assert "another shape for this image" in str(failure)
    ((offset, count),) = places(PIXELS, [(2,)])
    for number, slot in enumerate(slots):
        if slot not in failures:
            logits = memory[slot, offset : offset + 4 * count]
            assert logits.view(np.float32).tolist() == [10 + number] * 2
            logits[:] = 170
    assert np.array_equal(memory, before)


TYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_])
SIDES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@settings(max_examples=200, deadline=None)
@given(
    given_=st.lists(st.tuples(TYPES, SIDES), max_size=3),
    promised=st.lists(SIDES, max_size=3),
    count=st.integers(1, 3),
    kept=st.booleans(),
)
def test_outputs_are_what_was_promised_only_if_each_is(
    given_: list[tuple[type, tuple[int, ...]]], promised: list[tuple[int, ...]], count: int, kept: bool
) -> None:
    if kept:
        given_ = [(kind, (count, *sides)) for (kind, _), sides in zip(given_, promised, strict=False)]
    values: list[npt.NDArray[Any]] = [np.zeros(sides, kind) for kind, sides in given_]
    wanted = [(np.float32, (count, *sides)) for sides in promised]
    assert are(values, count, promised) == (given_ == wanted)
    assert not are([value.tolist() for value in values] or [0], count, promised)
