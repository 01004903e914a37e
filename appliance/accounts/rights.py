"""What a token may do: scopes, lists of collections and tasks, rates, and whose certificate it asks for."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from appliance.accounts.customers import CustomerId
from appliance.errors import InvalidInput

MAX_LISTED = 1000
"""Ids in one list of a token."""
MAX_SUBJECT = 1000
"""Characters of the subject of a certificate."""
_LISTED = re.compile(r"[A-Za-z0-9-]{1,64}")
_SUBJECT = re.compile(r"[A-Za-z0-9.-]+=")


class Scope(StrEnum):
    """What a token may do."""

    INFER = "infer"
    SEARCH_READ = "search:read"
    SEARCH_WRITE = "search:write"
    DATASETS_READ = "datasets:read"
    DATASETS_WRITE = "datasets:write"
    TRAIN = "train"
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)
BEYOND_TASKS = frozenset({Scope.DATASETS_READ, Scope.DATASETS_WRITE, Scope.TRAIN})
"""What no token with a list of tasks may do: stored images and their labels are of all tasks at once."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What a token may do, for whom and how fast.

    `collections` and `tasks` are ids, None for all of the customer's. Of a rate None is what the
    configuration says, 0 none at all. With a `client_subject` (RFC 4514) it is taken over a connection alone
    whose client has proven by a certificate that it is this one. `recovery_of` is set for a token of recovery
    alone: when it was issued, in unix milliseconds.
    """

    customer: CustomerId
    scopes: frozenset[Scope]
    collections: frozenset[str] | None = None
    tasks: frozenset[str] | None = None
    requests_per_minute: int | None = None
    bytes_per_minute: int | None = None
    client_subject: str | None = None
    recovery_of: int | None = None


def parse_scopes(names: Collection[str]) -> frozenset[Scope]:
    """Scopes from their names. Raises InvalidInput listing what exists when one does not."""
    try:
        return frozenset(Scope(name) for name in names)
    except ValueError:
        raise InvalidInput(f"scopes: each must be one of {', '.join(Scope)}") from None


def listed(name: str, ids: Collection[str] | None) -> frozenset[str] | None:
    """The ids of a list, None for all. Raises InvalidInput, which names the list, for none or too many."""
    if ids is None:
        return None
    if not 1 <= len(ids) <= MAX_LISTED or not all(map(_LISTED.fullmatch, ids)):
        raise InvalidInput(f"{name}: 1 to {MAX_LISTED} ids are expected; leave it out for all")
    return frozenset(ids)


def checked_subject(subject: str | None) -> str | None:
    """The subject of a certificate as RFC 4514 writes it. Raises InvalidInput for what cannot be one."""
    if subject is not None and not (
        _SUBJECT.match(subject) and len(subject) <= MAX_SUBJECT and subject.isprintable()
    ):
        raise InvalidInput(
            "client_subject: the subject of a certificate is expected, such as CN=till 7,O=Acme"
        )
    return subject


def check_narrow(rights: Rights) -> None:
    """Raises InvalidInput for scopes that see beyond the lists: admin, and beside tasks those of images."""
    if rights.collections is None and rights.tasks is None:
        return
    beyond = {Scope.ADMIN} if rights.tasks is None else {Scope.ADMIN, *BEYOND_TASKS}
    if wide := sorted(rights.scopes & beyond):
        name = "collections" if rights.tasks is None else "tasks"
        raise InvalidInput(f"{name}: the scopes {', '.join(wide)} see beyond the list: leave them out")


def told(rights: Rights) -> dict[str, object]:
    """What the audit log says of them: no subject, which may be a person's name."""
    lists = {"collections": rights.collections, "tasks": rights.tasks}
    return {
        "scopes": sorted(rights.scopes),
        **({} if rights.client_subject is None else {"bound": True}),
        **({} if rights.recovery_of is None else {"recovery": True}),
        **{name: sorted(ids) for name, ids in lists.items() if ids is not None},
    }
