"""`dataset`: whole datasets in and out. Images leave with a token of their customer's, or with its grant."""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

from appliance.cli.client import Operator, client, segment, token_of
from appliance.cli.output import UNAVAILABLE, Document, Output, Refused, table
from appliance.cli.progress import Progress
from appliance.cli.words import Words

_FORMATS = ("imagefolder", "coco", "yolo", "csv")
_NAMED = 20  # images that were refused or left out, for people
_BUSY, _BUSY_SECONDS, _PAUSE = "too_many_requests", 60.0, 1.0


def add(words: Words) -> None:
    """The verbs of datasets."""
    datasets = words.noun("dataset", "stored images, and all that is said about them")
    listing = datasets.verb("list", client(_list, only_running=True), "datasets with their counts")
    listing.add_argument("customer", nargs="?", help="id or name; default: of all")
    taking = datasets.verb("import", _import, "store a dataset as other programs leave it")
    taking.add_argument("dataset", help="its id, or a customer's id or name for the default one")
    taking.add_argument("path", type=Path, help="a folder, a .zip or a .tar")
    taking.add_argument("--format", choices=("auto", *_FORMATS), default="auto", help="default: auto")
    taking.add_argument("--task", metavar="NAME", help="a task that gathers the labels, found or made")
    taking.add_argument("--resend", action="store_true", help="also what the dataset holds already")
    giving = datasets.verb("export", client(_export, only_running=True), "copy a dataset out of the store")
    giving.add_argument("dataset", help="its id, or Default; by a grant also a customer's id or name")
    giving.add_argument("path", type=Path, help="a new folder, .zip or .tar")
    giving.add_argument("--format", choices=_FORMATS, required=True)
    giving.add_argument(
        "--token-file",
        metavar="FILE",
        help="a token of the customer's; - for stdin; default: by a grant to you",
    )
    giving.add_argument("--skip-damaged", action="store_true", help="leave damaged images out, and name them")


async def _list(operator: Operator, arguments: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/datasets", query=await operator.of_customer(arguments.customer))
    columns = ("id", "customer", "is_default", "visibility", "images", "bytes", "created_at")
    return Output(answer, table(answer["datasets"], *columns))


def _import(arguments: argparse.Namespace) -> Output:
    try:
        return client(_send, only_running=True)(arguments)
    except KeyboardInterrupt:
        reason = "interrupted: the images that were sent are stored; run it again to go on"
        raise Refused("interrupted", reason) from None


async def _send(operator: Operator, arguments: argparse.Namespace) -> Output:
    path = arguments.path.absolute()
    dataset = segment(await operator.customer_id(arguments.dataset), "dataset")
    query = {"format": arguments.format} | ({"task": arguments.task} if arguments.task else {})
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        held = set() if arguments.resend else await _held(operator, dataset)
        try:
            report = await _sent(operator, f"/datasets/{dataset}/import", query, path, held)
        except Refused as refusal:
            # One that was interrupted ends with the images that it has begun.
            if refusal.error != _BUSY or time.monotonic() > deadline:
                raise
            await asyncio.sleep(_PAUSE)
        else:
            return Output(report, _told(report))


async def _sent(
    operator: Operator, route: str, query: dict[str, str], path: Path, held: set[bytes]
) -> Document:
    from aiohttp import ClientError

    from appliance.errors import InvalidInput

    try:
        with ExitStack() as stack:
            tar, ignored = _tar(path, held, stack)
            report = await operator.call("POST", route, query=query, pieces=tar)
    except InvalidInput as refusal:
        raise Refused("bad_request", f"{path}: {refusal}") from refusal
    except ClientError as error:
        reason = "the daemon went away in the middle: what it has stored stays, run it again to go on"
        raise Refused("unavailable", reason, UNAVAILABLE) from error
    report["ignored"] += ignored
    return report


async def _held(operator: Operator, dataset: str) -> set[bytes]:
    """What need not be sent: see `Source.digest`."""
    digests, rest = set[bytes](), b""
    async for piece in operator.stream("GET", f"/datasets/{dataset}/held"):
        *lines, rest = (rest + piece).split(b"\n")
        digests.update(bytes.fromhex(line.decode()) for line in lines)
    return digests


def _tar(path: Path, held: set[bytes], stack: ExitStack) -> tuple[AsyncIterator[bytes], int]:
    """What is sent, and how many files are not because they are no part of a dataset."""
    from appliance.datasets.interchange import sending, zips

    try:
        if path.is_dir():
            found = sending.of_folder(path)
        elif path.suffix.lower() == ".zip":
            opened = stack.enter_context(zips.opened(path))
            found = sending.of_zip(opened, path.stat().st_size)
        else:
            told = stack.enter_context(Progress("sent", None, path.stat().st_size))
            return sending.again_as_tar(sending.of_file(path), held, told), 0
    except OSError as error:
        raise Refused("bad_request", f"{path}: {error.strerror or error}") from error
    told = stack.enter_context(Progress("sent", len(found.files), found.size))
    return sending.as_tar(found, held, told), found.ignored


def _told(report: Document) -> str:
    stored = f"{report['images']} images stored, {report['present']} were there"
    lines = [f"{stored}; {report['labels']} labels and {report['objects']} boxes put on them"]
    if report["ignored"]:
        lines.append(f"{report['ignored']} files are neither image nor annotation: ignored")
    lines += [f"{count} left out: {what}" for what, count in report["left_out"].items()]
    if report["refused_count"]:
        lines.append(f"{report['refused_count']} images refused:")
        lines += [f"  {one['name']}: {one['reason']}" for one in report["refused"][:_NAMED]]
    return "\n".join(lines)


async def _export(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance.datasets.interchange import landing

    target = arguments.path.absolute()
    query = {"format": arguments.format} | ({"skip_damaged": "true"} if arguments.skip_damaged else {})
    token = None if arguments.token_file is None else token_of(arguments.token_file)
    named = arguments.dataset if token is not None else await operator.customer_id(arguments.dataset)
    path = f"/datasets/{segment(named, 'dataset')}/export"
    pieces = operator.stream("GET", path, query=query, token=token)
    with Progress("written", None, None) as told:
        landed = await landing.land(pieces, target, told)
    said = f"{target}: {landed.files} files"
    if landed.left_out:
        said += _named(landed.left_out)
        if not arguments.skip_damaged:  # nobody has said that some may be missing
            raise Refused("incomplete", said)
    left_out = [{"name": name, "reason": reason} for name, reason in landed.left_out]
    document: Document = {"path": str(target), "files": landed.files, "left_out": left_out}
    return Output(document, said)


def _named(left_out: list[tuple[str, str]]) -> str:
    from appliance.datasets.interchange.formats import LEFT_OUT

    some = [f"  {name}: {reason}" for name, reason in left_out[:_NAMED]]
    return "\n".join([f"; {len(left_out)} images are not in it, {LEFT_OUT} names them:", *some])
