"""Quotas: how much each customer may have of what the appliance keeps for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId, check_living
from appliance.config import Config
from appliance.errors import InvalidInput
from appliance.ledger import Connection, Ledger

_MOST = 1 << 50


@dataclass(frozen=True, slots=True)
class Quota:
    """At most so many of each: stored images and their bytes, collections and the vectors in all of them, and
    asynchronous requests that have not ended (jobs)."""

    images: int
    collections: int
    vectors: int
    bytes: int
    jobs: int


KINDS = tuple(field.name for field in fields(Quota))
_COLUMNS = ", ".join(f"max_{kind}" for kind in KINDS)


def defaults(settings: Config) -> Quota:
    """What each customer may have for whom nothing else is set."""
    return Quota(
        images=settings.datasets.max_images,
        collections=settings.search.max_collections,
        vectors=settings.search.max_records,
        bytes=settings.datasets.max_bytes,
        jobs=settings.requests.max_jobs,
    )


class Quotas:
    """The quotas of all customers: what the configuration says, and what an operator has set for some."""

    def __init__(self, ledger: Ledger, defaults: Quota, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._defaults = defaults
        self._clock = clock
        self._set: dict[CustomerId, Quota] = {}

    async def __aenter__(self) -> Self:
        self._set = await self._ledger.read(self._all)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._set.clear()

    def of(self, customer: CustomerId) -> Quota:
        """A customer's, from memory."""
        return self._set.get(customer, self._defaults)

    async def limit(self, actor: Actor, customer: CustomerId, most: Mapping[str, int | None]) -> Quota:
        """Set some of a customer's, durably and audited; None sets back to the configuration's.

        What it has beyond a lower one stays. Raises InvalidInput for another kind than KINDS or a number
        below 0, NotFound.
        """
        for kind, number in most.items():
            if kind not in KINDS:
                raise InvalidInput(f"{kind}: one of {', '.join(KINDS)} is expected")
            if not (number is None or 0 <= number <= _MOST):
                raise InvalidInput(f"{kind}: an integer from 0 to {_MOST} is expected, or null")
        now = int(self._clock() * 1000)

        def act(connection: Connection) -> Quota:
            check_living(connection, customer)
            for kind, number in most.items():
                connection.execute(f"UPDATE customers SET max_{kind} = ? WHERE id = ?", (number, customer))  # noqa: S608
            record(connection, now, actor, Event.CUSTOMER_LIMIT, customer, customer, dict(most))
            return self._all(connection, customer)[customer]

        def remember(quota: Quota) -> None:
            self._set[customer] = quota

        return await self._ledger.write(act, then=remember)

    def _all(self, connection: Connection, customer: CustomerId | None = None) -> dict[CustomerId, Quota]:
        rows = connection.execute(
            f"SELECT id, {_COLUMNS} FROM customers WHERE ?1 IS NULL OR id = ?1",  # noqa: S608
            (customer,),
        )
        return {customer: self._effective(given) for customer, *given in rows}

    def _effective(self, given: Sequence[int | None]) -> Quota:
        pairs = zip(KINDS, given, strict=True)
        return replace(self._defaults, **{kind: most for kind, most in pairs if most is not None})
