"""From ids, as callers write them, to keys: a customer's own or none."""

from collections.abc import Sequence
from typing import TypeVar

from appliance.accounts.customers import CustomerId
from appliance.datasets.records import Side
from appliance.errors import InvalidInput, NotFound
from appliance.ledger import Connection

T = TypeVar("T")

TASKS: dict[Side, str] = {
    "recognition": "tasks.kind <> 'detection'",
    "detection": "tasks.kind = 'detection'",
}
LABELS: dict[Side, str] = {
    "recognition": "labels.kind <> 'detection'",
    "detection": "labels.kind = 'detection'",
}
_OWN = (
    "SELECT {0}.key FROM {0} JOIN datasets ON datasets.number = {0}.dataset"
    " WHERE {0}.id = ? AND datasets.customer = ? AND datasets.erased_at IS NULL"
)


def task(connection: Connection, customer: CustomerId, identity: str, side: Side) -> int:
    """The key of a customer's task. Raises NotFound."""
    return _key(connection, "task", customer, identity, TASKS[side])


def label(connection: Connection, customer: CustomerId, identity: str, side: Side | None) -> int:
    """The key of a customer's label, of either side with None. Raises NotFound."""
    more = "" if side is None else f" AND {LABELS[side]}"
    return _key(connection, "label", customer, identity, f"labels.deleted_at IS NULL{more}")


def image(connection: Connection, customer: CustomerId, identity: str) -> int:
    """The key of a customer's image. Raises NotFound."""
    return _key(connection, "image", customer, identity, "images.deleted_at IS NULL")


def object_(connection: Connection, customer: CustomerId, identity: str) -> int:
    """The key of a customer's object. Raises NotFound."""
    return _key(connection, "object", customer, identity, "TRUE")


def check_together(dataset: int, key: int, noun: str, other: str) -> None:
    """Raises InvalidInput unless the key lies in the dataset: each seals with a key of its own."""
    if key >> 32 != dataset:
        raise InvalidInput(f"the {noun} lies in another workspace than the {other}")


def only(found: Sequence[T], noun: str) -> T:
    """The one that was found. Raises NotFound when there is none."""
    if not found:
        raise NotFound(f"no such {noun}")
    return found[0]


def _key(connection: Connection, noun: str, customer: CustomerId, identity: str, condition: str) -> int:
    found: int | None = connection.execute(
        f"{_OWN.format(f'{noun}s')} AND {condition}", (identity, customer)
    ).get
    if found is None:
        raise NotFound(f"no such {noun}")
    return found
