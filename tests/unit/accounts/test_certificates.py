"""Certificates of erasure: proven by two files, and by nothing that was changed."""

import json
import uuid
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts.audit import Event
from appliance.accounts.certificates import MAX_IDS, Certificates, Erased, verified
from appliance.accounts.customers import CustomerId
from appliance.errors import InvalidInput, NotFound
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.vault import Keys
from tests.unit.accounts.conftest import Accounts

ALICE, BOB = CustomerId("alice"), CustomerId("bob")
NOW = 1_800_000_000_123


def issued(accounts: Accounts) -> Certificates:
    return Certificates(accounts.ledger, accounts.keys)


async def add(accounts: Accounts, *erased: Erased) -> None:
    certificates = issued(accounts)
    for one in erased:
        await accounts.ledger.write(lambda connection, one=one: certificates.add(connection, NOW, one))  # type: ignore[misc]


async def test_a_certificate_proves_what_was_erased(accounts: Accounts) -> None:
    await add(accounts, Erased("dataset", ALICE, "winter", {"images": 7}, keys=("winter",)))
    certificates = issued(accounts)
    (found,) = await certificates.list(ALICE)
    statement = verified(certificates.envelope(found), certificates.public_key)
    assert (statement.kind, statement.customer, statement.subject) == ("dataset", ALICE, "winter")
    assert (statement.id, statement.keys, statement.counts) == (found.id, ("winter",), {"images": 7})
    assert statement.erased_at == "2027-01-15T08:00:00.123+00:00"


async def test_its_envelope_is_dsse(accounts: Accounts) -> None:
    """As any other implementation reads it: base64 payload, type, and signature of the encoding of both."""
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    await add(accounts, Erased("customer", ALICE, ALICE))
    certificates = issued(accounts)
    (found,) = await certificates.list(ALICE)
    envelope = json.loads(certificates.envelope(found))
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"]
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(certificates.public_key))
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
    assert json.loads(payload)["id"] == found.id


async def test_another_appliances_key_proves_nothing(accounts: Accounts) -> None:
    await add(accounts, Erased("customer", ALICE, ALICE))
    certificates = issued(accounts)
    (found,) = await certificates.list(ALICE)
    other = Certificates(accounts.ledger, Keys(bytes(32))).public_key
    for key in (other, "", "no key", "AAAA", certificates.public_key[:-4]):
        with pytest.raises(InvalidInput):
            verified(certificates.envelope(found), key)


@pytest.fixture(scope="module")
def envelope(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    import asyncio

    async def made(folder: Path) -> tuple[bytes, str]:
        async with Ledger(folder, Registry()) as ledger:
            certificates = Certificates(ledger, Keys(bytes(range(32))))
            erased = Erased("image", ALICE, "winter", ids=[str(uuid.UUID(int=n)) for n in range(3)])
            await ledger.write(lambda connection: certificates.add(connection, NOW, erased))
            return certificates.envelope((await certificates.list(ALICE))[0]), certificates.public_key

    return asyncio.run(made(tmp_path_factory.mktemp("certificates")))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.data())
def test_no_change_of_a_byte_is_missed(envelope: tuple[bytes, str], data: st.DataObject) -> None:
    whole, key = envelope
    at = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["change", "remove", "insert", "cut"]))
    byte = bytes([data.draw(st.integers(0, 255))])
    changed = {
        "change": whole[:at] + byte + whole[at + 1 :],
        "remove": whole[:at] + whole[at + 1 :],
        "insert": whole[:at] + byte + whole[at:],
        "cut": whole[:at],
    }[kind]
    if changed == whole:
        assert verified(changed, key).kind == "image"
        return
    with pytest.raises(InvalidInput):
        verified(changed, key)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.binary(max_size=99))
def test_what_is_no_certificate_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidInput):
        verified(content, "AAAA")


async def test_many_images_are_in_several_certificates(accounts: Accounts) -> None:
    ids = [str(uuid.UUID(int=number)) for number in range(2 * MAX_IDS + 5)]
    await add(accounts, Erased("image", ALICE, "winter", ids=ids))
    certificates = issued(accounts)
    found = [
        verified(certificates.envelope(one), certificates.public_key)
        for one in await certificates.list(ALICE)
    ]
    assert [one.counts for one in found] == [{"images": MAX_IDS}, {"images": MAX_IDS}, {"images": 5}]
    assert [identity for one in found for identity in one.ids] == ids


async def test_the_audit_log_names_each_to_its_customer(accounts: Accounts) -> None:
    ids = [str(uuid.UUID(int=number)) for number in range(MAX_IDS + 1)]
    await add(accounts, Erased("image", ALICE, "winter", ids=ids), Erased("customer", BOB, BOB))
    issued_ones = await issued(accounts).list(None)
    named = [entry for entry in await accounts.log() if entry.event is Event.ERASURE_CERTIFY]
    assert [(one.subject, one.customer) for one in named] == [(one.id, one.customer) for one in issued_ones]
    assert [one.details for one in named] == [
        *({"kind": "image", "subject": "winter"} for _ in range(2)),
        {"kind": "customer", "subject": BOB},
    ]


async def test_certificates_are_found_by_what_they_are_about(accounts: Accounts) -> None:
    certificates = issued(accounts)
    digests = [certificates.digest(ALICE, word.encode()) for word in ("shoe", "hat")]
    await add(
        accounts,
        Erased("image", ALICE, "winter", ids=["i-1", "i-2"]),
        Erased("record", ALICE, "shop", ids=digests),
        Erased("collection", ALICE, "shop", {"records": 2}, keys=("container",)),
        Erased("record", BOB, "shop", ids=[certificates.digest(BOB, b"shoe")]),
    )

    async def about(word: str, customer: CustomerId | None = ALICE) -> list[int]:
        return [one.number for one in await certificates.list(customer, about=word)]

    assert await about("i-2") == [1]
    assert await about("shoe") == [2]
    assert await about("shop") == [2, 3]
    assert await about("container") == [3]
    assert await about("shoe", BOB) == [4]
    assert await about("shoe", None) == []  # nobody's word
    assert await about("coat") == []
    assert "shoe" not in str([one.statement for one in await certificates.list(None)])


async def test_pages_and_owners(accounts: Accounts) -> None:
    await add(accounts, *(Erased("dataset", [ALICE, BOB][n % 2], str(n)) for n in range(6)))
    certificates = issued(accounts)
    first = await certificates.list(ALICE, limit=2)
    rest = await certificates.list(ALICE, after=first[-1].number)
    assert [one.subject for one in first + rest] == ["0", "2", "4"]
    assert len(await certificates.list(None)) == 6
    assert (
        (await certificates.get(ALICE, first[0].id)) == first[0] == await certificates.get(None, first[0].id)
    )
    for customer, identity in ((BOB, first[0].id), (ALICE, "nobody's"), (None, "nobody's")):
        with pytest.raises(NotFound):
            await certificates.get(customer, identity)


@pytest.mark.parametrize("statement", ["UPDATE certificates SET erased_at = 0", "DELETE FROM certificates"])
async def test_certificates_neither_change_nor_go(accounts: Accounts, statement: str) -> None:
    await add(accounts, Erased("customer", ALICE, ALICE))
    with pytest.raises(apsw.ConstraintError, match="append-only"):
        await accounts.ledger.write(lambda connection: connection.execute(statement).get)
    assert len(await issued(accounts).list(ALICE)) == 1
