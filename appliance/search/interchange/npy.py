"""Arrays in NumPy's file format: the header read strictly and nothing of it run, the rows as they come.

Versions 1.0 and 2.0 of https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; 3.0 is for
names of fields, which no array of vectors has.
"""

from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import InvalidInput

Block = npt.NDArray[np.floating[Any]]

_LENGTHS = {b"\x01\x00": 2, b"\x02\x00": 4}
"""How many bytes tell the header's length, by the version."""
_MAX_HEADER = 10_000
"""As many characters NumPy itself trusts to Python's parser, which longer ones have crashed."""
_FLOATS = {2, 4, 8}


class Array:
    """A 2-D array that is read once. `rows` is how many it has by its header."""

    def __init__(self, stream: "_Stream", rows: int, dim: int, dtype: np.dtype[Any]) -> None:
        self._stream = stream
        self._dim = dim
        self._dtype = dtype
        self.rows = rows

    @classmethod
    async def open(cls, pieces: AsyncIterator[bytes], dim: int) -> "Array":
        """Raises InvalidInput unless it is of float16, float32 or float64, in C order, with `dim` columns."""
        stream = _Stream(pieces)
        shape, fortran, dtype = await _header(stream)
        if dtype.kind != "f" or dtype.itemsize not in _FLOATS:
            raise InvalidInput("the array is not of float16, float32 or float64")
        if len(shape) != 2 or shape[0] < 0:
            raise InvalidInput(f"the array has the shape {shape}: rows of {dim} numbers are expected")
        if shape[1] != dim:
            raise InvalidInput(f"the array has {shape[1]} columns, the collection's vectors have {dim}")
        if fortran:
            raise InvalidInput("the array is in Fortran order: save numpy.ascontiguousarray(it)")
        return cls(stream, shape[0], dim, dtype)

    async def blocks(self, at_once: int) -> AsyncIterator[Block]:
        """All rows, up to so many at a time: (n, dim) in the array's own type.

        Raises InvalidInput when the bytes end before the array does, or go on behind it.
        """
        width, left = self._dim * self._dtype.itemsize, self.rows
        while left:
            wanted = min(left, at_once)
            block = await self._stream.take(wanted * width)
            whole = len(block) // width
            left -= whole
            if whole:
                yield np.frombuffer(block, self._dtype, whole * self._dim).reshape(whole, self._dim)
            if whole < wanted:
                raise InvalidInput(f"the array breaks off after {self.rows - left} of its {self.rows} rows")
        if await self._stream.take(1):
            raise InvalidInput("more bytes follow than the array has rows for")


def header(rows: int, dim: int) -> bytes:
    """What stands before `rows` vectors of float32, little-endian."""
    written = BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(written, described)
    return written.getvalue()


class _Stream:
    """The bytes of a stream, taken in sizes of the reader's choice."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._held = bytearray()

    async def take(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        while len(self._held) < size:
            piece = await anext(self._pieces, None)
            if piece is None:
                break
            self._held += piece
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken


async def _header(stream: _Stream) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    start = await stream.take(8)
    length_bytes = _LENGTHS.get(start[6:])
    if start[:6] != np.lib.format.MAGIC_PREFIX or length_bytes is None:
        raise InvalidInput("no array: the format .npy is expected, in version 1.0 or 2.0")
    length = await stream.take(length_bytes)
    size = int.from_bytes(length, "little")
    if size > _MAX_HEADER:
        raise InvalidInput(f"the array's header has {size} bytes, at most {_MAX_HEADER} are read")
    told = BytesIO(length + await stream.take(size))
    read = np.lib.format.read_array_header_1_0 if length_bytes == 2 else np.lib.format.read_array_header_2_0
    try:
        return read(told, max_header_size=_MAX_HEADER)
    except Exception:  # noqa: BLE001 - NumPy and Python's parser have many ways to say it
        raise InvalidInput("the array's header is malformed") from None
