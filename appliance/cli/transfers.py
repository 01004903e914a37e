"""`collection import` and `export`: ready vectors in, whole collections out.

The files are this machine's. Records leave with a token of their customer's alone.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

from appliance.cli import vectors
from appliance.cli.client import Operator, client, segment, token_of
from appliance.cli.output import UNAVAILABLE, Document, Output, Refused
from appliance.cli.progress import Progress
from appliance.cli.words import Words

_NAMED = 20  # refused records, for people


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
            media, pieces = vectors.content(path, arguments.records, stack)
            told = stack.enter_context(Progress("sent", None, path.stat().st_size))
            report = await operator.call(
                "POST", route, query=query, pieces=_counted(pieces, told), media=media
            )
    except ClientError as error:
        reason = "the daemon went away in the middle: what it has stored stays, run it again to go on"
        raise Refused("unavailable", reason, UNAVAILABLE) from error
    return Output(report, _told(report))


async def _export(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance.datasets.interchange import landing

    target, suffix = arguments.path.absolute(), arguments.path.suffix.lower()
    if suffix != ".zip" and suffix not in vectors.LINES:
        raise Refused("bad_request", f"{target}: a .zip or a .jsonl is expected")
    query = {"format": "npy" if suffix == ".zip" else "ndjson"}
    query |= {"skip_damaged": "true"} if arguments.skip_damaged else {}
    path = f"/collections/{segment(arguments.id, 'collection')}/export"
    pieces = operator.stream("GET", path, query=query, token=token_of(arguments.token_file))
    with Progress("written", None, None) as told:
        size = await landing.land_whole(pieces, target, told)
    return Output({"path": str(target), "bytes": size}, f"{target}: {size} bytes")


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
