"""`collection snapshot`."""

import argparse

from appliance.cli.client import Operator, client, segment
from appliance.cli.output import Output, table
from appliance.cli.words import Words


def add(collections: Words) -> None:
    """The verbs of snapshots."""
    snapshots = collections.noun("snapshot", "collections as they were, to go back to")
    adding = snapshots.verb("add", client(_add), "copy a collection as it is now")
    adding.add_argument("collection", help="id")
    listing = snapshots.verb("list", client(_list), "snapshots of a collection, the oldest first")
    listing.add_argument("collection", help="id")
    restoring = snapshots.verb("restore", client(_restore), "put a snapshot in the place of all records")
    restoring.add_argument("collection", help="id")
    restoring.add_argument("snapshot", help="id")
    restoring.add_argument("--into", metavar="NAME", help="fill a new collection of this name instead")
    removing = snapshots.verb("remove", client(_remove), "remove a snapshot; the collection stays as it is")
    removing.add_argument("collection", help="id")
    removing.add_argument("snapshot", help="id")


async def _add(operator: Operator, arguments: argparse.Namespace) -> Output:
    made = await operator.call("POST", _path(arguments))
    return Output(made, f"snapshot {made['id']} has {made['records']} records")


async def _list(operator: Operator, arguments: argparse.Namespace) -> Output:
    answer = await operator.call("GET", _path(arguments))
    return Output(answer, table(answer["snapshots"], "id", "created_at", "records", "bytes"))


async def _restore(operator: Operator, arguments: argparse.Namespace) -> Output:
    path = f"{_path(arguments)}/{segment(arguments.snapshot, 'snapshot')}/restore"
    body = {} if arguments.into is None else {"into": arguments.into}
    restored = await operator.call("POST", path, body=body)
    return Output(restored, f"collection {restored['id']} has {restored['count']} records")


async def _remove(operator: Operator, arguments: argparse.Namespace) -> Output:
    await operator.call("DELETE", f"{_path(arguments)}/{segment(arguments.snapshot, 'snapshot')}")
    return Output({"id": arguments.snapshot, "removed": True}, f"snapshot {arguments.snapshot} is removed")


def _path(arguments: argparse.Namespace) -> str:
    return f"/collections/{segment(arguments.collection, 'collection')}/snapshots"
