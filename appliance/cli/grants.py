"""`grant` and `image`: an operator asks to see images, and sees them while their customer allows it."""

import argparse
from pathlib import Path

from appliance.cli.client import Operator, client, segment
from appliance.cli.output import Document, Output, table
from appliance.cli.progress import Progress
from appliance.cli.words import Words


def add(words: Words) -> None:
    """The verbs of access grants, and of what is seen by them."""
    grants = words.noun("grant", "which operator may see which images, by their customer's word")
    request = grants.verb("request", client(_request, only_running=True), "ask a customer to see images")
    request.add_argument("customer", help="id or name")
    what = request.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", metavar="ID", help="a whole dataset; Default is one too")
    what.add_argument("--image", metavar="ID", action="append", help="one image; repeat")
    request.add_argument("--reason", required=True, metavar="TEXT", help="the customer reads it")
    request.add_argument("--hours", type=int, metavar="N", help="from the approval on, 72 at most; default 8")
    listing = grants.verb("list", client(_list), "grants, ended ones included")
    listing.add_argument("customer", nargs="?", help="id or name; default: of all")
    grants.verb("revoke", client(_revoke), "give a grant up from now on").add_argument("id")

    images = words.noun("image", "a stored image")
    reading = images.verb("read", client(_read, only_running=True), "copy an image that a grant lets you see")
    reading.add_argument("id")
    reading.add_argument("path", type=Path, help="a new file")


async def _request(operator: Operator, arguments: argparse.Namespace) -> Output:
    body: Document = {
        "customer": await operator.customer_id(arguments.customer),
        "reason": arguments.reason,
    }
    body |= {"dataset": arguments.dataset} if arguments.dataset else {"images": arguments.image}
    if arguments.hours is not None:
        body["hours"] = arguments.hours
    made = await operator.call("POST", "/grants/request", body=body)
    told = f"grant {made['id']} is {made['state']}: the customer answers until {made['ends_at']}"
    return Output(made, told)


async def _list(operator: Operator, arguments: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/grants", query=await operator.of_customer(arguments.customer))
    columns = ("id", "customer", "operator", "state", "dataset", "images", "ends_at", "reason")
    return Output(answer, table(answer["grants"], *columns))


async def _revoke(operator: Operator, arguments: argparse.Namespace) -> Output:
    await operator.call("DELETE", f"/grants/{segment(arguments.id, 'grant')}")
    return Output({"id": arguments.id, "revoked": True}, f"grant {arguments.id} is revoked")


async def _read(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance.datasets.interchange import landing

    target = arguments.path.absolute()
    pieces = operator.stream("GET", f"/images/{segment(arguments.id, 'image')}")
    with Progress("written", None, None) as told:
        size = await landing.land_whole(pieces, target, told)
    return Output({"path": str(target), "bytes": size}, f"{target}: {size} bytes")
