"""`collection import` and `export`: ready vectors in, whole collections out.

The files are this machine's. Records leave with a token of their customer's alone.
"""

import argparse
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from appliance.cli.client import MULTIPART, Operator, client, form, segment, token_of
from appliance.cli.output import UNAVAILABLE, Document, Output, Refused
from appliance.cli.progress import Progress
from appliance.cli.words import Words

_LINES = {".jsonl", ".ndjson"}
_PIECE = 1 << 20
_HELD = 4 << 20  # of lines before an array: a quarter of what the appliance holds
_ROWS = 4096
_NAMED = 20  # refused records, for people

Parts = AsyncIterator[tuple[str, AsyncIterator[bytes]]]


def add(collections: Words) -> None:
    """The two verbs."""
    taking = collections.verb("import", client(_import), "store ready vectors of a collection's model")
    taking.add_argument("id")
    taking.add_argument("path", type=Path, help="a .npy, a .jsonl, or a .zip that an export has made")
    taking.add_argument(
        "--backbone", required=True, metavar="PIN", help="NAME@VERSION of the model that made the vectors"
    )
    naming = taking.add_mutually_exclusive_group()
    naming.add_argument(
        "--records", type=Path, metavar="FILE", help="JSON lines: the _id and metadata of each row of a .npy"
    )
    naming.add_argument("--prefix", default="", help="stands before the row numbers, the ids of a .npy")
    taking.add_argument(
        "--on-conflict",
        choices=("keep", "replace"),
        default="keep",
        help="where an id is there already",
    )
    giving = collections.verb("export", client(_export, only_running=True), "copy a whole collection")
    giving.add_argument("id")
    giving.add_argument("path", type=Path, help="a new .jsonl, or a new .zip of arrays and JSON lines")
    giving.add_argument(
        "--token-file", required=True, metavar="FILE", help="a token of the customer's; - for stdin"
    )
    giving.add_argument("--skip-damaged", action="store_true", help="leave damaged records out")


async def _import(operator: Operator, arguments: argparse.Namespace) -> Output:
    from aiohttp import ClientError

    path = arguments.path.absolute()
    query = {"backbone": arguments.backbone, "on_conflict": arguments.on_conflict, "prefix": arguments.prefix}
    route = f"/collections/{segment(arguments.id, 'collection')}/import"
    try:
        with ExitStack() as stack:
            media, pieces = _content(path, arguments.records, stack)
            told = stack.enter_context(Progress("sent", None, path.stat().st_size))
            report = await operator.call(
                "POST", route, query=query, pieces=_counted(pieces, told), media=media
            )
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        if isinstance(error, ClientError):
            reason = "the daemon went away in the middle: what it has stored stays, run it again to go on"
            raise Refused("unavailable", reason, UNAVAILABLE) from error
        raise Refused("bad_request", f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return Output(report, _told(report))


async def _export(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance.datasets.interchange import landing

    target, suffix = arguments.path.absolute(), arguments.path.suffix.lower()
    if suffix != ".zip" and suffix not in _LINES:
        raise Refused("bad_request", f"{target}: a .zip or a .jsonl is expected")
    query = {"format": "npy" if suffix == ".zip" else "ndjson"}
    query |= {"skip_damaged": "true"} if arguments.skip_damaged else {}
    path = f"/collections/{segment(arguments.id, 'collection')}/export"
    pieces = operator.stream("GET", path, query=query, token=token_of(arguments.token_file))
    with Progress("written", None, None) as told:
        size = await landing.land_whole(pieces, target, told)
    return Output({"path": str(target), "bytes": size}, f"{target}: {size} bytes")


def _content(path: Path, records: Path | None, stack: ExitStack) -> tuple[str, AsyncIterator[bytes]]:
    """What is sent of a file, and its media type. Raises Refused, OSError, BadZipFile, ValueError."""
    import numpy as np

    suffix = path.suffix.lower()
    if suffix == ".npy" and records is not None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        file = stack.enter_context(records.open("rb"))
        lines = sum(1 for _ in file)
        if array.ndim != 2 or len(array) != lines:
            shape = "x".join(map(str, array.shape))
            raise Refused("bad_request", f"{path}: the array is {shape}, {records} has {lines} lines")
        file.seek(0)
        return MULTIPART, form(_named(array, file))
    if records is not None:
        raise Refused("bad_request", f"{path}: --records belongs to a .npy")
    if suffix == ".zip":
        archive = stack.enter_context(zipfile.ZipFile(path))
        return MULTIPART, form(_members(archive))
    if suffix != ".npy" and suffix not in _LINES:
        raise Refused("bad_request", f"{path}: a .npy, a .jsonl or a .zip is expected")
    media = "application/x-npy" if suffix == ".npy" else "application/x-ndjson"
    return media, _pieces(stack.enter_context(path.open("rb")))


async def _named(array: Any, records: io.BufferedIOBase) -> Parts:
    """Lines, and the rows of the array that they belong to, in turns."""
    import numpy as np

    row = 0
    while row < len(array):
        named, rows = io.BytesIO(), 0
        while rows < _ROWS and named.tell() < _HELD and (line := records.readline()):
            named.write(line)
            rows += 1
        vectors = io.BytesIO()
        np.save(vectors, np.ascontiguousarray(array[row : row + rows]))
        row += rows
        for name, content in (("records", named), ("vectors", vectors)):
            content.seek(0)
            yield name, _pieces(content)


async def _members(archive: zipfile.ZipFile) -> Parts:
    """`records-00001.jsonl` and `vectors-00001.npy` and so on, as the archive has them."""
    for member in archive.infolist():
        with archive.open(member) as content:
            yield member.filename.partition("-")[0], _pieces(content)


async def _pieces(file: Any) -> AsyncIterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


async def _counted(pieces: AsyncIterator[bytes], told: Progress) -> AsyncIterator[bytes]:
    size = 0
    async for piece in pieces:
        yield piece
        size += len(piece)
        told(0, size)


def _told(report: Document) -> str:
    lines = [
        f"{report['inserted']} records stored, {report['replaced']} replaced, {report['kept']} were there"
    ]
    if report["refused"]:
        lines.append(f"{report['refused']} refused:")
        for one in report["reasons"][:_NAMED]:
            place = f"line {one['line']}" if "line" in one else f"row {one['row']}"
            lines.append(f"  {place}: {one['reason']}")
    return "\n".join(lines)
