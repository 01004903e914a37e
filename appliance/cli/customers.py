"""`customer` and `token`."""

import argparse
from collections.abc import Iterable

from appliance.cli import privacy
from appliance.cli.client import Operator, client, segment
from appliance.cli.output import Document, Output, table
from appliance.cli.words import Words

_DEFAULT = "default"
_QUOTAS = {
    "images": "stored images",
    "collections": "collections",
    "vectors": "records in all collections",
    "bytes": "bytes of stored images",
    "jobs": "asynchronous requests that have not ended",
}
_RATES = ("requests_per_minute", "bytes_per_minute")


def add(words: Words) -> None:
    """The verbs of customers and their tokens."""
    customers = words.noun("customer", "whose data and tokens everything else belongs to")
    customers.verb("add", client(_add_customer), "create a customer").add_argument("name")
    customers.verb("list", client(_list_customers), "all customers")
    suspend = customers.verb("suspend", client(_suspend), "refuse its tokens and links from now on")
    suspend.add_argument("customer", help="id or name")
    resume = customers.verb("resume", client(_resume), "take its tokens and links again")
    resume.add_argument("customer", help="id or name")
    privacy.add_to_customers(customers)
    limit = customers.verb(
        "limit", client(_limit_customer), "what it has and may have; with options set that"
    )
    limit.add_argument("customer", help="id or name")
    for kind, what in _QUOTAS.items():
        limit.add_argument(
            f"--{kind}",
            type=number,
            metavar="N",
            default=argparse.SUPPRESS,
            help=f"{what}; `default`: as configured",
        )

    tokens = words.noun("token", "what clients authenticate with")
    adding = tokens.verb("add", client(_add_token), "issue a token; it is shown once")
    adding.add_argument("customer", help="id or name")
    adding.add_argument("--scope", action="append", help="repeat; default: first token all, later no admin")
    adding.add_argument("--expires-at", metavar="TIME", help="ISO 8601 with a UTC offset; default: never")
    adding.add_argument(
        "--collection", action="append", help="id of one that it is to know; repeat; default: all"
    )
    adding.add_argument("--task", action="append", help="id of one that it may ask; repeat; default: all")
    adding.add_argument(
        "--client-subject", metavar="NAME", help="of the certificate that it is taken with alone"
    )
    adding.add_argument(
        "--recovery", action="store_true", help="for a customer that has lost its own: taken a day later"
    )
    listing = tokens.verb("list", client(_list_tokens), "tokens without their secrets")
    listing.add_argument("customer", nargs="?", help="id or name; default: of all")
    rotate = tokens.verb("rotate", client(_rotate_token), "issue a successor of a token")
    rotate.add_argument("id")
    rotate.add_argument(
        "--overlap-seconds", type=int, metavar="N", help="both are valid so long; default a day"
    )
    tokens.verb("revoke", client(_revoke_token), "refuse a token from now on").add_argument("id")
    slow = tokens.verb("limit", client(_limit_token), "set how fast a token may ask")
    slow.add_argument("id")
    for rate in _RATES:
        flag = f"--{rate.replace('_', '-')}"
        explained = "0: no limit; `default`: as configured"
        slow.add_argument(flag, type=number, metavar="N", default=argparse.SUPPRESS, help=explained)


async def _add_customer(operator: Operator, arguments: argparse.Namespace) -> Output:
    made = await operator.call("POST", "/customers", body={"name": arguments.name})
    return Output(made, f"customer {made['name']} has the id {made['id']}")


async def _list_customers(operator: Operator, _: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/customers")
    return Output(
        answer, table(answer["customers"], "id", "name", "created_at", "suspended_at", "claimed_at")
    )


async def _suspend(operator: Operator, arguments: argparse.Namespace) -> Output:
    customer = segment(await operator.customer_id(arguments.customer), "customer")
    suspended = await operator.call("POST", f"/customers/{customer}/suspend")
    return Output(
        suspended, f"customer {suspended['name']} is suspended: no token and no link of it is taken"
    )


async def _resume(operator: Operator, arguments: argparse.Namespace) -> Output:
    customer = segment(await operator.customer_id(arguments.customer), "customer")
    resumed = await operator.call("POST", f"/customers/{customer}/resume")
    return Output(resumed, f"customer {resumed['name']} is resumed")


async def _limit_customer(operator: Operator, arguments: argparse.Namespace) -> Output:
    customer = segment(await operator.customer_id(arguments.customer), "customer")
    if most := _given(arguments, _QUOTAS):
        await operator.call("PATCH", f"/customers/{customer}/limits", body=most)
    usage = await operator.call("GET", "/usage", query={"customer": customer})
    rows = [{"what": what, **usage["quotas"][kind]} for kind, what in _QUOTAS.items()]
    return Output(usage, table(rows, "what", "used", "limit"))


async def _add_token(operator: Operator, arguments: argparse.Namespace) -> Output:
    body: Document = {"customer": await operator.customer_id(arguments.customer)}
    if arguments.scope:
        body["scopes"] = arguments.scope
    if arguments.expires_at:
        body["expires_at"] = arguments.expires_at
    if arguments.collection:
        body["collections"] = arguments.collection
    if arguments.task:
        body["tasks"] = arguments.task
    if arguments.client_subject:
        body["client_subject"] = arguments.client_subject
    if arguments.recovery:
        body["recovery"] = True
    return _issued(await operator.call("POST", "/tokens", body=body))


async def _list_tokens(operator: Operator, arguments: argparse.Namespace) -> Output:
    answer = await operator.call("GET", "/tokens", query=await operator.of_customer(arguments.customer))
    shown = (
        "id",
        "customer",
        "scopes",
        "created_at",
        "valid_from",
        "expires_at",
        "revoked_at",
        "last_used_at",
    )
    return Output(answer, table(answer["tokens"], *shown))


async def _rotate_token(operator: Operator, arguments: argparse.Namespace) -> Output:
    body = {} if arguments.overlap_seconds is None else {"overlap_seconds": arguments.overlap_seconds}
    token = segment(arguments.id, "token")
    return _issued(await operator.call("POST", f"/tokens/{token}/rotate", body=body))


def _issued(made: Document) -> Output:
    return Output(made, f"{made['token']}\nThis is the only time that token {made['id']} is shown.")


async def _limit_token(operator: Operator, arguments: argparse.Namespace) -> Output:
    token = segment(arguments.id, "token")
    rates = await operator.call("PATCH", f"/tokens/{token}/limits", body=_given(arguments, _RATES))
    rows = [{"rate": rate, "limit": _DEFAULT if rates[rate] is None else rates[rate]} for rate in _RATES]
    return Output({"id": token, **rates}, table(rows, "rate", "limit"))


def number(text: str) -> int | None:
    """A number, or None for the word that says: as configured. Raises ValueError."""
    return None if text == _DEFAULT else int(text)


def _given(arguments: argparse.Namespace, names: Iterable[str]) -> Document:
    """Those of the options that were given."""
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


async def _revoke_token(operator: Operator, arguments: argparse.Namespace) -> Output:
    await operator.call("DELETE", f"/tokens/{segment(arguments.id, 'token')}")
    return Output({"id": arguments.id, "revoked": True}, f"token {arguments.id} is revoked")
