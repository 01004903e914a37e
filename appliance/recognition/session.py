"""A device worker: the process that holds the models of one device. The only module that knows onnxruntime.

It batches greedily: whatever has arrived when the device is free goes into the next run; no request waits for
others to come.
"""

import ctypes
import fcntl
import hashlib
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.channel import Channel
from appliance.errors import BundleDamaged, InvalidInput, ModelFailed, WorkerRefused
from appliance.recognition.slots import SLOT_BYTES, Load, Loaded, Run, Unload, places

if os.environ.get("ORT_DISABLE_TELEMETRY") != "1":
    raise WorkerRefused("ORT_DISABLE_TELEMETRY is not 1: onnxruntime could send telemetry and is not loaded")
try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state
except ImportError as error:
    raise WorkerRefused(
        f"onnxruntime is missing ({error}): install appliance[cpu] or appliance[gpu]"
    ) from error

_REFUSALS = (onnxruntime_pybind11_state.InvalidArgument, onnxruntime_pybind11_state.InvalidGraph)
_PAGE = os.sysconf("SC_PAGE_SIZE")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Convolutions on a CPU gain nothing from batches and lose 8 % at eight images, when they leave the cache; the
# per-run cost of tiny models is nearly gone at four.
CPU_BATCH = 4
# How far apart the answers to one image may be, alone and in a batch: the larger of a number and of a part
# of the answer's largest value. Half of it is the most that a probability moves: 1e-5 for logits up to 10.
# On CPUs convolutions do not differ at all, and attention by 4e-7 of the largest. A GPU multiplies with less
# precision, and has no kernels for what is quantised as it runs.
APART = {CPU: (1e-5, 2e-6), CUDA: (1e-3, 1e-2)}
_LARGEST_MODEL = 2 * 1024**3 - 1  # a protobuf ends at 2 GiB
# What onnxruntime says when CUDA or one of its libraries failed.
CUDA_NAMES = ("cuda", "cudnn", "cublas", "cufft", "curand")
# The smallest model there is, one Identity node: what shows whether a provider really runs.
PROBE = bytes.fromhex(
    "08083a370a100a016912016f22084964656e746974791201705a0f0a0169120a0a08080112040a020801620f0a016f120a0a0808"
    "0112040a02080142040a00100d"
)


def choose(device: str) -> tuple[str, str]:
    """The provider for `device` (auto, cpu or cuda), and a note where the operator should know why.

    onnxruntime lists CUDA wherever it was compiled in, and serves on the CPU in silence when it cannot load
    it; here device = "cuda" then raises WorkerRefused, naming what is missing.
    """
    if device == "cpu":
        return CPU, ""
    missing = _missing_for_cuda()
    if not missing:
        return CUDA, ""
    if device == "cuda":
        raise WorkerRefused(f'device = "cuda" cannot be served: {missing}')
    return CPU, f"on the CPU because {missing}"


def _missing_for_cuda() -> str:
    if CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime is the CPU build: appliance[gpu] is not installed"
    onnxruntime.preload_dlls()
    libraries = Path(onnxruntime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(libraries / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(libraries / "libonnxruntime_providers_cuda.so"))
        session = _session(PROBE, CUDA, 0, 1)
    except OSError as error:
        return f"a library is missing: {error}"
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base below Exception
        return f"CUDA does not start: {_first_line(error)}"
    return "" if session.get_providers()[0] == CUDA else "onnxruntime fell back to the CPU"


def _count_gpus() -> int:
    """What the driver shows to this process, CUDA_VISIBLE_DEVICES considered."""
    driver, found = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(found)) != 0:
        return 1
    return found.value


def _session(model: str | bytes, provider: str, number: int, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads burn a second core while they wait for the next image.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == CPU:
        return onnxruntime.InferenceSession(model, options, providers=[CPU])
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # An arena that doubles would take the memory that the next model needs.
    settings = {"device_id": str(number), "arena_extend_strategy": "kSameAsRequested"}
    return onnxruntime.InferenceSession(model, options, providers=[(CUDA, settings)])


@contextmanager
def _refusing() -> Iterator[None]:
    """Whatever onnxruntime raises while a model is made ready is the model's refusal."""
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"the model cannot be loaded: {_first_line(error)}") from error


@contextmanager
def _held(request: Load) -> Iterator[int]:
    """The model's file read once into memory that nobody can write any more, then judged: a descriptor of it.

    onnxruntime reads a path as a stream, and keeps the whole of what it gets as bytes: hence a memfd.
    Raises BundleDamaged when this is not the file that was installed.
    """
    memory = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        try:
            _copy(request.path, memory)
        except OSError as error:
            raise BundleDamaged(f"its model cannot be read: {error.strerror}") from error
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        os.lseek(memory, 0, os.SEEK_SET)
        with open(memory, "rb", closefd=False) as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != request.sha256:
            raise BundleDamaged("its model is not the file that was installed: the SHA-256 differs")
        yield memory
    finally:
        os.close(memory)


def _copy(path: str, memory: int) -> None:
    """Within the kernel. Raises OSError, and BundleDamaged for what is too large to be a model."""
    # O_NONBLOCK: opening a pipe that took the file's place would wait for its other end.
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size, copied = os.fstat(file).st_size, 0
        if size > _LARGEST_MODEL:
            raise BundleDamaged(f"its model has more than {_LARGEST_MODEL} bytes")
        while sent := os.sendfile(memory, file, copied, size - copied):
            copied += sent
    finally:
        os.close(file)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]


class Device:
    """The models of one device over the slots of its shared memory; `number` is that of a GPU."""

    def __init__(
        self, slots: memoryview, provider: str, threads: int, max_batch: int, number: int = 0
    ) -> None:
        self._slots = slots
        self._provider = provider
        self._number = number
        self._threads = threads
        self._max_batch = min(max_batch, CPU_BATCH) if provider == CPU else max_batch
        self._models: dict[int, _Model] = {}

    def load(self, request: Load) -> Loaded:
        """Make the session, run it once, and say what it gives. InvalidInput with the reason it cannot be,
        BundleDamaged when the file is not the one that was installed.

        May run beside `run`, in another thread: onnxruntime lets go of Python's lock meanwhile.
        """
        with _refusing():
            return self._load(request)

    def attempt(self, file: bytes, shape: tuple[int, ...]) -> Loaded:
        """`load` of a model that lies in memory, as number 0; what it takes is not told."""
        with _refusing():
            return Loaded(self._provider, self._hold(0, file, shape))

    def sound(self) -> bool:
        """Whether the device still runs anything: a model can break a GPU's context for all that follow."""
        if self._provider == CPU:
            return True
        try:
            probe = _session(PROBE, self._provider, self._number, 1)
            probe.run(None, {"i": np.zeros(1, np.float32)})
        except Exception:  # noqa: BLE001 - onnxruntime's errors share no base below Exception
            return False
        return True

    def _load(self, request: Load) -> Loaded:
        before = _resident_bytes()
        with _held(request) as memory:
            size = os.fstat(memory).st_size
            outputs = self._hold(request.model, f"/proc/self/fd/{memory}", request.shape)
        # What reading the file took lies freed between what stays: 13 MB for a model of 14.
        ctypes.CDLL(None).malloc_trim(0)
        # What other threads took or gave meanwhile is in the difference; the weights are there in any case.
        taken = max(_resident_bytes() - before, size)
        together = 1 if self._models[request.model].singly else self._max_batch
        return Loaded(self._provider, outputs, taken, together)

    def _hold(self, number: int, file: str | bytes, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        session = _session(file, self._provider, self._number, self._threads)
        (input_,) = session.get_inputs()
        zeros = np.zeros((1, *shape), np.uint8)
        values = session.run(None, {input_.name: zeros})
        used = session.get_providers()[0]
        if used != self._provider:
            raise InvalidInput(f"the model would run on {used} in place of {self._provider}")
        names = [output.name for output in session.get_outputs()]
        floats = {
            name: value.shape[1:]
            for name, value in zip(names, values, strict=True)
            if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape[:1] == (1,)
        }
        for name in floats:
            if not np.isfinite(values[names.index(name)]).all():
                raise InvalidInput(f"output {name} is no finite number for a black image (NaN or infinite)")
        place = ("cuda", self._number) if self._provider == CUDA else None
        model = _Model(session, shape, floats, place)
        model.singly = model.singly or not self._batches(model, list(floats))
        if self._provider == CUDA and not model.singly:
            self._warm(model, list(floats))
        self._models[number] = model
        return floats

    def _batches(self, model: "_Model", outputs: list[str]) -> bool:
        """Whether each of two and of four images in one run gets what it gets alone, as near as APART says.

        Exporters leave graphs whose input says any number of images, and whose middle was made for one; and
        a model that is quantised as it runs takes its steps from the range of the whole batch.
        """
        images = _patterns(4, model.shape)
        ends = images[[0, 3]]
        alone = [model.run(outputs, image[np.newaxis]) for image in ends]
        for batch, judged in ((ends, (0, 1)), (images, (0, 3))):
            if len(batch) > self._max_batch:
                break
            try:
                together = model.run(outputs, batch)
            except Exception:  # noqa: BLE001 - onnxruntime's errors share no base below Exception
                return False
            for place, values in zip(judged, alone, strict=True):
                for several, one in zip(together, values, strict=True):
                    if several.shape != (len(batch), *one.shape[1:]):
                        return False
                    if not _alike(several[place], one[0], *APART[self._provider]):
                        return False
        return True

    def _warm(self, model: "_Model", outputs: list[str]) -> None:
        """Every bucket once: the first run of a size is slow, and keeps the memory that it takes."""
        size = 1
        while size <= self._max_batch:
            model.run(outputs, np.zeros((size, *model.shape), np.uint8))
            size *= 2

    def unload(self, request: Unload) -> None:
        """Give back what the model holds."""
        self._models.pop(request.model, None)

    def take(self, waiting: deque[tuple[int, Run]]) -> list[tuple[int, Run]]:
        """The next batch, removed from `waiting`: the first request and those that can run with it.

        A CPU gains nothing from padding, so it takes the largest power of two that is there; a power of two
        because every batch size that ever ran keeps memory of its own.
        """
        first = waiting[0][1]
        model = self._models.get(first.model)
        if first.alone or (model is not None and model.singly):
            return [waiting.popleft()]
        alike = [
            entry
            for entry in waiting
            if entry[1].model == first.model and entry[1].outputs == first.outputs and not entry[1].alone
        ]
        count = min(len(alike), self._max_batch)
        if self._provider == CPU:
            count = 1 << (count.bit_length() - 1)
        batch = alike[:count]
        for entry in batch:
            waiting.remove(entry)
        return batch

    def run(self, batch: list[Run]) -> dict[int, ModelFailed]:
        """Infer the slots of a batch of one model and write each slot's outputs behind its pixels.

        Returns the slots for whose image the model fails, and how; of several images only that one fails.
        Nothing is written but outputs of the shapes that `load` told: a model whose shapes depend on the
        image would write into the slots of others. Where memory does not suffice, batches of the device are
        half as large from then on. Raises what a process of its own has to follow.
        """
        model, outputs = self._models[batch[0].model], batch[0].outputs
        starts = [request.slot * SLOT_BYTES for request in batch]
        images = [
            np.frombuffer(self._slots, np.uint8, prod(model.shape), start).reshape(model.shape)
            for start in starts
        ]
        pixels = self._stack(images)
        try:
            values = model.run(list(outputs), pixels)
        except Exception as error:
            if not _out_of_memory(error):
                if self._poisons(error):
                    raise  # the worker ends, and the next one begins with a context of its own
                return self._one_by_one(batch, f"the model fails for this image: {_first_line(error)}")
            if len(batch) == 1:
                raise  # what it has taken goes back with the worker
            half = len(batch) // 2
            self._max_batch = max(1, min(self._max_batch, half))
            return self.run(batch[:half]) | self.run(batch[half:])
        shapes = [model.shapes[name] for name in outputs]
        if not are(values, len(pixels), shapes):
            return self._one_by_one(batch, "the model gives another shape for this image than it promised")
        layout = places(prod(model.shape), shapes)
        for index, start in enumerate(starts):
            for value, (offset, count) in zip(values, layout, strict=True):
                np.frombuffer(self._slots, np.float32, count, start + offset)[:] = value[index].reshape(-1)
        return {}

    def _one_by_one(self, batch: list[Run], failure: str) -> dict[int, ModelFailed]:
        """Of several images nothing is used that one of them has spoilt: each is asked about alone."""
        if len(batch) == 1:
            return {batch[0].slot: ModelFailed(failure)}
        return {slot: failed for one in batch for slot, failed in self.run([one]).items()}

    def _poisons(self, error: Exception) -> bool:
        """Whether nothing can be trusted to run after this error of a run.

        On a CPU a node that raises leaves nothing behind. A kernel that fails on a GPU can break the context
        for all that follow, and onnxruntime raises the same classes for it as for a node that refuses its
        input: only what checks inputs, and does not name CUDA or its libraries, is the model's own failure.
        """
        if self._provider == CPU:
            return False
        text = str(error).lower()
        return not isinstance(error, _REFUSALS) or any(name in text for name in CUDA_NAMES)

    def _stack(self, images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        if len(images) == 1:
            return images[0][np.newaxis]
        if self._provider == CPU:
            return np.stack(images)
        bucket = 1 << (len(images) - 1).bit_length()
        padding = [np.zeros_like(images[0])] * (bucket - len(images))
        return np.stack(images + padding)


class _Model:
    """A session, and at a `place` of its own (a GPU) the buffers that each size of batch uses again.

    `shape` is that of the pixels of one image, `shapes` those of the float32 outputs for it. There it takes
    one copy of the pixels, and one back of the outputs that were asked for.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        shape: tuple[int, ...],
        shapes: dict[str, tuple[int, ...]],
        place: tuple[str, int] | None,
    ) -> None:
        (input_,) = session.get_inputs()
        self.shape = shape
        self.shapes = shapes
        self.singly = input_.shape[0] == 1
        self._session = session
        self._input = input_.name
        self._place = place
        self._buffers: dict[int, onnxruntime.OrtValue] = {}

    def run(self, outputs: list[str], pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        """These outputs for a batch (n, height, width, 3)."""
        values: list[npt.NDArray[np.float32]]
        if self._place is None:
            values = self._session.run(outputs, {self._input: pixels})
            return values
        kind, number = self._place
        buffer = self._buffers.get(len(pixels))
        if buffer is None:
            buffer = onnxruntime.OrtValue.ortvalue_from_numpy(pixels, kind, number)
            self._buffers[len(pixels)] = buffer
        else:
            buffer.update_inplace(np.ascontiguousarray(pixels))
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, buffer)
        for name in outputs:
            binding.bind_output(name, kind, number)
        self._session.run_with_iobinding(binding)
        values = binding.copy_outputs_to_cpu()
        return values


def are(values: Sequence[object], count: int, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether these outputs of a run are float32 arrays of `count` images, of these shapes for each."""
    return len(values) == len(shapes) and all(
        isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == (count, *shape)
        for value, shape in zip(values, shapes, strict=True)
    )


def _patterns(count: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Noise, always the same; each image has half the contrast of the one before, so that ranges differ.

    Without numpy's generators, whose import takes time and memory of every worker.
    """
    mixed = np.arange(count * prod(shape), dtype=np.uint32) * np.uint32(2654435761)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(2246822519)
    images = (mixed >> np.uint32(24)).astype(np.uint8).reshape(count, *shape)
    for index in range(count):
        images[index] >>= index
    return images


def _alike(several: npt.NDArray[np.float32], one: npt.NDArray[np.float32], least: float, part: float) -> bool:
    """Within `least`, or `part` of the largest finite value; what is no number must be none in both."""
    scale = np.abs(one, where=np.isfinite(one), out=np.zeros_like(one)).max(initial=0)
    return np.allclose(several, one, rtol=0, atol=max(least, part * float(scale)), equal_nan=True)


def _out_of_memory(error: Exception) -> bool:
    """onnxruntime has no type for it: its arena's text is all there is, or the driver's."""
    text = str(error)
    return isinstance(error, MemoryError) or any(
        words in text for words in ("Failed to allocate memory", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory")
    )


def _resident_bytes() -> int:
    with Path("/proc/self/statm").open("rb") as file:
        return int(file.read().split()[1]) * _PAGE


def main(channel: Channel, settings: dict[str, Any]) -> None:
    """The device worker: answers Load, Unload and Run; one memory holds the slots."""
    provider, note = choose(settings["device"])
    number = settings["number"]
    device = Device(channel.memories[0], provider, settings["threads"], settings["max_batch"], number)
    requests: msgspec.msgpack.Decoder[Load | Run | Unload] = msgspec.msgpack.Decoder(Load | Run | Unload)
    cuda = provider == CUDA
    name = f"cuda:{number}" if cuda else "cpu" if number == 0 else f"cpu:{number}"
    gpus = _count_gpus() if cuda else 0
    channel.ready({"device": name, "provider": provider, "note": note, "gpus": gpus})

    def load(identifier: int, request: Load) -> None:
        try:
            channel.send(identifier, msgspec.msgpack.encode(device.load(request)))
        except InvalidInput as refusal:
            if not device.sound():
                # The next models would be refused for the fault of this one: they get a process of their own.
                sys.stderr.write(f"the GPU's context is lost: {refusal}\n")
                sys.stderr.flush()
                os._exit(1)
            channel.refuse(identifier, refusal)

    waiting: deque[tuple[int, Run]] = deque()
    while True:
        while not waiting or channel.waiting():
            received = channel.receive()
            if received is None:
                return
            identifier, request = received[0], requests.decode(received[1])
            if isinstance(request, Run):
                waiting.append((identifier, request))
            elif isinstance(request, Unload):
                device.unload(request)
                channel.send(identifier, b"")
            else:
                # Seconds for a large model, while the others go on serving.
                threading.Thread(target=load, args=(identifier, request), daemon=True).start()
        batch = device.take(waiting)
        _tell(channel, batch, device.run([request for _, request in batch]))


def trial(channel: Channel, settings: dict[str, Any]) -> None:
    """A trial of one model: the memories are a slot, and the model's file; `shape` is that of the pixels.

    Answers an empty request, to load it, with Loaded; then Run.
    """
    device = Device(channel.memories[0], CPU, 1, CPU_BATCH)
    channel.ready({})
    while (received := channel.receive()) is not None:
        identifier, body = received
        if body:
            request = msgspec.msgpack.decode(body, type=Run)
            _tell(channel, [(identifier, request)], device.run([request]))
            continue
        try:
            loaded = device.attempt(bytes(channel.memories[1]), tuple(settings["shape"]))
        except InvalidInput as refusal:
            channel.refuse(identifier, refusal)
        else:
            channel.send(identifier, msgspec.msgpack.encode(loaded))


def _tell(channel: Channel, batch: list[tuple[int, Run]], failures: dict[int, ModelFailed]) -> None:
    channel.send_all((identifier, b"") for identifier, request in batch if request.slot not in failures)
    if failures:
        for identifier, request in batch:
            if request.slot in failures:
                channel.refuse(identifier, failures[request.slot])
