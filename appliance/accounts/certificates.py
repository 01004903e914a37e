"""Certificates of erasure: what was erased and when, signed, to be proven without this appliance.

A certificate is a DSSE envelope (github.com/secure-systems-lab/dsse, v1) around a statement in JSON, signed
with Ed25519 by the appliance's own key. The statement holds ids, counts and times. A record's id is its
customer's own word: of it there is a keyed digest, which tells nothing to who has not the appliance's keys.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NewType

import msgspec

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.errors import InvalidInput, NotFound, SealBroken
from appliance.ledger import Connection, Ledger
from appliance.vault import NODE, Keys, signed, unwrapped, wrapped

CertificateId = NewType("CertificateId", str)
Kind = Literal["customer", "dataset", "image", "collection", "record"]

PAYLOAD_TYPE = "application/vnd.appliance.erasure+json"
MAX_IDS = 1000
"""Ids of images or records in one certificate; of more there are several."""

_ACTOR = Actor("system", "certificates")
_DIGEST = "certificates/record"
_DIGEST_BYTES = 16
_COLUMNS = "number, id, kind, customer, subject, erased_at, statement, signature"
_AS_BYTES = (  # what a hand or a damaged disk made of a text need not be one
    "SELECT CAST(id AS BLOB), CAST(kind AS BLOB), CAST(customer AS BLOB), CAST(subject AS BLOB), erased_at,"
    " CAST(statement AS BLOB), signature FROM certificates ORDER BY number"
)


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased.

    `subject` is the id of the customer, dataset or collection; of images and records that of the dataset or
    collection which they were in. `keys` are the ids by which the keyring knew the keys that were destroyed,
    none where the container stays. `ids` are of images, and digests of the ids of records. `snapshots` are
    those of its collection that bring a record back where they have it; None for what no snapshot has.
    """

    kind: Kind
    customer: CustomerId
    subject: str
    counts: Mapping[str, int] = field(default_factory=dict)
    keys: Sequence[str] = ()
    ids: Sequence[str] = ()
    snapshots: Sequence[str] | None = None


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a certificate states; `erased_at` is ISO 8601 in UTC: by then all of it was gone, but for
    `snapshots`.

    These are of the collection that a record was in: one that has the record brings it back when it is
    restored, until the snapshot is removed. Of what was erased from snapshots as well there are none. Other
    kinds, and certificates from before there was this field, do not have it.
    """

    id: str
    kind: Kind
    customer: str
    subject: str
    erased_at: str
    keys: tuple[str, ...]
    counts: dict[str, int]
    ids: tuple[str, ...]
    snapshots: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as the ledger keeps it; `erased_at` in unix milliseconds, `number` rises."""

    number: int
    id: CertificateId
    kind: Kind
    customer: CustomerId
    subject: str
    erased_at: int
    statement: bytes
    signature: bytes


class Certificates:
    """The certificates of all customers, erased ones included."""

    def __init__(self, ledger: Ledger, keys: Keys) -> None:
        """`keys` are the appliance's own: `Keyring.service`."""
        self._ledger = ledger
        self._keys = keys

    @property
    def public_key(self) -> str:
        """What proves a certificate, in base64: see `verified`."""
        return self._keys.public(NODE)

    def add(self, connection: Connection, now: int, erased: Erased) -> None:
        """Certify an erasure, within the act that completes it; `now` is unix milliseconds.

        The audit log names the certificate, so that one which is taken away is missed.
        """
        for low in range(0, len(erased.ids) or 1, MAX_IDS):
            some = tuple(erased.ids[low : low + MAX_IDS])
            statement = Statement(
                id=str(uuid.uuid4()),
                kind=erased.kind,
                customer=erased.customer,
                subject=erased.subject,
                erased_at=datetime.fromtimestamp(now / 1000, UTC).isoformat(timespec="milliseconds"),
                keys=tuple(erased.keys),
                counts={f"{erased.kind}s": len(some)} if some else dict(erased.counts),
                ids=some,
                snapshots=None if erased.snapshots is None else tuple(erased.snapshots),
            )
            payload = msgspec.json.encode(statement)
            signature = signed(self._keys, NODE, payload, PAYLOAD_TYPE)
            connection.execute(
                "INSERT INTO certificates (id, kind, customer, subject, erased_at, statement, signature)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    statement.id,
                    erased.kind,
                    erased.customer,
                    erased.subject,
                    now,
                    payload.decode(),
                    signature,
                ),
            )
            told: dict[str, object] = {"kind": erased.kind, "subject": erased.subject}
            record(connection, now, _ACTOR, Event.ERASURE_CERTIFY, erased.customer, statement.id, told)

    def digest(self, customer: CustomerId, record: bytes) -> str:
        """What stands for a record's id in a certificate: 32 hexadecimal digits."""
        return self._keys.mac(_DIGEST, customer.encode() + b"/" + record)[:_DIGEST_BYTES].hex()

    async def list(
        self, customer: CustomerId | None, *, about: str | None = None, after: int = 0, limit: int = 100
    ) -> list[Certificate]:
        """Certificates with a number above `after`, ascending; of one customer, or of all with None.

        `about` is an id: of a customer, dataset, collection, image or key, or one customer's word for a
        record.
        """
        digest = about if about is None or customer is None else self.digest(customer, about.encode())

        def query(connection: Connection) -> list[Certificate]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM certificates"  # noqa: S608 -- a constant
                " WHERE number > ?1 AND (?2 IS NULL OR customer = ?2)"
                " AND (?3 IS NULL OR subject = ?3 OR EXISTS"
                " (SELECT 1 FROM json_each(statement, '$.ids') WHERE value IN (?3, ?4)) OR EXISTS"
                " (SELECT 1 FROM json_each(statement, '$.keys') WHERE value = ?3))"
                " ORDER BY number LIMIT ?5",
                (after, customer, about, digest, limit),
            )
            return [_certificate(row) for row in rows]

        return await self._ledger.read(query)

    async def get(self, customer: CustomerId | None, certificate: str) -> Certificate:
        """Raises NotFound when there is none of this id, or it is another customer's (None: anybody's)."""

        def query(connection: Connection) -> tuple[Any, ...] | None:
            return connection.execute(
                f"SELECT {_COLUMNS} FROM certificates WHERE id = ?1 AND (?2 IS NULL OR customer = ?2)",  # noqa: S608
                (certificate, customer),
            ).fetchone()

        row = await self._ledger.read(query)
        if row is None:
            raise NotFound("no such certificate of erasure")
        return _certificate(row)

    def envelope(self, certificate: Certificate) -> bytes:
        """The certificate as it is given out: what `verified` takes."""
        return wrapped(certificate.statement, PAYLOAD_TYPE, certificate.signature, self.public_key)


def verified(certificate: bytes, public_key: str) -> Statement:
    """The statement of a certificate that the holder of this key has made, to the last byte.

    Raises InvalidInput, which says what is wrong.
    """
    try:
        payload = unwrapped(certificate.removesuffix(b"\n"), PAYLOAD_TYPE, public_key)
        return msgspec.json.decode(payload, type=Statement)
    except SealBroken as broken:
        wrong = "this is no certificate of erasure by the key given"
        raise InvalidInput(f"{wrong}: {broken}", told=wrong) from None
    except msgspec.MsgspecError:
        raise InvalidInput("the certificate states what this version does not read") from None


def changed(connection: Connection, public_key: str) -> Iterator[str]:
    """The ids of the certificates in a ledger that are not as the holder of this key has signed them."""
    for identity, *columns, erased_at, statement, signature in connection.execute(_AS_BYTES):
        try:
            said = verified(wrapped(statement, PAYLOAD_TYPE, signature, public_key), public_key)
        except InvalidInput:
            yield identity.decode(errors="replace")
            continue
        told = [text.encode() for text in (said.kind, said.customer, said.subject)]
        at = round(datetime.fromisoformat(said.erased_at).timestamp() * 1000)
        if (said.id.encode(), told, at) != (identity, columns, erased_at):
            yield identity.decode(errors="replace")


def _certificate(row: tuple[Any, ...]) -> Certificate:
    number, identity, kind, customer, subject, erased_at, statement, signature = row
    return Certificate(number, identity, kind, customer, subject, erased_at, statement.encode(), signature)
