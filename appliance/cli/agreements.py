"""`agreement`."""

import argparse

from appliance.cli.client import Operator, client, segment
from appliance.cli.output import Document, Output, table
from appliance.cli.words import Words


def add(words: Words) -> None:
    """The verbs of agreements."""
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
