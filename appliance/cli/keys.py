"""`key`: what keys there are, and their rotation. A new root goes in through the socket, no key comes out."""

import argparse
import shlex
from pathlib import Path

from appliance.cli.client import Operator, client, segment
from appliance.cli.output import Document, Output, Refused, table
from appliance.cli.words import Words

CREDENTIAL = "/etc/appliance/root.key.cred"

_NEXT = {
    "restart": "the root key is being rotated: put the new one in place and restart",
    "retire": "the root key was rotated: `appliance key retire` takes the old one away",
}


def add(words: Words) -> None:
    """The verbs of the keys."""
    keys = words.noun("key", "what everything at rest is sealed with")
    keys.verb("list", client(_list), "whose containers have keys, and how often they were rotated")
    rotate = keys.noun("rotate", "replace a key by a new one", metavar="WHICH")
    customer = rotate.verb("customer", client(_rotate_customer), "the key that wraps those of its containers")
    customer.add_argument("customer", help="id or name")
    container = rotate.verb("container", client(_rotate_container), "what is new is sealed under a new key")
    container.add_argument("customer", help="id or name")
    container.add_argument("id", help="of the dataset, collection, model or document")
    root = rotate.verb("root", _rotate_root, "have a new root key open everything, beside the present one")
    root.add_argument("file", type=Path, help="32 random bytes with mode 0600; the present one's goes back")
    keys.verb("retire", client(_retire), "end a rotation of the root: the old one opens nothing any more")


async def _list(operator: Operator, _: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/keys")
    rows: list[Document] = []
    for held in answer["customers"]:
        owner = {"customer": held["customer"]}
        rows.append(owner | {"kind": "customer", "generations": [held["generation"]]})
        rows += [owner | container for container in held["containers"]]
    lines = [
        table(rows, "customer", "kind", "id", "generations"),
        f"change {answer['number']} of the keyring",
    ]
    if answer["rotation"] is not None:
        lines.append(_NEXT[answer["rotation"]])
    return Output(answer, "\n".join(lines))


async def _rotate_customer(operator: Operator, arguments: argparse.Namespace) -> Output:
    customer = await operator.customer_id(arguments.customer)
    await operator.call("POST", f"/keys/customers/{segment(customer, 'customer')}/rotate")
    return Output({"customer": customer, "rotated": True}, f"the key of customer {customer} is rotated")


async def _rotate_container(operator: Operator, arguments: argparse.Namespace) -> Output:
    customer = await operator.customer_id(arguments.customer)
    path = f"/keys/containers/{segment(arguments.id, 'container')}/rotate"
    await operator.call("POST", path, body={"customer": customer})
    return Output({"id": arguments.id, "rotated": True}, f"the key of {arguments.id} is rotated")


def _rotate_root(arguments: argparse.Namespace) -> Output:
    from appliance.errors import InvalidInput
    from appliance.vault import read_key

    try:
        # Before anything else: without a daemon this process goes on as the user whom the state belongs to.
        root = read_key(arguments.file)
    except InvalidInput as error:
        raise Refused("bad_request", str(error)) from None

    async def send(operator: Operator, _: argparse.Namespace) -> Output:
        answer = await operator.call("POST", "/keys/root/rotate", raw=root)
        return Output(answer, _what_is_next(answer, arguments))

    try:
        return client(send)(arguments)
    finally:
        root[:] = bytes(len(root))


async def _retire(operator: Operator, _: argparse.Namespace) -> Output:
    answer = await operator.call("POST", "/keys/root/retire")
    if not answer["retired"]:
        return Output(answer, "the root key is not being rotated: there is nothing to retire")
    text = "the old root key opens the keyring no more; destroy it, and keep a copy of the new one elsewhere"
    return Output(answer, text)


def _what_is_next(answer: Document, arguments: argparse.Namespace) -> str:
    if answer["rotation"] is None:
        return "the rotation is taken back: only the present root key opens the keyring"
    if answer["rotation"] == "retire":
        return _NEXT["retire"]
    new = shlex.quote(str(arguments.file.absolute()))
    if answer["root_key_file"] is not None:
        place = [f"cp {new} {shlex.quote(answer['root_key_file'])}", "restart the appliance"]
    else:
        place = [
            f"(umask 077 && systemd-creds encrypt --name=root.key {new} {CREDENTIAL}.new)",
            f"mv {CREDENTIAL}.new {CREDENTIAL}",
            "systemctl restart appliance",
        ]
    steps = "\n".join(f"  {step}" for step in (*place, "appliance key retire"))
    return f"both root keys open the keyring now; next, and in this order:\n{steps}"
