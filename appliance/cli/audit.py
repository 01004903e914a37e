"""`audit`: the log of what was done, and the proof that it is whole.

`verify` and `key` read the state folder itself, and need neither a daemon nor a key.
"""

import argparse
from pathlib import Path

from appliance.cli.client import Operator, client
from appliance.cli.output import Document, Output, Refused, table
from appliance.cli.progress import Progress
from appliance.cli.words import Words


def add(words: Words) -> None:
    """The verbs of the audit log."""
    audit = words.noun("audit", "the log of what was done")
    entries = audit.verb("list", client(_list), "entries of the log, oldest first, a page at a time")
    _choosing(entries)
    entries.add_argument("--limit", type=int, metavar="N", help="entries of the page; default 100")
    export = audit.verb("export", client(_export), "copy entries of the log, as they are in its tree")
    export.add_argument("path", type=Path, help="a new file of JSON lines")
    _choosing(export)
    verify = audit.verb("verify", _verify, "compare ledger, tiles and checkpoints, name all that was changed")
    verify.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="one that was kept: the log must go on from it"
    )
    verify.add_argument(
        "--key", metavar="KEY", help="what `audit key` printed, or a file of it; default: the one in the log"
    )
    audit.verb("key", _key, "the public key that checkpoints are signed by: note it elsewhere")


def _choosing(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--customer", metavar="CUSTOMER", help="id or name; default: of all")
    verb.add_argument("--event", action="append", metavar="EVENT", help="such as token.add; repeat for more")
    verb.add_argument("--subject", metavar="ID", help="what was acted on")
    verb.add_argument("--since", metavar="TIME", help="ISO 8601 with a UTC offset")
    verb.add_argument("--until", metavar="TIME", help="ISO 8601 with a UTC offset, itself left out")
    verb.add_argument("--after", type=int, metavar="SEQ", help="go on after this entry")


async def _query(operator: Operator, arguments: argparse.Namespace) -> list[tuple[str, str]]:
    query = list((await operator.of_customer(arguments.customer)).items())
    query += [("event", event) for event in arguments.event or ()]
    for name in ("subject", "since", "until", "after"):
        if (value := getattr(arguments, name)) is not None:
            query.append((name, str(value)))
    return query


async def _list(operator: Operator, arguments: argparse.Namespace) -> Output:
    query = await _query(operator, arguments)
    if arguments.limit is not None:
        query.append(("limit", str(arguments.limit)))
    answer = await operator.call("GET", "/audit", query=query)
    rows = [entry | {"actor": " ".join(entry["actor"].values())} for entry in answer["entries"]]
    text = table(rows, "seq", "time", "event", "actor", "customer", "subject")
    if answer["next"] is not None:
        text += f"\nmore: --after {answer['next']}"
    return Output(answer, text)


async def _export(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance.datasets.interchange import landing

    target = arguments.path.absolute()
    pieces = operator.stream("GET", "/audit/export", query=await _query(operator, arguments))
    with Progress("written", None, None) as told:
        size = await landing.land_whole(pieces, target, told)
    return Output({"path": str(target), "bytes": size}, f"{target}: {size} bytes")


def _verify(arguments: argparse.Namespace) -> Output:
    from appliance.accounts.transparency.verification import verify
    from appliance.datasets.witness import acknowledged
    from appliance.errors import InvalidInput

    kept = None if arguments.checkpoint is None else _content(arguments.checkpoint)
    key = arguments.key
    if key is not None and Path(key).is_file():
        key = _content(Path(key)).decode("ascii", "replace")
    state = _state(arguments)
    images = state / "images"
    try:
        witnessed = acknowledged(images)
    except OSError as error:
        raise Refused("failed", f"{images}/witness: {error.strerror}") from None
    try:
        found = verify(state, kept=kept, key=key, acknowledged=witnessed)
    except InvalidInput as error:
        raise Refused("bad_request", f"--key: {error}") from None
    document: Document = {
        "origin": found.origin,
        "key": str(found.key),
        "entries": found.entries,
        "signed": found.signed,
        "root": found.root.hex(),
        "remarks": found.remarks,
    }
    lines = [
        f"{found.origin}: {found.entries} entries, each as it was written; {found.signed} of them are signed",
        f"signed by {found.key}",
    ]
    if kept is not None:
        lines.append("the log goes on from the checkpoint that was given")
    return Output(document, "\n".join([*lines, *found.remarks]))


def _key(arguments: argparse.Namespace) -> Output:
    from appliance.accounts.transparency.checkpoints import parse_key
    from appliance.accounts.transparency.tree import FOLDER, KEY
    from appliance.errors import InvalidInput

    file = _state(arguments) / FOLDER / KEY
    try:
        key = parse_key(_content(file).decode("ascii", "replace"))
    except InvalidInput as error:
        raise Refused("failed", f"{file}: {error}") from None
    return Output({"key": str(key), "name": key.name, "public": key.public}, str(key))


def _state(arguments: argparse.Namespace) -> Path:
    """The state folder, which is its owner's: what root opened there would not be the daemon's."""
    from appliance import config, process

    state, _ = config.locate(arguments.config)
    process.become_owner(state)
    return state


def _content(file: Path) -> bytes:
    """Of a small file. Raises Refused."""
    try:
        with file.open("rb") as opened:
            return opened.read(1 << 20)
    except OSError as error:
        raise Refused("failed", f"{file}: {error.strerror}") from None
