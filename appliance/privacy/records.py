"""Records of processing (Art. 30 of the GDPR): what the running appliance knows of itself at one moment."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client.samples import Sample

from appliance.accounts.audit import Event
from appliance.accounts.endings import (
    AGREEMENT_REVOKED_AT,
    CUSTOMER_ERASED_AT,
    CUSTOMER_SUSPENDED_AT,
    TOKEN_REVOKED_AT,
)
from appliance.config import Config
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.residency import Residency
from appliance.vault import Keyring

_CUSTOMERS = f"""
SELECT id, name, created_at, {CUSTOMER_SUSPENDED_AT},
    (SELECT count(*) FROM datasets WHERE customer = customers.id AND erased_at IS NULL),
    (SELECT coalesce(sum(images), 0) FROM datasets WHERE customer = customers.id AND erased_at IS NULL),
    (SELECT coalesce(sum(bytes), 0) FROM datasets WHERE customer = customers.id AND erased_at IS NULL),
    (SELECT count(*) FROM datasets
        WHERE customer = customers.id AND erased_at IS NULL AND retention_days IS NOT NULL),
    (SELECT max(retention_days) FROM datasets WHERE customer = customers.id AND erased_at IS NULL),
    (SELECT count(*) FROM datasets
        WHERE customer = customers.id AND erased_at IS NULL AND visibility = 'public'),
    (SELECT count(*) FROM collections WHERE customer = customers.id AND NOT removed),
    (SELECT coalesce(sum(count), 0) FROM collections WHERE customer = customers.id AND NOT removed),
    (SELECT count(*) FROM requests WHERE customer = customers.id),
    (SELECT count(*) FROM feeds JOIN collections ON number = collection WHERE customer = customers.id)
FROM customers WHERE {CUSTOMER_ERASED_AT} IS NULL ORDER BY name
"""  # noqa: S608 - constants
_AGREEMENTS = f"""
SELECT customer, kind,
    CASE WHEN {AGREEMENT_REVOKED_AT} IS NOT NULL THEN 'revoked' WHEN valid_until <= ? THEN 'expired'
        WHEN active_at IS NULL THEN 'pending' ELSE 'active' END
FROM agreements ORDER BY signed_at, id
"""  # noqa: S608 - constants
_TOKENS = f"""
SELECT count(*), coalesce(sum(' ' || scopes || ' ' LIKE '% admin %'), 0), coalesce(sum(expires_at IS NULL), 0)
FROM tokens WHERE {TOKEN_REVOKED_AT} IS NULL AND (expires_at IS NULL OR expires_at > ?)
"""  # noqa: S608 - constants
_COUNTERS = (
    "appliance_store_images_stored_total",
    "appliance_store_images_damaged",
    "appliance_store_scrubbed_bytes_total",
    "appliance_store_clock_doubted_seconds",
    "appliance_search_scrubbed_bytes_total",
    "appliance_search_frames_damaged",
    "appliance_search_records_damaged",
    "appliance_decoders_lost_total",
)
_LATEST = (
    Event.BACKUP_MAKE,
    Event.BACKUP_RESTORE,
    Event.KEY_ROTATE,
    Event.CUSTOMER_EXPORT,
    Event.CUSTOMER_ERASE,
    Event.GRANT_OPEN,
    Event.GRANT_APPROVE,
    Event.IMAGE_OPEN,
)


@dataclass(frozen=True, slots=True)
class Processing:
    """What is processed for one customer; times in unix milliseconds. `retained` are datasets with an end,
    `public` those whose links have none.
    """

    id: str
    name: str
    created_at: int
    suspended_at: int | None
    datasets: int
    images: int
    bytes: int
    retained: int
    retention_days: int | None
    public: int
    collections: int
    records: int
    requests: int
    feeds: int
    agreements: tuple[tuple[str, str], ...] = ()
    """Kind and state of each, oldest first."""


@dataclass(frozen=True, slots=True)
class Issued:
    """Tokens that are taken now, and of these those that administer and those that never end."""

    tokens: int
    admin: int
    endless: int


@dataclass(frozen=True, slots=True)
class Facts:
    """The appliance at one moment; `made_at` and the times of `latest` are unix milliseconds."""

    made_at: int
    config: Config
    residency: Residency | None
    status: Mapping[str, Any]
    customers: tuple[Processing, ...]
    issued: Issued
    erasures: Mapping[str, int]
    """Certificates by their kind."""
    audit: tuple[int, int | None]
    """Entries of the log, and when the last one was written."""
    latest: Mapping[Event, int | None]
    """When each of these happened last; of grants, when one went live."""
    exchanges: Mapping[tuple[str, str], int]
    """Exchanges with declared destinations since the start, by destination and outcome."""
    counters: Mapping[str, float]
    keys: tuple[int, int, int]
    """Changes of the keyring, customers and containers that have keys in it."""


class Records:
    """What gathers the facts of a running appliance."""

    def __init__(  # noqa: PLR0917 - its neighbours
        self,
        ledger: Ledger,
        keyring: Keyring,
        config: Config,
        residency: Residency | None,
        status: Callable[[], Awaitable[dict[str, object]]],
        registry: Registry,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._keyring = keyring
        self._config = config
        self._residency = residency
        self._status = status
        self._registry = registry
        self._clock = clock

    async def facts(self) -> Facts:
        """All of it as it is now. Raises StorageFailed, and what `status` raises."""
        now, status = int(self._clock() * 1000), await self._status()
        keys = self._keyring.generations()
        seen = await self._ledger.read(partial(_seen, now=now))
        return Facts(
            made_at=now,
            config=self._config,
            residency=self._residency,
            status=status,
            exchanges=self._exchanges(),
            counters=self._counters(),
            keys=(self._keyring.number, len(keys), sum(len(one.containers) for one in keys)),
            **seen,
        )

    def _exchanges(self) -> dict[tuple[str, str], int]:
        samples = self._samples("appliance_outbound_exchanges_total")
        return {
            (sample.labels["destination"], sample.labels["outcome"]): int(sample.value) for sample in samples
        }

    def _counters(self) -> dict[str, float]:
        """Of what the matrix shows as evidence; 0 where nothing counts it."""
        return dict.fromkeys(_COUNTERS, 0.0) | {one.name: one.value for one in self._samples(*_COUNTERS)}

    def _samples(self, *names: str) -> list[Sample]:
        families = self._registry.restricted_registry(names).collect()
        return [sample for family in families for sample in family.samples if sample.name in names]


def _seen(connection: Connection, now: int) -> dict[str, Any]:
    """What the ledger says."""
    agreements: dict[str, list[tuple[str, str]]] = {}
    for customer, kind, state in connection.execute(_AGREEMENTS, (now,)).fetchall():
        agreements.setdefault(str(customer), []).append((str(kind), str(state)))
    rows: list[Any] = connection.execute(_CUSTOMERS).fetchall()
    tokens: Any = connection.execute(_TOKENS, (now,)).fetchone()
    by_kind = "SELECT kind, count(*) FROM certificates GROUP BY kind"
    # A grant that waits for another approval tells no end.
    given = "iif(instr(details, '\"until\":null'), NULL, time)"
    by_event = f"SELECT event, count(*), max(time), max({given}) FROM audit GROUP BY event"  # noqa: S608
    erasures: list[Any] = connection.execute(by_kind).fetchall()
    log: list[Any] = connection.execute(by_event).fetchall()
    last = {event: time for event, _, _, time in log}
    return {
        "customers": tuple(Processing(*(*row, tuple(agreements.get(row[0], ())))) for row in rows),
        "issued": Issued(*tokens),
        "erasures": dict(erasures),
        "audit": (sum(row[1] for row in log), max((row[2] for row in log), default=None)),
        "latest": {event: last.get(event.value) for event in _LATEST},
    }
