"""Tries a model before it is installed, in a process of its own that is locked in and then ends.

What a stranger's graph takes, and whether it ever ends, only running it shows: not beside the models that
serve. It runs on the CPU whatever the device is. A context on a GPU would take hundreds of megabytes from the
models that serve, and needs device files, which the lock keeps out of reach; what only the device can show is
left to loading it there, when it is known that the model ends.
"""

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.background import uninterrupted
from appliance.channel import Limits
from appliance.errors import InvalidInput, ModelFailed, StorageFailed, WorkerLost
from appliance.recognition import inspection
from appliance.recognition.bundle import Bundle
from appliance.recognition.devices import Outputs
from appliance.recognition.slots import SLOT_BYTES, Loaded, Run, check_room, places
from appliance.workers import Memory, Worker

# Of the processor; by the clock more, for a machine that is busy with serving.
CPU_SECONDS, SECONDS = 120, 600.0
# Python and onnxruntime map half a gigabyte; the rest is for what a model computes, on four images of
# 640 x 640. The copies: the file as it came, parsed, as weights, and as weights in a kernel's own order.
_BASE_BYTES, _COPIES = 3 * 1024**3, 6


class Trial:
    """`async with` runs the bundle's model on a black image and on patterns, and holds it for `infer`.

    Entering raises InvalidInput with the reason why the model is not to be installed: it gives other outputs
    than the bundle promises or no finite numbers, takes more memory or time than a trial has, or larger
    images than any device. Leaving, or being cancelled, ends it at once.
    """

    def __init__(self, bundle: Bundle, cpu_seconds: int = CPU_SECONDS) -> None:
        self._bundle = bundle
        self._cpu_seconds = cpu_seconds

    async def __aenter__(self) -> Self:
        bundle = self._bundle
        check_room(bundle.preprocessing.nbytes, bundle.outputs)
        async with AsyncExitStack() as stack:
            try:
                size = (await asyncio.to_thread(bundle.model.stat)).st_size
                file = Memory(max(1, size))
                stack.callback(file.close)
                self._slot = Memory(SLOT_BYTES)
                stack.callback(self._slot.close)
                await uninterrupted(asyncio.to_thread(inspection.fill, file, bundle.model))
            except OSError as error:
                raise StorageFailed(f"{bundle.model}: {error.strerror}") from error
            limits = Limits(
                address_space_bytes=_BASE_BYTES + _COPIES * size,
                cpu_seconds=self._cpu_seconds,
                file_bytes=0,
                nice=5,
                confined=True,
            )
            self._worker = Worker(
                "model trial",
                "appliance.recognition.session:trial",
                {"shape": bundle.preprocessing.shape},
                memories=(self._slot, file),
                limits=limits,
            )
            await stack.enter_async_context(self._worker)
            loaded = msgspec.msgpack.decode(await self._ask(b""), type=Loaded)
            loaded.check(bundle.outputs)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def infer(
        self, bundle: Bundle, pixels: npt.NDArray[np.uint8] | memoryview, outputs: tuple[str, ...]
    ) -> Outputs:
        """As the engine's, for the one bundle that is tried. Raises InvalidInput where the model fails."""
        image = np.ascontiguousarray(pixels)
        self._slot.view[: image.nbytes] = image.reshape(-1).data
        try:
            await self._ask(msgspec.msgpack.encode(Run(0, 0, outputs)))
        except ModelFailed as failure:
            raise InvalidInput(f"self-test: {failure}") from failure
        layout = places(image.nbytes, [bundle.outputs[name] for name in outputs])
        return {
            name: np.frombuffer(self._slot.view, np.float32, count, offset)
            .reshape(bundle.outputs[name])
            .copy()
            for name, (offset, count) in zip(outputs, layout, strict=True)
        }

    async def _ask(self, request: bytes) -> bytes:
        try:
            return await self._worker.call(request, SECONDS)
        except WorkerLost as loss:
            limit = f"{self._cpu_seconds} s of the processor, or more memory than a trial has"
            raise InvalidInput(f"the model crashed its trial, or took {limit}") from loss
