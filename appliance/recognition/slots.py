"""What the engine and its device workers say to each other, and how a slot of their memory is laid out.

A slot holds one request: the pixels (uint8, as the model takes them), then, from the next ALIGNMENT on, the
outputs that were asked for (float32), one after the other in the order of the request, each aligned. The
worker answers a request with an empty message once its slot is filled.
"""

from collections.abc import Iterable, Mapping
from math import prod

import msgspec

from appliance.errors import InvalidInput

# Room for a 640 x 640 image and a detector's raw boxes; only touched pages exist.
SLOT_BYTES = 8 * 1024 * 1024
ALIGNMENT = 64
FLOAT_BYTES = 4


class Load(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Make a session of the model file at `path`, from then on called `model`; answered with Loaded.

    `shape` is that of the pixels of one image, `sha256` (hexadecimal) what the file must have: the path alone
    is not believed.
    """

    model: int
    path: str
    shape: tuple[int, ...]
    sha256: str


class Run(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Infer one slot. `alone`: in a batch of its own, because it may be what killed the last worker."""

    model: int
    slot: int
    outputs: tuple[str, ...]
    alone: bool = False


class Unload(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Forget a model; answered with an empty message. No request for it may be under way."""

    model: int


class Loaded(msgspec.Struct, frozen=True):
    """The provider that runs the session, the shape of each output for one image, and the memory it took.

    `together` is how many images one run takes at most.
    """

    provider: str
    outputs: dict[str, tuple[int, ...]]
    bytes: int = 0
    together: int = 1

    def check(self, promised: Mapping[str, tuple[int, ...]]) -> None:
        """Raises InvalidInput naming an output that is not what a bundle promises."""
        for name, shape in promised.items():
            if (given := self.outputs.get(name)) != shape:
                raise InvalidInput(f"output {name} is {given} for one image, not {shape}")


def aligned(size: int) -> int:
    """`size` rounded up to ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


Place = tuple[int, int]  # offset and count of floats


def places(start: int, shapes: Iterable[tuple[int, ...]]) -> list[Place]:
    """Of outputs with these shapes behind `start` bytes of pixels."""
    found = []
    offset = aligned(start)
    for shape in shapes:
        count = prod(shape)
        found.append((offset, count))
        offset += aligned(count * FLOAT_BYTES)
    return found


def check_room(pixel_bytes: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InvalidInput where one image's pixels and outputs of these shapes are more than a slot holds."""
    offset, count = places(pixel_bytes, shapes.values())[-1]
    if offset + count * FLOAT_BYTES > SLOT_BYTES:
        raise InvalidInput(f"pixels and outputs of one image exceed {SLOT_BYTES} bytes")
