"""Ready vectors in a file of this machine, as an import takes them: an array, JSON lines, or an export's zip.

Whatever is wrong with a file is refused by its name, also where that shows only while it is sent.
"""

import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from appliance.cli.client import MULTIPART, form
from appliance.cli.output import Refused
from appliance.errors import InvalidInput

LINES = {".jsonl", ".ndjson"}

_PARTS = {"records", "vectors"}
_PIECE = 1 << 20
_HELD = 4 << 20  # of lines before an array: a quarter of what the appliance holds
_ROWS = 4096

Parts = AsyncIterator[tuple[str, AsyncIterator[bytes]]]


def content(path: Path, records: Path | None, stack: ExitStack) -> tuple[str, AsyncIterator[bytes]]:
    """The media type and the bytes to send of a file, which stays open in `stack`; `records` has a line for
    each row of an array. Raises Refused, as the bytes do.
    """
    from appliance.datasets.interchange import zips

    suffix = path.suffix.lower()
    if records is not None and suffix != ".npy":
        raise Refused("bad_request", f"{path}: --records belongs to a .npy")
    if records is not None:
        with _refusing(records):
            file = stack.enter_context(records.open("rb"))
            lines = sum(1 for _ in file)
            file.seek(0)
        with _refusing(path):
            array = _array(path)
        if len(array) != lines:
            shape = "x".join(map(str, array.shape))
            raise Refused("bad_request", f"{path}: the array is {shape}, {records} has {lines} lines")
        return MULTIPART, form(_named(array, file, records))
    with _refusing(path):
        if suffix == ".zip":
            archive = stack.enter_context(zips.opened(path))
            return MULTIPART, form(_members(archive, path))
        if suffix != ".npy" and suffix not in LINES:
            raise InvalidInput("a .npy, a .jsonl or a .zip is expected")
        media = "application/x-npy" if suffix == ".npy" else "application/x-ndjson"
        return media, _pieces(stack.enter_context(path.open("rb")), path)


def _array(path: Path) -> Any:
    """The rows of an array, read when they are asked for. Raises InvalidInput, OSError."""
    import numpy as np

    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - NumPy and Python's parser have many ways to say it
        raise InvalidInput("is no array, or a damaged one: the format .npy is expected") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        shape = "x".join(map(str, array.shape)) or "one number"
        raise InvalidInput(f"the array is {shape} of {array.dtype}: rows of floats are expected")
    return array


async def _named(array: Any, file: io.BufferedIOBase, records: Path) -> Parts:
    """Lines, and the rows of the array that they belong to, in turns."""
    import numpy as np

    row = 0
    while row < len(array):
        named, rows = io.BytesIO(), 0
        with _refusing(records):
            while rows < _ROWS and named.tell() < _HELD and (line := file.readline()):
                named.write(line)
                rows += 1
        if not rows:
            raise Refused("bad_request", f"{records}: changed while it was read: run the import again")
        vectors = io.BytesIO()
        np.save(vectors, np.ascontiguousarray(array[row : row + rows]))
        row += rows
        for name, part in (("records", named), ("vectors", vectors)):
            part.seek(0)
            yield name, _pieces(part, records)


async def _members(archive: zipfile.ZipFile, path: Path) -> Parts:
    """`records-00001.jsonl` and `vectors-00001.npy` and so on, as the archive has them."""
    from appliance.datasets.interchange import zips

    for member in archive.infolist():
        name = member.filename.partition("-")[0]
        where = f"{path}: {member.filename!a}"
        if name not in _PARTS:
            raise Refused("bad_request", f"{where}: an export has records-N.jsonl and vectors-N.npy")
        if zips.is_encrypted(member):
            raise Refused("bad_request", f"{where}: is encrypted: unpack the zip file, and pack it without")
        yield name, _of_member(archive, member, path)


async def _of_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> AsyncIterator[bytes]:
    from appliance.datasets.interchange import zips

    with _refusing(path), zips.reading(member.filename), archive.open(member) as opened:
        while piece := opened.read(_PIECE):
            yield piece


async def _pieces(file: Any, path: Path) -> AsyncIterator[bytes]:
    with _refusing(path):
        while piece := file.read(_PIECE):
            yield piece


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except InvalidInput as refusal:
        raise Refused("bad_request", f"{path}: {refusal}") from None
    except OSError as error:
        raise Refused("bad_request", f"{path}: {error.strerror or error}") from None
