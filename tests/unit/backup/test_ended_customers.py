"""What has ended for customers since a backup is ended by its restore."""

from pathlib import Path

import pytest

from appliance.accounts.audit import Actor, Event, entries, record
from appliance.accounts.grants import Access, Grants
from appliance.accounts.tokens import Tokens
from appliance.errors import (
    Forbidden,
)
from tests.auditing import edit
from tests.backing import Shelf, filled, proven, put_back
from tests.storing import ACTOR, OPERATOR, Clock, Stand, stand


async def test_a_customer_that_was_suspended_since_stays_suspended(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    dataset, (image, *_) = await filled(open_stand)
    dataset = await open_stand.datasets.change(ACTOR, dataset, visibility="public")
    resumed = await open_stand.customer("Bob")
    await open_stand.customers.suspend(OPERATOR, resumed)
    tokens = Tokens(open_stand.ledger, open_stand.keyring.service, open_stand.customers, open_stand.clock)
    async with tokens:
        issued = await tokens.add(ACTOR, dataset.customer)
    link = open_stand.links.address(dataset, image)
    made = await shelf.take(open_stand)
    await open_stand.customers.suspend(OPERATOR, dataset.customer)
    await open_stand.customers.resume(OPERATOR, resumed)
    newest = await shelf.take(open_stand)
    assert proven(made.folder, made.keyring, newer=newest.tombstones).ended["suspensions"] == 1
    await put_back(made.folder, newest.keyring, tmp_path / "again", newer=newest.tombstones)
    edit(tmp_path / "again", "UPDATE customers SET suspended_at = NULL")  # the restored log knows it, too
    async with (
        stand(tmp_path / "again") as again,
        Tokens(again.ledger, again.keyring.service, again.customers, again.clock) as tokens,
    ):
        assert (await again.customers.get(dataset.customer)).suspended_at is not None
        assert again.customers.suspended(resumed)  # as it was in the backup: an operator resumes it
        with pytest.raises(Forbidden, match="suspended"):
            tokens.verify(issued.token)
        with pytest.raises(Forbidden):
            await again.links.permit(*link.removeprefix("files/").split("?"))
        await again.customers.resume(OPERATOR, dataset.customer)
        assert tokens.verify(issued.token).customer == dataset.customer
        await again.links.permit(*link.removeprefix("files/").split("?"))
    await put_back(newest.folder, newest.keyring, tmp_path / "newest", newer=newest.tombstones)
    async with stand(tmp_path / "newest") as again:
        assert not again.customers.suspended(resumed)


async def test_what_rows_deny_of_customers_is_ended_by_a_restore_and_told_to_its_log(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    dataset, _ = await filled(open_stand)
    asleep, gone = await open_stand.customer("Bob"), await open_stand.customer("Carol")
    made = await shelf.take(open_stand)
    await open_stand.customers.suspend(OPERATOR, asleep)
    await open_stand.customers.claim(OPERATOR, dataset.customer)
    await open_stand.ledger.write(
        lambda connection: record(connection, 0, OPERATOR, Event.CUSTOMER_ERASE, gone, gone)
    )
    await open_stand.ledger.write(
        lambda connection: (
            connection.execute("UPDATE customers SET suspended_at = NULL, claimed_at = NULL").get
        )
    )
    newest = await shelf.take(open_stand)
    restored = await put_back(made.folder, made.keyring, tmp_path / "again", newer=newest.tombstones)
    ended = restored.verified.ended
    assert (ended["suspensions"], ended["customers"], ended["claims"]) == (2, 1, 1)
    async with stand(tmp_path / "again") as again:
        log = [(entry.event, entry.customer) for entry in await again.ledger.read(entries)]
    assert log[-4:-1] == [
        (Event.CUSTOMER_ERASE, gone),
        (Event.CUSTOMER_SUSPEND, asleep),
        (Event.CUSTOMER_CLAIM, dataset.customer),
    ]


async def test_a_customer_that_was_claimed_since_stays_claimed_and_no_grant_survives(
    open_stand: Stand, shelf: Shelf, tmp_path: Path
) -> None:
    open_stand.clock.now = 1_899_990_000.0  # a few hours before the restore
    dataset, _ = await filled(open_stand)
    owner, token = dataset.customer, Actor("token", "0123456789")
    access = Access("0", 72, dataset=dataset.id)
    grants = Grants(
        open_stand.ledger, open_stand.keyring, open_stand.customers, open_stand.clock, four_eyes=False
    )
    opened = await grants.open(token, owner, access, "for a look")
    made = await shelf.take(open_stand)
    await grants.revoke(token, owner, opened.id)
    await open_stand.customers.claim(token, owner)
    newest = await shelf.take(open_stand)
    assert proven(made.folder, made.keyring, newer=newest.tombstones).ended["claims"] == 1
    await put_back(made.folder, newest.keyring, tmp_path / "again", newer=newest.tombstones)
    async with (
        stand(tmp_path / "again", clock=Clock(1_900_000_000.0)) as again,
        Tokens(again.ledger, again.keyring.service, again.customers, again.clock) as tokens,
    ):
        with pytest.raises(Forbidden, match="used a token"):
            await tokens.add(OPERATOR, owner)
        restored = Grants(again.ledger, again.keyring, again.customers, again.clock, four_eyes=False)
        assert [(one.state, one.reason) for one in await restored.list()] == [("revoked", "for a look")]
        with pytest.raises(Forbidden):
            await restored.see(OPERATOR, owner, dataset.id, "any")
