"""Agreements: active, pending or revoked, and nothing that they allow happens without one."""

import asyncio
import hashlib
from datetime import date
from pathlib import Path
from uuid import UUID

import apsw
import pytest

from appliance.accounts.agreements import (
    Agreement,
    AgreementId,
    Agreements,
    Kind,
    parse_kind,
)
from appliance.accounts.audit import Actor, Event
from appliance.accounts.contracts import Contract
from appliance.accounts.customers import CustomerId
from appliance.errors import Conflict, Forbidden, InvalidInput, NotFound
from appliance.ledger import Connection
from tests.unit.accounts.conftest import OPERATOR, Accounts, resting

TRAINING = Kind.TRAINING_DATA
TOKEN = Actor("token", "0123456789", "req-2")
NOBODY = CustomerId("00000000-0000-4000-8000-000000000000")


@pytest.fixture
async def customer(accounts: Accounts) -> CustomerId:
    return (await accounts.customers.add(OPERATOR, "Zoo")).id


@pytest.fixture
async def other(accounts: Accounts) -> CustomerId:
    return (await accounts.customers.add(OPERATOR, "Atelier")).id


def restarted_agreements(accounts: Accounts) -> Agreements:
    return Agreements(accounts.ledger, accounts.keyring, accounts.customers, accounts.clock)


async def refused(accounts: Accounts, customer: CustomerId) -> str:
    """Why this customer's images may not be stored: memory, the ledger and a restart say the same."""
    with pytest.raises(Forbidden) as error:
        accounts.agreements.require(customer, TRAINING)
    async with restarted_agreements(accounts) as restarted:
        with pytest.raises(Forbidden) as again:
            restarted.require(customer, TRAINING)
    with pytest.raises(Forbidden) as inside:
        await accounts.ledger.write(
            lambda connection: accounts.agreements.required(connection, customer, TRAINING)
        )
    assert str(error.value) == str(again.value) == str(inside.value)
    return str(error.value)


async def allowed(accounts: Accounts, customer: CustomerId) -> Agreement:
    """The agreement under which this customer's images may be stored: memory, ledger and a restart agree."""
    found = accounts.agreements.require(customer, TRAINING)
    async with restarted_agreements(accounts) as restarted:
        assert restarted.require(customer, TRAINING) == found
    assert (
        await accounts.ledger.write(
            lambda connection: accounts.agreements.required(connection, customer, TRAINING)
        )
        == found
    )
    return found


async def test_a_signed_one_is_active_at_once(accounts: Accounts, customer: CustomerId) -> None:
    assert "appliance agreement sign" in await refused(accounts, customer)
    signed = await accounts.agreements.sign(OPERATOR, customer, TRAINING)
    assert signed.state == "active"
    assert signed.signed_at == signed.active_at == 1_800_000_000_000
    assert await allowed(accounts, customer) == signed
    assert await accounts.agreements.list(customer) == [signed]


async def test_one_that_is_to_be_accepted_allows_nothing_before(
    accounts: Accounts, customer: CustomerId
) -> None:
    signed = await accounts.agreements.sign(OPERATOR, customer, TRAINING, await_acceptance=True)
    assert (signed.state, signed.active_at) == ("pending", None)
    assert f"{signed.id}/accept" in await refused(accounts, customer)
    accounts.clock.now += 5
    accepted = await accounts.agreements.accept(TOKEN, customer, signed.id)
    assert accepted.state == "active"
    assert accepted.active_at == signed.signed_at + 5000
    assert await allowed(accounts, customer) == accepted


async def test_accepting_twice_changes_nothing(accounts: Accounts, customer: CustomerId) -> None:
    signed = await accounts.agreements.sign(OPERATOR, customer, TRAINING, await_acceptance=True)
    first = await accounts.agreements.accept(TOKEN, customer, signed.id)
    accounts.clock.now += 5
    before = await accounts.log()
    assert await accounts.agreements.accept(TOKEN, customer, signed.id) == first
    assert await accounts.log() == before


async def test_a_revoked_one_allows_nothing_and_never_will_again(
    accounts: Accounts, customer: CustomerId
) -> None:
    signed = await accounts.agreements.sign(OPERATOR, customer, TRAINING)
    await accounts.agreements.revoke(TOKEN, customer, signed.id)
    await refused(accounts, customer)
    with pytest.raises(Conflict, match="revoked"):
        await accounts.agreements.accept(TOKEN, customer, signed.id)
    (listed,) = await accounts.agreements.list(customer)
    assert listed.state == "revoked"


async def test_revoking_twice_is_nothing_also_when_there_is_a_new_one(
    accounts: Accounts, customer: CustomerId
) -> None:
    old = await accounts.agreements.sign(OPERATOR, customer, TRAINING)
    await accounts.agreements.revoke(TOKEN, customer, old.id)
    new = await accounts.agreements.sign(OPERATOR, customer, TRAINING)
    before = await accounts.log()
    await accounts.agreements.revoke(TOKEN, customer, old.id)
    assert await accounts.log() == before
    assert await allowed(accounts, customer) == new


@pytest.mark.parametrize("pending", [True, False])
async def test_a_second_one_is_refused_while_there_is_one(
    accounts: Accounts, customer: CustomerId, *, pending: bool
) -> None:
    first = await accounts.agreements.sign(OPERATOR, customer, TRAINING, await_acceptance=pending)
    with pytest.raises(Conflict, match=str(first.id)):
        await accounts.agreements.sign(OPERATOR, customer, TRAINING)
    assert await accounts.agreements.list(customer) == [first]
    (event,) = [entry.event for entry in await accounts.log() if entry.subject == first.id]
    assert event is Event.AGREEMENT_SIGN


async def test_of_two_that_sign_at_once_one_is_refused(accounts: Accounts, customer: CustomerId) -> None:
    signing = [accounts.agreements.sign(OPERATOR, customer, TRAINING) for _ in range(2)]
    outcomes = await asyncio.gather(*signing, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Agreement, Conflict}
    assert len(await accounts.agreements.list(customer)) == 1


async def test_the_ledger_itself_holds_one_that_is_not_revoked(
    accounts: Accounts, customer: CustomerId
) -> None:
    await accounts.agreements.sign(OPERATOR, customer, TRAINING)
    with pytest.raises(apsw.ConstraintError, match="UNIQUE"):
        await accounts.ledger.write(
            lambda connection: connection.execute(
                "INSERT INTO agreements (id, customer, kind, signed_at) VALUES ('x', ?, 'training-data', 0)",
                (customer,),
            )
        )


async def test_what_is_stored_is_stored_before_a_revocation_or_not_at_all(
    accounts: Accounts, customer: CustomerId
) -> None:
    """Memory lags behind the ledger by a turn of the loop: the transaction that stores must not."""
    signed = await accounts.agreements.sign(OPERATOR, customer, TRAINING)

    def put(connection: Connection) -> str:
        accounts.agreements.required(connection, customer, TRAINING)
        return "stored"

    early, _, late = await asyncio.gather(
        accounts.ledger.write(put),
        accounts.agreements.revoke(TOKEN, customer, signed.id),
        accounts.ledger.write(put),
        return_exceptions=True,
    )
    assert early == "stored"
    assert isinstance(late, Forbidden)


async def test_another_customers_agreement_is_not_there(
    accounts: Accounts, customer: CustomerId, other: CustomerId
) -> None:
    signed = await accounts.agreements.sign(OPERATOR, customer, TRAINING, await_acceptance=True)
    before = await accounts.log()
    messages = set()
    for agreement in (signed.id, AgreementId(NOBODY)):
        for attack in (accounts.agreements.accept, accounts.agreements.revoke):
            with pytest.raises(NotFound) as error:
                await attack(TOKEN, other, agreement)
            messages.add(str(error.value))
    assert messages == {"no such agreement"}
    assert await accounts.agreements.list(other) == []
    assert await accounts.agreements.list(customer) == [signed]
    assert await accounts.log() == before
    await accounts.agreements.accept(TOKEN, customer, signed.id)
    await refused(accounts, other)


async def test_an_operator_revokes_any_and_lists_all(
    accounts: Accounts, customer: CustomerId, other: CustomerId
) -> None:
    signed = [await accounts.agreements.sign(OPERATOR, one, TRAINING) for one in (customer, other)]
    assert {one.id for one in await accounts.agreements.list()} == {one.id for one in signed}
    await accounts.agreements.revoke(OPERATOR, None, signed[0].id)
    await refused(accounts, customer)
    assert await allowed(accounts, other) == signed[1]


async def test_nobody_signs_for_a_customer_that_does_not_exist(accounts: Accounts) -> None:
    with pytest.raises(NotFound, match="no such customer"):
        await accounts.agreements.sign(OPERATOR, NOBODY, TRAINING)


async def test_every_act_is_in_the_audit_log(accounts: Accounts, customer: CustomerId) -> None:
    signed = await accounts.agreements.sign(OPERATOR, customer, TRAINING, await_acceptance=True)
    await accounts.agreements.accept(TOKEN, customer, signed.id)
    await accounts.agreements.revoke(TOKEN, customer, signed.id)
    _, *log = await accounts.log()
    assert [(entry.event, entry.actor) for entry in log] == [
        (Event.AGREEMENT_SIGN, OPERATOR),
        (Event.AGREEMENT_ACCEPT, TOKEN),
        (Event.AGREEMENT_REVOKE, TOKEN),
    ]
    assert {(entry.customer, entry.subject) for entry in log} == {(customer, signed.id)}
    assert log[0].details == {"kind": "training-data", "await_acceptance": True}


def test_kinds_by_name() -> None:
    assert parse_kind("training-data") is TRAINING
    with pytest.raises(InvalidInput, match="training-data"):
        parse_kind("everything")


async def test_one_that_has_ended_by_itself_allows_nothing(accounts: Accounts, customer: CustomerId) -> None:
    ends = int(accounts.clock.now * 1000) + 5000
    signed = await accounts.agreements.sign(OPERATOR, customer, TRAINING, Contract(valid_until=ends))
    assert await allowed(accounts, customer) == signed
    accounts.clock.now += 5
    assert "has expired" in await refused(accounts, customer)
    assert [one.state for one in await accounts.agreements.list()] == ["expired"]
    with pytest.raises(Conflict, match="expired"):
        await accounts.agreements.sign(OPERATOR, customer, TRAINING)
    with pytest.raises(Conflict, match="expired"):
        await accounts.agreements.accept(TOKEN, customer, signed.id)
    with pytest.raises(InvalidInput, match="valid_until"):
        await accounts.agreements.sign(OPERATOR, customer, Kind.NDA, Contract(valid_until=ends))


async def test_where_acceptance_is_required_every_one_waits_for_it(
    accounts: Accounts, customer: CustomerId
) -> None:
    strict = Agreements(
        accounts.ledger, accounts.keyring, accounts.customers, accounts.clock, require_acceptance=True
    )
    signed = await strict.sign(OPERATOR, customer, TRAINING)
    assert signed.state == "pending"
    with pytest.raises(Forbidden, match="accept"):
        strict.require(customer, TRAINING)
    await strict.accept(TOKEN, customer, signed.id)
    assert strict.require(customer, TRAINING).id == signed.id


async def test_the_paper_and_its_parties_rest_sealed(
    accounts: Accounts, customer: CustomerId, tmp_path: Path
) -> None:
    paper, parties = b"We, the undersigned, have agreed." * 20, "The Zoo & its keeper"
    digest = hashlib.sha256(paper).hexdigest()
    contract = Contract(parties, digest, date(2027, 1, 10))
    signed = await accounts.agreements.sign(OPERATOR, customer, Kind.DPA, contract)
    await accounts.agreements.attach(OPERATOR, signed.id, paper)
    assert await accounts.agreements.document(customer, signed.id) == paper
    (listed,) = await accounts.agreements.list()
    assert (listed.contract, listed.has_document) == (contract, True)
    stored = resting(tmp_path)
    assert digest.encode() in stored
    assert paper[:24] not in stored
    assert parties.encode() not in stored

    owner = UUID(customer)
    accounts.keyring.destroy(owner, owner)
    (listed,) = await accounts.agreements.list()
    assert listed.contract.parties is None
    with pytest.raises(NotFound):
        await accounts.agreements.document(customer, signed.id)


async def test_a_row_that_was_put_back_brings_no_revoked_agreement_back(
    accounts: Accounts, customer: CustomerId
) -> None:
    signed = await accounts.agreements.sign(OPERATOR, customer, TRAINING)
    await accounts.agreements.revoke(TOKEN, customer, signed.id)
    await accounts.ledger.write(
        lambda connection: connection.execute("UPDATE agreements SET revoked_at = NULL")
    )
    await refused(accounts, customer)
    assert (await accounts.agreements.get(customer, signed.id)).state == "revoked"
    another = await accounts.agreements.sign(OPERATOR, customer, TRAINING)
    assert (await allowed(accounts, customer)).id == another.id
