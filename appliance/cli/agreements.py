"""`agreement`."""

import argparse
import hashlib
from pathlib import Path

from appliance.cli.client import Operator, client, segment
from appliance.cli.output import Document, Output, Refused, table
from appliance.cli.progress import Progress
from appliance.cli.words import Words


def add(words: Words) -> None:
    """The verbs of agreements."""
    agreements = words.noun("agreement", "what a customer allows to be done with what it sends")
    sign = agreements.verb("sign", client(_sign), "record a contract that both sides have signed")
    sign.add_argument("customer", help="id or name")
    sign.add_argument(
        "kind", help="training-data (its images may be stored, for models of its own), nda, dpa"
    )
    sign.add_argument("--parties", metavar="TEXT", help="as the paper names them")
    sign.add_argument("--document", type=Path, metavar="FILE", help="the paper; it is kept sealed")
    sign.add_argument("--signed-on", metavar="DATE", help="when both had signed, 2027-01-31")
    sign.add_argument("--valid-until", metavar="TIME", help="ISO 8601 with a UTC offset; default: no end")
    sign.add_argument(
        "--await-acceptance", action="store_true", help="pending until an admin token of the customer accepts"
    )
    listing = agreements.verb("list", client(_list), "agreements, revoked ones included")
    listing.add_argument("customer", nargs="?", help="id or name; default: of all")
    agreements.verb("revoke", client(_revoke), "end an agreement from now on").add_argument("id")
    reading = agreements.verb("document", client(_document), "copy the paper that was signed")
    reading.add_argument("id")
    reading.add_argument("path", type=Path, help="a new file")


async def _sign(operator: Operator, arguments: argparse.Namespace) -> Output:
    body: Document = {"customer": await operator.customer_id(arguments.customer), "kind": arguments.kind}
    if arguments.await_acceptance:
        body["await_acceptance"] = True
    for field in ("parties", "signed_on", "valid_until"):
        if (value := getattr(arguments, field)) is not None:
            body[field] = value
    document = None if arguments.document is None else _read(arguments.document)
    if document is not None:
        body["text_sha256"] = hashlib.sha256(document).hexdigest()
    made = await operator.call("POST", "/agreements", body=body)
    if document is not None:
        await operator.call("PUT", f"/agreements/{made['id']}/document", raw=document)
        made["has_document"] = True
    return Output(made, f"the {made['kind']} agreement {made['id']} is {made['state']}")


async def _list(operator: Operator, arguments: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/agreements", query=await operator.of_customer(arguments.customer))
    columns = (
        "id",
        "customer",
        "kind",
        "state",
        "parties",
        "signed_at",
        "active_at",
        "valid_until",
        "revoked_at",
    )
    return Output(answer, table(answer["agreements"], *columns))


async def _revoke(operator: Operator, arguments: argparse.Namespace) -> Output:
    await operator.call("DELETE", f"/agreements/{segment(arguments.id, 'agreement')}")
    return Output({"id": arguments.id, "revoked": True}, f"agreement {arguments.id} is revoked")


async def _document(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance.datasets.interchange import landing

    target = arguments.path.absolute()
    pieces = operator.stream("GET", f"/agreements/{segment(arguments.id, 'agreement')}/document")
    with Progress("written", None, None) as told:
        size = await landing.land_whole(pieces, target, told)
    return Output({"path": str(target), "bytes": size}, f"{target}: {size} bytes")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused("failed", f"{path}: {error.strerror}") from None
