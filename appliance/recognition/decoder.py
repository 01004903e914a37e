"""A decoder process: what it is asked, what it answers, and its main function.

It has two memories, encoded bytes and what it makes of them, that only it and the daemon see.
"""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from appliance.channel import Channel
from appliance.errors import InvalidImage, TooLarge
from appliance.recognition import decode
from appliance.recognition.ingest import Format
from appliance.recognition.preprocessing import Preprocessing

_Bytes = Annotated[int, msgspec.Meta(ge=1)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Look(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Decode `length` bytes from `source` of the input memory on, pixels to `target` of the output memory.

    `last`: no other lies ready behind this one.
    """

    source: int
    length: int
    target: int
    last: bool
    preprocessing: Preprocessing


class Looked(msgspec.Struct, frozen=True, array_like=True):
    """The pixels are in the output memory."""

    width: int
    height: int
    format: str


class Ingest(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Make of the first `length` bytes of the input memory what may be kept; nothing lies ready behind it."""

    length: int
    keep_metadata: bool


class Ingested(msgspec.Struct, frozen=True, array_like=True):
    """The output memory begins with an image of so many bytes, and its thumbnail is right behind."""

    image: _Bytes
    thumbnail: _Bytes
    format: Format
    width: _Side
    height: _Side


def main(channel: Channel, settings: dict[str, Any]) -> None:
    """The process. `settings`: the `max_pixels` and `max_side` of an image."""
    tasks: msgspec.msgpack.Decoder[Look | Ingest] = msgspec.msgpack.Decoder(Look | Ingest)
    encoder = msgspec.msgpack.Encoder()
    done: list[tuple[int, bytes]] = []

    def tell() -> None:
        channel.send_all(done)
        done.clear()

    # Once it is locked in, nothing more can be imported.
    decode.warm_up()
    encoded, produced = channel.memories
    channel.ready({})
    while (request := channel.receive()) is not None:
        identifier, body = request
        task = tasks.decode(body)
        answered: Looked | Ingested
        try:
            if isinstance(task, Look):
                answered = _look(task, encoded, produced, settings, tell)
            else:
                answered = _ingest(task, encoded, produced, settings)
        except (InvalidImage, TooLarge) as refusal:
            channel.refuse(identifier, refusal)
        else:
            done.append((identifier, encoder.encode(answered)))
        # Whoever is told of every image by itself wakes up, hands it on and falls asleep for every image.
        if not isinstance(task, Look) or task.last:
            tell()


def _look(
    task: Look,
    encoded: memoryview,
    produced: memoryview,
    settings: dict[str, Any],
    tell: Callable[[], None],
) -> Looked:
    image = encoded[task.source : task.source + task.length]
    decoded = decode.decode(image, task.preprocessing, **settings, when_slow=tell)
    produced[task.target : task.target + decoded.pixels.nbytes] = decoded.pixels.cast("B")
    return Looked(decoded.width, decoded.height, decoded.format)


def _ingest(task: Ingest, encoded: memoryview, produced: memoryview, settings: dict[str, Any]) -> Ingested:
    made = decode.ingest(encoded[: task.length], keep_metadata=task.keep_metadata, **settings)
    # What is kept is read again, by a decoder that takes no larger ones.
    if len(made.image) > len(encoded):
        raise TooLarge(f"the image would be kept in {len(made.image)} bytes; the limit is {len(encoded)}")
    end = len(made.image) + len(made.thumbnail)
    produced[: len(made.image)] = made.image
    produced[len(made.image) : end] = made.thumbnail
    return Ingested(len(made.image), len(made.thumbnail), made.format, made.width, made.height)
