"""Judges a model before anything loads it, in a process of its own that is locked in and then ends.

A model file is a stranger's protobuf: what its parser can be made to do must not happen in the daemon.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from appliance.background import uninterrupted
from appliance.channel import Channel, Limits
from appliance.errors import InvalidInput, StorageFailed, WorkerLost
from appliance.workers import Memory, Worker

SECONDS = 120.0
# The file as it came, parsed, and once more as the checker's; and Python with its libraries.
_COPIES, _BASE_BYTES = 6, 2 * 1024**3


async def inspect(model: Path) -> None:
    """Raises InvalidInput with the reason why this ONNX file is not to be loaded, StorageFailed."""
    try:
        memory = Memory(max(1, (await asyncio.to_thread(model.stat)).st_size))
    except OSError as error:
        raise StorageFailed(f"{model}: {error.strerror}") from error
    limits = Limits(
        address_space_bytes=_BASE_BYTES + _COPIES * memory.size, file_bytes=0, nice=5, confined=True
    )
    target = f"{__name__}:main"
    try:
        await uninterrupted(asyncio.to_thread(fill, memory, model))
        async with Worker("model inspector", target, {}, memories=(memory,), limits=limits) as inspector:
            await inspector.call(b"", SECONDS)
    except InvalidInput as refusal:
        raise InvalidInput(f"{model.name}: {refusal}") from refusal
    except WorkerLost as error:
        reason = f"it crashed its inspection or took longer than {SECONDS:g} s"
        raise InvalidInput(f"{model.name}: {reason}") from error
    finally:
        memory.close()


def fill(memory: Memory, model: Path) -> None:
    """Copy a file of the memory's size into it, within the kernel: what the daemon does not map it does not
    hold. Raises OSError.
    """
    with model.open("rb") as file:
        copied = 0
        while sent := os.sendfile(memory.fd, file.fileno(), copied, memory.size - copied):
            copied += sent


def main(channel: Channel, settings: dict[str, Any]) -> None:  # noqa: ARG001 - every child is called so
    """The inspector: answers one request, about the model in its memory."""
    # Before the lock, and not in the daemon, which imports this module too.
    from appliance.recognition import graphs  # noqa: PLC0415

    channel.ready({})
    while (request := channel.receive()) is not None:
        try:
            graphs.parse(bytes(channel.memories[0]))
        except InvalidInput as refusal:
            channel.refuse(request[0], refusal)
        except MemoryError:
            channel.refuse(request[0], InvalidInput("it needs more memory than its inspection has"))
        else:
            channel.send(request[0], b"")
