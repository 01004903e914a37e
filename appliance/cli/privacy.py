"""`customer erase` and `export`, `report`, and `erasure`: proofs of erasure, which need no appliance."""

import argparse
import json
from pathlib import Path

from appliance.cli.client import Operator, client, segment, token_of
from appliance.cli.output import Document, Output, Refused, table
from appliance.cli.progress import Progress
from appliance.cli.words import Words

_SUMMARY = ("id", "kind", "customer", "subject", "erased_at")
_LONGEST = 1 << 20  # bytes of a certificate


def add_to_customers(customers: Words) -> None:
    """The verbs of a customer as a whole."""
    erase = customers.verb("erase", client(_erase, only_running=True), "erase it with all that it has")
    erase.add_argument("customer", help="id or name")
    erase.add_argument("--yes", metavar="NAME", required=True, help="its name once more, letter by letter")
    export = customers.verb("export", client(_export, only_running=True), "copy all that it has into a .zip")
    export.add_argument("customer", help="id or name")
    export.add_argument(
        "--token-file",
        required=True,
        metavar="FILE",
        help="an admin token of its own that reads datasets and searches; - for stdin",
    )
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .zip")


def add(words: Words) -> None:
    """The verbs of certificates, and the report."""
    report = words.verb("report", client(_report, only_running=True), "records of processing, and controls")
    report.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="a new .html, which prints well"
    )
    erasures = words.noun("erasure", "certificates of what was erased")
    listing = erasures.verb("list", client(_list), "certificates, oldest first, a page at a time")
    listing.add_argument("--customer", metavar="CUSTOMER", help="id or name; the id of an erased one")
    listing.add_argument("--about", metavar="ID", help="of what was erased, or of a destroyed key")
    listing.add_argument("--after", type=int, metavar="N", help="go on after this one")
    listing.add_argument("--limit", type=int, metavar="N", help="certificates of the page; default 100")
    show = erasures.verb("show", client(_show), "a certificate whole")
    show.add_argument("id")
    show.add_argument("--out", type=Path, metavar="FILE", help="write it there, and its key to FILE.pub")
    verify = erasures.verb("verify", _verify, "prove a certificate, with two files and nothing else")
    verify.add_argument("file", type=Path)
    verify.add_argument("pub", type=Path, metavar="PUB", help="the appliance's public key")


async def _erase(operator: Operator, arguments: argparse.Namespace) -> Output:
    customer = segment(await operator.customer_id(arguments.customer), "customer")
    made = await operator.call("DELETE", f"/customers/{customer}", query={"name": arguments.yes})
    counts = ", ".join(f"{count} {what}" for what, count in made["statement"]["counts"].items())
    return Output(made, f"customer {customer} is erased ({counts}); the certificate is {made['id']}")


async def _export(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance.datasets.interchange import landing

    target, token = arguments.out.absolute(), token_of(arguments.token_file)
    query = {"customer": await operator.customer_id(arguments.customer)}
    pieces = operator.stream("GET", "/export", query=query, token=token)
    with Progress("written", None, None) as told:
        size = await landing.land_whole(pieces, target, told)
    return Output({"path": str(target), "bytes": size}, f"{target}: {size} bytes")


async def _report(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance.datasets.interchange import landing

    target = arguments.out.absolute()
    size = await landing.land_whole(operator.stream("GET", "/report"), target, lambda _files, _size: None)
    return Output({"path": str(target), "bytes": size}, f"{target}: {size} bytes")


async def _list(operator: Operator, arguments: argparse.Namespace) -> Output:
    query = await operator.of_customer(arguments.customer)
    for name in ("about", "after", "limit"):
        if (value := getattr(arguments, name)) is not None:
            query[name] = str(value)
    answer = await operator.call("GET", "/erasures", query=query)
    text = table(answer["erasures"], *_SUMMARY)
    if answer["next"] is not None:
        text += f"\nmore: --after {answer['next']}"
    return Output(answer, text)


async def _show(operator: Operator, arguments: argparse.Namespace) -> Output:
    found = await operator.call("GET", f"/erasures/{segment(arguments.id, 'certificate of erasure')}")
    if arguments.out is None:
        return Output(found, _told(found["statement"]))
    # As it was signed: JSON without a space.
    envelope = json.dumps(found["envelope"], separators=(",", ":"))
    key = arguments.out.with_name(arguments.out.name + ".pub")
    try:
        arguments.out.write_text(envelope + "\n")
        key.write_text(found["public_key"] + "\n")
    except OSError as error:
        raise Refused("failed", f"{error.filename}: {error.strerror}") from error
    document = {"certificate": str(arguments.out), "public_key": str(key)}
    return Output(document, f"{arguments.out} is the certificate, {key} the key that proves it")


def _verify(arguments: argparse.Namespace) -> Output:
    import msgspec

    from appliance.accounts.certificates import verified

    try:
        with arguments.file.open("rb") as file:
            envelope = file.read(_LONGEST)
        public = arguments.pub.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        where = getattr(error, "filename", None) or arguments.pub
        raise Refused("failed", f"{where}: {getattr(error, 'strerror', None) or 'is no key'}") from error
    statement: Document = msgspec.to_builtins(verified(envelope, public.strip()))
    return Output({"valid": True, "statement": statement}, f"the signature is good\n{_told(statement)}")


def _told(statement: Document) -> str:
    counts = ", ".join(f"{count} {what}" for what, count in statement["counts"].items())
    lines = [
        f"{statement['kind']} {statement['subject']} of customer {statement['customer']}",
        f"erased by {statement['erased_at']}: {counts or 'nothing was in it'}",
        *(f"key destroyed: {key}" for key in statement["keys"]),
        *statement["ids"],
    ]
    return "\n".join(lines)
