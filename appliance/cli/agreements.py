"""`agreement` and `audit`."""

import argparse

from appliance.cli.client import Operator, client, segment
from appliance.cli.output import Document, Output, table
from appliance.cli.words import Words


def add(words: Words) -> None:
    """The verbs of agreements and of the audit log."""
    agreements = words.noun("agreement", "what a customer allows to be done with what it sends")
    sign = agreements.verb("sign", client(_sign), "record a contract that both sides have signed")
    sign.add_argument("customer", help="id or name")
    sign.add_argument("kind", help="training-data: its images may be stored, for models of its own")
    sign.add_argument(
        "--await-acceptance", action="store_true", help="pending until an admin token of the customer accepts"
    )
    listing = agreements.verb("list", client(_list), "agreements, revoked ones included")
    listing.add_argument("customer", nargs="?", help="id or name; default: of all")
    agreements.verb("revoke", client(_revoke), "end an agreement from now on").add_argument("id")

    audit = words.noun("audit", "the log of what was done")
    entries = audit.verb("list", client(_list_audit), "entries of the log, oldest first, a page at a time")
    entries.add_argument("--customer", metavar="CUSTOMER", help="id or name; default: of all")
    entries.add_argument("--after", type=int, metavar="SEQ", help="go on after this entry")
    entries.add_argument("--limit", type=int, metavar="N", help="entries of the page; default 100")


async def _sign(operator: Operator, arguments: argparse.Namespace) -> Output:
    body: Document = {"customer": await operator.customer_id(arguments.customer), "kind": arguments.kind}
    if arguments.await_acceptance:
        body["await_acceptance"] = True
    made = await operator.call("POST", "/agreements", body=body)
    return Output(made, f"the {made['kind']} agreement {made['id']} is {made['state']}")


async def _list(operator: Operator, arguments: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/agreements", query=await operator.of_customer(arguments.customer))
    columns = ("id", "customer", "kind", "state", "signed_at", "active_at", "revoked_at")
    return Output(answer, table(answer["agreements"], *columns))


async def _revoke(operator: Operator, arguments: argparse.Namespace) -> Output:
    await operator.call("DELETE", f"/agreements/{segment(arguments.id, 'agreement')}")
    return Output({"id": arguments.id, "revoked": True}, f"agreement {arguments.id} is revoked")


async def _list_audit(operator: Operator, arguments: argparse.Namespace) -> Output:
    query = await operator.of_customer(arguments.customer)
    for name in ("after", "limit"):
        if (value := getattr(arguments, name)) is not None:
            query[name] = str(value)
    answer = await operator.call("GET", "/audit", query=query)
    rows = [entry | {"actor": " ".join(entry["actor"].values())} for entry in answer["entries"]]
    text = table(rows, "seq", "time", "event", "actor", "customer", "subject")
    if answer["next"] is not None:
        text += f"\nmore: --after {answer['next']}"
    return Output(answer, text)
