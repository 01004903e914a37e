"""What the audit log says of operators' reads and of erasures is held against grants and certificates."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.certificates import Certificates, Erased
from appliance.accounts.customers import CustomerId
from appliance.accounts.transparency import verification
from appliance.errors import AuditBroken
from appliance.ledger import Connection
from tests.auditing import NOW_MS, opened

ALICE = CustomerId("alice")
CUSTOMER, OPERATOR, OTHER = Actor("token", "admin"), Actor("operator", "1001"), Actor("operator", "1002")
GRANT = {"grant": "a-grant", "dataset": "winter"}
OPEN_GRANT = {"operator": "1001", "dataset": "winter", "hours": 1, "until": NOW_MS + 3_600_000}

Act = tuple[Actor, Event, str, dict[str, object], int]


def granted(actor: Actor = CUSTOMER) -> Act:
    return actor, Event.GRANT_OPEN, "a-grant", dict(OPEN_GRANT), 0


def read(actor: Actor = OPERATOR, details: dict[str, object] | None = None, after: int = 1) -> Act:
    return actor, Event.IMAGE_OPEN, "an-image", dict(GRANT if details is None else details), after


def findings(
    state: Path, *acts: Act, also: Callable[[Connection, Certificates], None] | None = None
) -> list[str]:
    """What `audit verify` has to say when this was recorded."""

    async def write() -> None:
        async with opened(state) as log:

            def act(connection: Connection) -> None:
                connection.execute("INSERT INTO customers (id, name, created_at) VALUES ('alice', 'a', 1)")
                for actor, event, subject, details, seconds in acts:
                    record(connection, NOW_MS + seconds * 1000, actor, event, ALICE, subject, details)
                if also is not None:
                    also(connection, Certificates(log.ledger, log.keyring.service))

            await log.ledger.write(act)
            await log.tree.publish()

    asyncio.run(write())
    try:
        return verification.verify(state).remarks
    except AuditBroken as broken:
        return broken.findings


def test_a_read_under_a_live_grant_is_no_finding(tmp_path: Path) -> None:
    assert findings(tmp_path / "state", granted(), read(), read(after=3599)) == []


@pytest.mark.parametrize(
    "acts",
    [
        (read(),),
        (granted(), read(OTHER)),
        (granted(), read(after=3600)),
        (granted(), read(details={})),
        (granted(), (CUSTOMER, Event.GRANT_REVOKE, "a-grant", {}, 1), read(after=2)),
        (granted(), (Actor("system", "restore"), Event.BACKUP_RESTORE, "", {}, 1), read(after=2)),
        ((OPERATOR, Event.DATASET_EXPORT, "winter", {}, 0),),
    ],
    ids=["none", "another's", "ended", "unnamed", "revoked", "restored", "export"],
)
def test_an_operators_read_without_a_live_grant_is_found(tmp_path: Path, acts: tuple[Act, ...]) -> None:
    found = findings(tmp_path / "state", *acts)
    (finding,) = [one for one in found if not one.startswith("the checkpoint is of the log")]
    assert "has read images without a live grant" in finding
    assert finding.startswith(f"entry {len(acts)}: operator 100")


ERASED = [
    (Event.CUSTOMER_ERASE, "customer", "alice"),
    (Event.DATASET_ERASE, "dataset", "winter"),
    (Event.COLLECTION_REMOVE, "collection", "shoes"),
    (Event.COLLECTION_EMPTY, "collection", "shoes"),
    (Event.IMAGE_DELETE, "image", "an-image"),
]


@pytest.mark.parametrize(("event", "kind", "subject"), ERASED, ids=[event for event, _, _ in ERASED])
def test_an_erasure_without_its_certificate_is_found(
    tmp_path: Path, event: Event, kind: str, subject: str
) -> None:
    act: Act = (OPERATOR, event, subject, {}, 0)
    told = f"entry 1: the erasure of {kind} {subject} has no certificate"
    assert findings(tmp_path / "without", act) == [told]

    def certify(connection: Connection, certificates: Certificates) -> None:
        ids = [subject] if kind == "image" else []
        where = "winter" if kind == "image" else subject
        certificates.add(connection, NOW_MS, Erased(kind, ALICE, where, ids=ids))  # type: ignore[arg-type]

    assert findings(tmp_path / "with", act, also=certify) == []


def test_an_erasure_that_goes_on_is_told(tmp_path: Path) -> None:
    def begin(connection: Connection, _: Certificates) -> None:
        connection.execute("UPDATE customers SET erased_at = 1, erasing = '{}' WHERE id = 'alice'")

    act = (OPERATOR, Event.CUSTOMER_ERASE, "alice", dict[str, object](), 0)
    assert findings(tmp_path / "state", act, also=begin) == [
        "1 erasures have not ended, and have no certificate yet"
    ]
