"""A conversion in a stranger's hands: it does what a model's bytes say, behind the lock of the real one."""

import errno
from collections.abc import Mapping
from typing import Any

import msgspec

from appliance.channel import Channel
from appliance.errors import InvalidInput
from appliance.recognition import conversion, exports
from tests.faults.hostile_decoder import ACTS, DEADLY, HARMLESS

MODEL = "model.onnx"


def _hostile(name: str, files: Mapping[str, exports.Content]) -> dict[str, bytes]:
    word, _, port = bytes(files[MODEL]).decode("ascii").partition("@")
    if word in DEADLY:
        ACTS[word](0)
    if word == "swell":
        return {MODEL: bytes(64 << 20)}
    through = [act for act in sorted(ACTS.keys() - DEADLY - HARMLESS) if _goes_through(act, int(port))]
    raise InvalidInput(f"went through: {through}")


def _goes_through(act: str, port: int) -> bool:
    try:
        ACTS[act](port)
    except OSError as refused:
        return refused.errno != errno.EPERM
    return True


def main(channel: Channel, settings: dict[str, Any]) -> None:
    exports.convert = _hostile
    conversion.main(channel, settings)


def liar(channel: Channel, _: dict[str, Any]) -> None:
    """Answers with the very bytes of the model."""
    channel.ready({})
    while (request := channel.receive()) is not None:
        _, [(_, size)] = msgspec.msgpack.decode(request[1])
        channel.send(request[0], bytes(channel.memories[0][:size]))
