"""A device worker: the process that holds the models of one device. The only module that knows onnxruntime.

It batches greedily: whatever has arrived when the device is free goes into the next run; no request waits for
others to come.
"""

import ctypes
import os
from collections import deque
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.channel import Channel
from appliance.errors import InvalidInput, WorkerRefused
from appliance.recognition.slots import SLOT_BYTES, Load, Loaded, Run, Unload, places

if os.environ.get("ORT_DISABLE_TELEMETRY") != "1":
    raise WorkerRefused("ORT_DISABLE_TELEMETRY is not 1: onnxruntime could send telemetry and is not loaded")
try:
    import onnxruntime
except ImportError as error:
    raise WorkerRefused(
        f"onnxruntime is missing ({error}): install appliance[cpu] or appliance[gpu]"
    ) from error

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Convolutions on a CPU gain nothing from batches and lose 8 % at eight images, when they leave the cache; the
# per-run cost of tiny models is nearly gone at four.
CPU_BATCH = 4
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
        session = _session(PROBE, CUDA, 1)
    except OSError as error:
        return f"a library is missing: {error}"
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base below Exception
        return f"CUDA does not start: {_first_line(error)}"
    return "" if session.get_providers()[0] == CUDA else "onnxruntime fell back to the CPU"


def _session(model: str | bytes, provider: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads burn a second core while they wait for the next image.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == CUDA:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return onnxruntime.InferenceSession(model, options, providers=[provider])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]


class Device:
    """The models of one device over the slots of its shared memory."""

    def __init__(self, slots: memoryview, provider: str, threads: int, max_batch: int) -> None:
        self._slots = slots
        self._provider = provider
        self._threads = threads
        self._max_batch = min(max_batch, CPU_BATCH) if provider == CPU else max_batch
        self._singly: set[int] = set()
        self._models: dict[int, tuple[onnxruntime.InferenceSession, str, tuple[int, ...]]] = {}

    def load(self, request: Load) -> Loaded:
        """Make the session, run it once, and say what it gives. InvalidInput with the reason it cannot be."""
        try:
            session = _session(request.path, self._provider, self._threads)
            (input_,) = session.get_inputs()
            zeros = np.zeros((1, *request.shape), np.uint8)
            values = session.run(None, {input_.name: zeros})
        except Exception as error:
            raise InvalidInput(f"the model cannot be loaded: {_first_line(error)}") from error
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
            if np.isnan(values[names.index(name)]).any():
                raise InvalidInput(f"output {name} is no number (NaN) for a black image")
        if input_.shape[0] == 1:
            self._singly.add(request.model)
        self._models[request.model] = session, input_.name, request.shape
        return Loaded(used, floats)

    def unload(self, request: Unload) -> None:
        """Give back what the model holds."""
        self._models.pop(request.model, None)
        self._singly.discard(request.model)

    def take(self, waiting: deque[tuple[int, Run]]) -> list[tuple[int, Run]]:
        """The next batch, removed from `waiting`: the first request and those that can run with it.

        A CPU gains nothing from padding, so it takes the largest power of two that is there; a power of two
        because every batch size that ever ran keeps memory of its own.
        """
        first = waiting[0][1]
        if first.alone or first.model in self._singly:
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

    def run(self, batch: list[Run]) -> None:
        """Infer the slots of a batch of one model and write each slot's outputs behind its pixels."""
        session, name, shape = self._models[batch[0].model]
        outputs = batch[0].outputs
        pixels = prod(shape)
        starts = [request.slot * SLOT_BYTES for request in batch]
        images = [np.frombuffer(self._slots, np.uint8, pixels, start).reshape(shape) for start in starts]
        values = session.run(list(outputs), {name: self._stack(images)})
        layout = places(pixels, [value.shape[1:] for value in values])
        for index, start in enumerate(starts):
            for value, (offset, count) in zip(values, layout, strict=True):
                np.frombuffer(self._slots, np.float32, count, start + offset)[:] = value[index].reshape(-1)

    def _stack(self, images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        if len(images) == 1:
            return images[0][np.newaxis]
        if self._provider == CPU:
            return np.stack(images)
        bucket = 1 << (len(images) - 1).bit_length()
        padding = [np.zeros_like(images[0])] * (bucket - len(images))
        return np.stack(images + padding)


def main(channel: Channel, settings: dict[str, Any]) -> None:
    """The device worker: answers Load and Run; one memory holds the slots."""
    provider, note = choose(settings["device"])
    device = Device(channel.memories[0], provider, settings["threads"], settings["max_batch"])
    requests: msgspec.msgpack.Decoder[Load | Run | Unload] = msgspec.msgpack.Decoder(Load | Run | Unload)
    channel.ready({"device": "cpu" if provider == CPU else "cuda:0", "provider": provider, "note": note})
    waiting: deque[tuple[int, Run]] = deque()
    while True:
        while not waiting or channel.waiting():
            received = channel.receive()
            if received is None:
                return
            identifier, request = received[0], requests.decode(received[1])
            if isinstance(request, Run):
                waiting.append((identifier, request))
                continue
            if isinstance(request, Unload):
                device.unload(request)
                channel.send(identifier, b"")
                continue
            try:
                channel.send(identifier, msgspec.msgpack.encode(device.load(request)))
            except InvalidInput as refusal:
                channel.refuse(identifier, refusal)
        batch = device.take(waiting)
        device.run([request for _, request in batch])
        channel.send_all((identifier, b"") for identifier, _ in batch)
