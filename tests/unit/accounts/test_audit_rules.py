"""What the audit log says of operators' reads, erasures and tokens is held against itself and the ledger."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.certificates import Certificates, Erased
from appliance.accounts.customers import CustomerId
from appliance.accounts.transparency import verification
from appliance.errors import AuditBroken
from appliance.ledger import Connection
from tests.auditing import NOW_MS, edit, opened

ALICE, BOB = CustomerId("alice"), CustomerId("bob")
CUSTOMER, OPERATOR, OTHER = Actor("token", "admin"), Actor("operator", "1001"), Actor("operator", "1002")
GRANT: dict[str, object] = {"grant": "a-grant", "dataset": "winter"}
UNTIL: dict[str, object] = {"operator": "1001", "hours": 1, "until": NOW_MS + 3_600_000}
DATASET, IMAGES = UNTIL | {"dataset": "winter"}, UNTIL | {"images": ["an-image", "another"]}
NUMBER = UNTIL | {"images": 2}
"""As entries of before have it."""

Act = tuple[Actor, Event, str, dict[str, object], int]
Also = Callable[[Connection, Certificates], None]


def granted(what: dict[str, object] = DATASET, actor: Actor = CUSTOMER) -> Act:
    return actor, Event.GRANT_OPEN, "a-grant", dict(what), 0


def read(actor: Actor = OPERATOR, details: dict[str, object] = GRANT, after: int = 1) -> Act:
    return actor, Event.IMAGE_OPEN, "an-image", dict(details), after


def saw(*images: str) -> list[Act]:
    return [(OPERATOR, Event.IMAGE_OPEN, image, dict(GRANT), 1) for image in images]


EXPORT: Act = (OPERATOR, Event.DATASET_EXPORT, "winter", {"grant": "a-grant", "images": 4}, 1)


def recorded(state: Path, *acts: Act, also: Also | None = None) -> None:
    """A closed state with these entries, signed. Its customers have used a token."""

    async def write() -> None:
        async with opened(state) as log:

            def act(connection: Connection) -> None:
                connection.execute(
                    "INSERT INTO customers (id, name, created_at, claimed_at)"
                    " VALUES ('alice', 'a', 1, 1), ('bob', 'b', 1, 1)"
                )
                for actor, event, subject, details, seconds in acts:
                    record(connection, NOW_MS + seconds * 1000, actor, event, ALICE, subject, details)
                    if event is Event.CUSTOMER_ERASE:
                        marked = "UPDATE customers SET name = id, erased_at = 1 WHERE id = ?"
                        connection.execute(marked, (subject,))
                if also is not None:
                    also(connection, Certificates(log.ledger, log.keyring.service))

            await log.ledger.write(act)
            await log.tree.publish()

    asyncio.run(write())


def told(state: Path) -> list[str]:
    """What `audit verify` has to say."""
    try:
        return verification.verify(state).remarks
    except AuditBroken as broken:
        return broken.findings


def findings(state: Path, *acts: Act, also: Also | None = None) -> list[str]:
    """What `audit verify` has to say when this was recorded."""
    recorded(state, *acts, also=also)
    return told(state)


@pytest.mark.parametrize(
    "acts",
    [
        [granted(), read(), EXPORT, read(after=3599)],
        [granted(IMAGES), *saw("an-image", "another", "an-image")],
        [granted(NUMBER), *saw("an-image", "another", "an-image")],
        [(CUSTOMER, Event.GRANT_OPEN, "a-grant", IMAGES | {"until": None}, 0)],
    ],
    ids=["dataset", "images", "as many images", "pending"],
)
def test_a_read_under_a_live_grant_is_no_finding(tmp_path: Path, acts: Iterable[Act]) -> None:
    assert findings(tmp_path / "state", *acts) == []


@pytest.mark.parametrize(
    "acts",
    [
        (read(),),
        (granted(), read(OTHER)),
        (granted(), read(after=3600)),
        (granted(), read(details={})),
        (granted(actor=OPERATOR), read()),
        (granted(DATASET | {"until": None}), read()),
        (granted(), (CUSTOMER, Event.GRANT_REVOKE, "a-grant", {}, 1), read(after=2)),
        (granted(), (Actor("system", "restore"), Event.BACKUP_RESTORE, "", {}, 1), read(after=2)),
        ((OPERATOR, Event.DATASET_EXPORT, "winter", {}, 0),),
    ],
    ids=["none", "another's", "ended", "unnamed", "its own", "pending", "revoked", "restored", "export"],
)
def test_an_operators_read_without_a_live_grant_is_found(tmp_path: Path, acts: tuple[Act, ...]) -> None:
    found = findings(tmp_path / "state", *acts)
    (finding,) = [one for one in found if not one.startswith("the checkpoint is of the log")]
    assert "has read images without a live grant" in finding
    assert finding.startswith(f"entry {len(acts)}: operator 100")


@pytest.mark.parametrize(
    "acts",
    [
        [granted(IMAGES), *saw("an-image", "a-third")],
        [granted(IMAGES), EXPORT],
        [granted(), read(details=GRANT | {"dataset": "summer"})],
        [granted(DATASET | {"dataset": "summer"}), EXPORT],
        [granted(NUMBER), *saw("an-image", "another", "an-image", "a-third")],
        [granted(NUMBER), EXPORT],
    ],
    ids=["image", "export of images", "dataset", "another's export", "number", "export of a number"],
)
def test_a_read_that_the_grant_was_not_for_is_found(tmp_path: Path, acts: list[Act]) -> None:
    """Whatever its row says by now: that is what the daemon went by."""
    (finding,) = findings(tmp_path / "state", *acts)
    assert finding.startswith(
        f"entry {len(acts)}: operator 1001 has read images that grant a-grant is not for"
    )


def test_a_grant_of_another_customers_is_none(tmp_path: Path) -> None:
    def read_bobs(connection: Connection, _: Certificates) -> None:
        record(connection, NOW_MS + 1000, OPERATOR, Event.IMAGE_OPEN, BOB, "an-image", dict(GRANT))

    (finding,) = findings(tmp_path / "state", granted(IMAGES), also=read_bobs)
    assert "without a live grant" in finding


def test_what_a_grant_was_for_is_known_until_it_ends_however_many_there_are(tmp_path: Path) -> None:
    def many(connection: Connection, _: Certificates) -> None:
        for number in range(300):
            now = NOW_MS + number * 60_000
            details = UNTIL | {"images": [f"image {number}"], "until": now + 3_600_000}
            record(connection, now, CUSTOMER, Event.GRANT_OPEN, ALICE, f"grant {number}", details)
            for back in {0, min(number, 59)}:
                seen: dict[str, object] = {"grant": f"grant {number - back}", "dataset": "winter"}
                record(connection, now, OPERATOR, Event.IMAGE_OPEN, ALICE, f"image {number - back}", seen)

    assert findings(tmp_path / "state", also=many) == []


ERASED = [
    (Event.CUSTOMER_ERASE, "customer", "alice"),
    (Event.DATASET_ERASE, "dataset", "winter"),
    (Event.COLLECTION_REMOVE, "collection", "shoes"),
    (Event.COLLECTION_EMPTY, "collection", "shoes"),
    (Event.IMAGE_DELETE, "image", "an-image"),
]


def certifying(kind: str, subject: str) -> Also:
    def certify(connection: Connection, certificates: Certificates) -> None:
        ids = [subject] if kind == "image" else []
        where = "winter" if kind == "image" else subject
        certificates.add(connection, NOW_MS, Erased(kind, ALICE, where, ids=ids))  # type: ignore[arg-type]

    return certify


@pytest.mark.parametrize(("event", "kind", "subject"), ERASED, ids=[event for event, _, _ in ERASED])
def test_an_erasure_without_its_certificate_is_found(
    tmp_path: Path, event: Event, kind: str, subject: str
) -> None:
    act: Act = (OPERATOR, event, subject, {}, 0)
    without = f"entry 1: the erasure of {kind} {subject} has no certificate"
    assert findings(tmp_path / "without", act) == [without]
    assert findings(tmp_path / "with", act, also=certifying(kind, subject)) == []


def test_an_erasure_that_goes_on_is_told(tmp_path: Path) -> None:
    def begin(connection: Connection, _: Certificates) -> None:
        connection.execute("UPDATE customers SET erasing = '{}' WHERE id = 'alice'")

    act = (OPERATOR, Event.CUSTOMER_ERASE, "alice", dict[str, object](), 0)
    assert findings(tmp_path / "state", act, also=begin) == [
        "1 erasures have not ended, and have no certificate yet"
    ]


ERASE_IMAGE: Act = (OPERATOR, Event.IMAGE_DELETE, "an-image", {}, 0)


@pytest.mark.parametrize(
    "change",
    [
        "signature = zeroblob(64)",
        "statement = replace(statement, 'an-image', 'my-image')",
        "statement = ''",
        "statement = CAST(x'ff' AS TEXT)",
        "subject = 'summer'",
        "kind = 'record'",
        "customer = 'bob'",
        "id = 'another'",
        "erased_at = erased_at + 1",
    ],
)
def test_a_certificate_that_is_not_as_it_was_signed_is_found(tmp_path: Path, change: str) -> None:
    recorded(tmp_path / "state", ERASE_IMAGE, also=certifying("image", "an-image"))
    assert told(tmp_path / "state") == []
    edit(tmp_path / "state", f"UPDATE certificates SET {change}")
    assert any(" of an erasure is not as the appliance signed it" in one for one in told(tmp_path / "state"))


@pytest.mark.parametrize("kind", ["image", "record"])
def test_a_certificate_that_was_taken_away_is_missed(tmp_path: Path, kind: str) -> None:
    """Also one of records, whose deletion the log does not tell one by one; and whatever else is changed."""
    state = tmp_path / "state"
    recorded(state, *([ERASE_IMAGE] if kind == "image" else []), also=certifying(kind, "an-image"))
    edit(state, "DELETE FROM certificates", "UPDATE certified_since SET seq = 1000")
    since, missing = told(state)
    named = 2 if kind == "image" else 1
    assert since.startswith("the ledger says that there are certificates since entry 1000")
    assert missing.startswith(f"entry {named}: the certificate ")
    assert missing.endswith(" of an erasure is missing")


def test_erasures_of_before_there_were_certificates_are_counted(tmp_path: Path) -> None:
    state = tmp_path / "state"
    recorded(state, ERASE_IMAGE)
    for change in ("UPDATE certified_since SET seq = 1", "INSERT INTO certified_since VALUES (1)"):
        edit(state, change)
        assert told(state) == ["1 erasures up to entry 1 are from before there were certificates"]
    edit(state, "DELETE FROM certified_since")
    assert told(state) == ["entry 1: the erasure of image an-image has no certificate"]


@pytest.mark.parametrize("event", [Event.CUSTOMER_CLAIM, Event.LABEL_ADD])
def test_a_customer_that_has_used_a_token_counts_as_one(tmp_path: Path, event: Event) -> None:
    state = tmp_path / "state"
    recorded(state, (CUSTOMER, event, "alice", {}, 0))
    edit(state, "UPDATE customers SET claimed_at = NULL WHERE id = 'bob'")
    assert told(state) == []
    edit(state, "UPDATE customers SET claimed_at = NULL")
    assert told(state) == [
        "customer alice has used a token, and its row says that it has not: that was changed"
    ]


@pytest.mark.parametrize("change", ["recovery = 0", "created_at = created_at - 86400000"])
def test_a_token_of_recovery_counts_as_one(tmp_path: Path, change: str) -> None:
    def issue(connection: Connection, _: Certificates) -> None:
        connection.execute(
            "INSERT INTO tokens (id, customer, mac, scopes, created_at, recovery)"
            " VALUES ('a-token', 'alice', zeroblob(32), 'admin', ?, 1)",
            (NOW_MS,),
        )

    state = tmp_path / "state"
    details: dict[str, object] = {"scopes": ["admin"], "recovery": True}
    recorded(state, (OPERATOR, Event.TOKEN_ADD, "a-token", details, 0), also=issue)
    assert told(state) == []
    edit(state, f"UPDATE tokens SET {change}")
    assert told(state) == [
        "entry 1: token a-token is one of recovery, and its row says otherwise: that was changed"
    ]
