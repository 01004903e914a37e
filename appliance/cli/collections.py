"""`collection`."""

import argparse

from appliance.cli import snapshots, transfers
from appliance.cli.client import Operator, client, segment
from appliance.cli.output import Output, table
from appliance.cli.words import Words

_RECALL = "of the ten nearest, the share that graphs shall find: 0.8 to 0.999; default: 0.95"


def add(words: Words) -> None:
    """The verbs of collections."""
    collections = words.noun("collection", "what is searched")
    adding = collections.verb("add", client(_add), "create a collection")
    adding.add_argument("customer", help="id or name")
    adding.add_argument("name")
    adding.add_argument(
        "--backbone",
        help="NAME@VERSION, or phash for perceptual hashes without a model; default: the active one",
    )
    adding.add_argument("--recall", type=float, metavar="SHARE", help=_RECALL)
    listing = collections.verb("list", client(_list), "collections with their record counts")
    listing.add_argument("customer", nargs="?", help="id or name; default: of all")
    renaming = collections.verb("rename", client(_rename), "give a collection another name")
    renaming.add_argument("id")
    renaming.add_argument("name")
    aiming = collections.verb("recall", client(_aim), "ask another recall of a collection's graphs")
    aiming.add_argument("id")
    aiming.add_argument("recall", type=float, metavar="SHARE", help=_RECALL)
    emptying = collections.verb("empty", client(_empty), "erase all records of a collection, which stays")
    emptying.add_argument("id")
    removing = collections.verb("remove", client(_remove), "erase a collection and its records")
    removing.add_argument("id")
    transfers.add(collections)
    snapshots.add(collections)


async def _add(operator: Operator, arguments: argparse.Namespace) -> Output:
    customer = await operator.customer_id(arguments.customer)
    asked = {
        "customer": customer,
        "name": arguments.name,
        "backbone": arguments.backbone,
        "recall": arguments.recall,
    }
    made = await operator.call("POST", "/collections", body=asked)
    return Output(made, f"collection {arguments.name} has the id {made['id']}")


async def _list(operator: Operator, arguments: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/collections", query=await operator.of_customer(arguments.customer))
    return Output(answer, table(answer["collections"], "id", "customer", "name", "count", "backbone"))


async def _rename(operator: Operator, arguments: argparse.Namespace) -> Output:
    path = f"/collections/{segment(arguments.id, 'collection')}"
    renamed = await operator.call("PATCH", path, body={"name": arguments.name})
    return Output(renamed, f"collection {arguments.id} is called {renamed['name']}")


async def _aim(operator: Operator, arguments: argparse.Namespace) -> Output:
    path = f"/collections/{segment(arguments.id, 'collection')}"
    changed = await operator.call("PATCH", path, body={"recall": arguments.recall})
    return Output(changed, f"collection {arguments.id} is tuned to a recall of {changed['recall']}")


async def _empty(operator: Operator, arguments: argparse.Namespace) -> Output:
    emptied = await operator.call("POST", f"/collections/{segment(arguments.id, 'collection')}/empty")
    return Output(emptied, f"collection {arguments.id} is empty")


async def _remove(operator: Operator, arguments: argparse.Namespace) -> Output:
    await operator.call("DELETE", f"/collections/{segment(arguments.id, 'collection')}")
    return Output({"id": arguments.id, "removed": True}, f"collection {arguments.id} is removed")
