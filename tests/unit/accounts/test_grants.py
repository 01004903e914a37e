"""Access grants: live only by the customer's word, for one operator, for what it names, and until it ends."""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts import grants as module
from appliance.accounts.audit import Actor, Event
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.forward import ForwardTime, latest_time
from appliance.accounts.grants import Access, Grant, GrantId, Grants
from appliance.accounts.rights import Scope
from appliance.accounts.tokens import Tokens
from appliance.errors import Conflict, Forbidden, InvalidInput, NotFound
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.vault import Keyring
from tests.unit.accounts.conftest import Accounts, Clock, resting

ANNA, BERT = Actor("operator", "1001", "req-1"), Actor("operator", "1002", "req-1")
ADMIN, SECOND = Actor("token", "aaaaaaaaaa", "req-2"), Actor("token", "bbbbbbbbbb", "req-3")
DATASET, IMAGE = "the dataset", "the image"
ONE_IMAGE = Access("1001", 2, images=(IMAGE, "another image"))
WHOLE = Access("1001", 2, dataset=DATASET)
HOUR = 3600.0
WHY = "labels look swapped"


@dataclass
class Desk:
    """The grants of one appliance, and what a test turns."""

    accounts: Accounts
    keyring: Keyring
    grants: Grants
    customer: CustomerId
    counter: Clock

    async def restarted(self, *, four_eyes: bool = False) -> Grants:
        accounts = self.accounts
        latest = await accounts.ledger.read(partial(latest_time, now=accounts.clock()))
        forward = ForwardTime(latest, accounts.clock, self.counter)
        return Grants(accounts.ledger, self.keyring, accounts.customers, forward.now, four_eyes=four_eyes)

    def pass_time(self, seconds: float) -> None:
        self.accounts.clock.now += seconds
        self.counter.now += seconds

    async def sees(
        self, actor: Actor = ANNA, dataset: str = DATASET, image: str = IMAGE, *, whole: bool = False
    ) -> bool:
        """Whether an operator may open this image now, or the whole dataset."""
        try:
            if whole:
                await self.accounts.ledger.write(self.grants.over(actor, self.customer, dataset))
            else:
                await self.grants.see(actor, self.customer, dataset, image)
        except Forbidden:
            return False
        return True

    async def events(self) -> list[tuple[Event, Actor, str | None, dict[str, object]]]:
        mine = [entry for entry in await self.accounts.log() if entry.customer == self.customer]
        return [(entry.event, entry.actor, entry.subject, entry.details) for entry in mine[1:]]


@pytest.fixture
async def desk(accounts: Accounts) -> Desk:
    keyring = accounts.keyring
    customer = (await accounts.customers.add(accounts.actor, "Zoo")).id
    counter = Clock(5.0)
    forward = ForwardTime(0.0, accounts.clock, counter)
    grants = Grants(accounts.ledger, keyring, accounts.customers, forward.now, four_eyes=False)
    return Desk(accounts, keyring, grants, customer, counter)


async def opened(desk: Desk, access: Access = ONE_IMAGE) -> Grant:
    return await desk.grants.open(ADMIN, desk.customer, access, WHY)


async def asked(desk: Desk, access: Access = ONE_IMAGE) -> Grant:
    return await desk.grants.ask(ANNA, desk.customer, access, WHY)


async def test_nothing_is_seen_without_a_grant(desk: Desk) -> None:
    assert not await desk.sees()
    assert not await desk.sees(whole=True)
    assert await desk.events() == []


async def test_one_that_the_customer_opens_is_live_for_what_it_names(desk: Desk) -> None:
    grant = await opened(desk)
    assert (grant.state, grant.asked_by, grant.approvals) == ("live", "customer", (ADMIN.id,))
    assert grant.ends_at == grant.asked_at + 2 * 3_600_000
    assert await desk.sees()
    assert await desk.sees(image="another image")
    assert not await desk.sees(image="a third one")
    assert not await desk.sees(whole=True)
    assert not await desk.sees(BERT)
    for kind in ("token", "system"):
        assert not await desk.sees(Actor(kind, ANNA.id))


async def test_one_over_a_dataset_is_for_all_its_images_and_no_others(desk: Desk) -> None:
    await opened(desk, WHOLE)
    assert await desk.sees(image="any")
    assert await desk.sees(whole=True)
    assert not await desk.sees(dataset="another one")
    assert not await desk.sees(dataset="another one", whole=True)


async def test_another_customers_grant_lets_nothing_through(desk: Desk) -> None:
    other = (await desk.accounts.customers.add(desk.accounts.actor, "Atelier")).id
    for access in (ONE_IMAGE, WHOLE):
        await desk.grants.open(ADMIN, other, access, WHY)
    assert not await desk.sees()
    assert not await desk.sees(whole=True)


async def test_each_opened_image_is_in_the_log_before_it_is_opened(desk: Desk) -> None:
    grant = await opened(desk)
    assert await desk.grants.see(ANNA, desk.customer, DATASET, IMAGE) == grant.id
    event, actor, subject, details = (await desk.events())[-1]
    assert (event, actor, subject) == (Event.IMAGE_OPEN, ANNA, IMAGE)
    assert details == {"grant": grant.id, "dataset": DATASET}


async def test_a_request_allows_nothing_until_it_is_approved(desk: Desk) -> None:
    grant = await asked(desk)
    assert (grant.state, grant.asked_by, grant.opened_at) == ("pending", "operator", None)
    assert not await desk.sees()
    desk.pass_time(23 * HOUR)
    approved = await desk.grants.approve(ADMIN, desk.customer, grant.id)
    assert approved.state == "live"
    assert approved.ends_at == (approved.opened_at or 0) + 2 * 3_600_000  # its hours begin here
    assert await desk.sees()
    desk.pass_time(2 * HOUR - 0.001)
    assert await desk.sees()
    desk.pass_time(0.001)
    assert not await desk.sees()
    assert [one.state for one in await desk.grants.list(desk.customer)] == ["expired"]


async def test_a_request_that_nobody_answers_expires(desk: Desk) -> None:
    grant = await asked(desk)
    desk.pass_time(24 * HOUR)
    with pytest.raises(Conflict, match="expired"):
        await desk.grants.approve(ADMIN, desk.customer, grant.id)
    with pytest.raises(Conflict, match="expired"):
        await desk.grants.deny(ADMIN, desk.customer, grant.id)
    assert not await desk.sees()


async def test_an_approval_that_is_replayed_brings_nothing_back_and_lengthens_nothing(desk: Desk) -> None:
    denied, revoked, live, ended = [await asked(desk) for _ in range(4)]
    await desk.grants.deny(ADMIN, desk.customer, denied.id)
    for grant in (revoked, live):
        await desk.grants.approve(ADMIN, desk.customer, grant.id)
    await desk.grants.approve(ADMIN, desk.customer, ended.id)
    await desk.grants.revoke(ADMIN, desk.customer, revoked.id)
    desk.pass_time(HOUR)
    before = len(await desk.events())
    for grant in (denied, revoked):
        with pytest.raises(Conflict, match="nothing brings it back"):
            await desk.grants.approve(SECOND, desk.customer, grant.id)
    for token in (ADMIN, SECOND):
        again = await desk.grants.approve(token, desk.customer, live.id)
        assert again.ends_at == live.asked_at + 2 * 3_600_000
    desk.pass_time(HOUR)
    with pytest.raises(Conflict, match="expired"):
        await desk.grants.approve(ADMIN, desk.customer, ended.id)
    assert len(await desk.events()) == before
    assert not await desk.sees()


async def test_an_operator_decides_nothing(desk: Desk) -> None:
    grant = await asked(desk)
    for act in (desk.grants.approve, desk.grants.deny):
        with pytest.raises(Forbidden, match="customer itself"):
            await act(ANNA, desk.customer, grant.id)
    with pytest.raises(Forbidden, match="customer itself"):
        await desk.grants.open(ANNA, desk.customer, WHOLE, WHY)
    with pytest.raises(Forbidden, match="customer itself"):
        await desk.grants.renew(ANNA, desk.customer, grant.id, None)
    assert [one.state for one in await desk.grants.list()] == ["pending"]


async def test_a_revoked_one_ends_at_once(desk: Desk) -> None:
    grant = await opened(desk)
    assert await desk.sees()
    revoking = desk.grants.revoke(ADMIN, desk.customer, grant.id)
    _, late = await asyncio.gather(revoking, desk.sees())
    assert not late
    await desk.grants.revoke(ANNA, None, grant.id)
    assert [event for event, *_ in await desk.events()].count(Event.GRANT_REVOKE) == 1


async def test_a_suspended_customer_which_can_revoke_nothing_shows_nothing(desk: Desk) -> None:
    await opened(desk)
    await desk.accounts.customers.suspend(ANNA, desk.customer)
    assert not await desk.sees()
    await desk.accounts.customers.resume(ANNA, desk.customer)
    assert await desk.sees()


async def test_a_clock_that_is_set_back_revives_nothing(desk: Desk) -> None:
    await opened(desk)
    desk.pass_time(2 * HOUR)
    assert not await desk.sees()
    desk.accounts.clock.now -= 100 * HOUR
    assert not await desk.sees()
    desk.accounts.clock.now += 100 * HOUR
    await opened(desk)
    desk.accounts.clock.now -= 1000 * HOUR  # while it is live: its hours go on to be counted
    assert await desk.sees()
    desk.counter.now += 2 * HOUR
    assert not await desk.sees()
    latest = desk.accounts.clock.now + 1002 * HOUR
    await desk.accounts.ledger.write(  # as links do all the time
        lambda connection: (
            connection.execute("INSERT INTO latest_time (id, time) VALUES (1, ?)", (int(latest * 1000),)).get
        )
    )
    desk.grants = await desk.restarted()
    assert not await desk.sees()


async def test_renewed_it_is_another_one(desk: Desk) -> None:
    first = await opened(desk, WHOLE)
    desk.pass_time(HOUR)
    second = await desk.grants.renew(SECOND, desk.customer, first.id, 3)
    assert second.id != first.id
    assert (second.access.dataset, second.access.hours, second.reason) == (DATASET, 3, WHY)
    desk.pass_time(HOUR)
    assert await desk.sees(whole=True)
    again = await desk.grants.renew(SECOND, desk.customer, first.id, None)  # one that has ended, too
    assert again.access == first.access
    for hours in (0, 73):
        with pytest.raises(InvalidInput, match="1 to 72"):
            await desk.grants.renew(SECOND, desk.customer, first.id, hours)


async def test_others_grants_do_not_exist(desk: Desk) -> None:
    other = (await desk.accounts.customers.add(desk.accounts.actor, "Atelier")).id
    grant = await asked(desk)
    messages = set()
    for identity in (grant.id, GrantId("absent")):
        for act in (desk.grants.approve, desk.grants.deny, desk.grants.revoke):
            with pytest.raises(NotFound) as refused:
                await act(ADMIN, other, identity)
            messages.add(str(refused.value))
        with pytest.raises(NotFound) as refused:
            await desk.grants.renew(ADMIN, other, identity, None)
        messages.add(str(refused.value))
    assert messages == {"no such grant"}
    assert await desk.grants.list(other) == []
    assert await desk.grants.reasons(other, {grant.id}) == {}
    with pytest.raises(NotFound):
        await desk.grants.ask(ANNA, CustomerId("00000000-0000-4000-8000-000000000000"), WHOLE, WHY)


@pytest.mark.parametrize(
    ("operator", "hours", "dataset", "images", "why"),
    [
        ("root", 1, DATASET, (), "operator"),
        ("-1", 1, DATASET, (), "operator"),
        ("01", 1, DATASET, (), "operator"),
        ("", 1, DATASET, (), "operator"),
        ("1001", 0, DATASET, (), "hours"),
        ("1001", 73, DATASET, (), "hours"),
        ("1001", 1, None, (), "dataset or images"),
        ("1001", 1, DATASET, (IMAGE,), "dataset or images"),
        ("1001", 1, None, tuple(map(str, range(101))), "at most 100"),
    ],
)
def test_what_is_no_access(
    operator: str, hours: int, dataset: str | None, images: tuple[str, ...], why: str
) -> None:
    with pytest.raises(InvalidInput, match=why):
        Access(operator, hours, dataset, images)


@pytest.mark.parametrize("reason", ["", "  ", "x" * 1001, "two\nlines", "\x1b[2J"])
async def test_what_is_no_reason(desk: Desk, reason: str) -> None:
    with pytest.raises(InvalidInput, match="reason"):
        await desk.grants.ask(ANNA, desk.customer, WHOLE, reason)
    assert await desk.grants.list() == []


async def test_the_reason_is_the_customers_and_sealed(desk: Desk, tmp_path: Path) -> None:
    grant = await opened(desk)
    assert grant.reason == WHY
    assert await desk.grants.reasons(desk.customer, {grant.id, "another"}) == {grant.id: WHY}
    stored = resting(tmp_path)
    assert grant.id.encode() in stored
    assert WHY.encode() not in stored
    assert WHY not in repr(await desk.events())

    (container,) = [container for _, container, _ in desk.keyring.containers()]
    desk.keyring.destroy(container, container)
    assert [one.reason for one in await desk.grants.list()] == [None]
    assert await desk.grants.reasons(desk.customer, {grant.id}) == {}


async def test_every_act_is_recorded_with_ids_alone(desk: Desk) -> None:
    grant = await asked(desk, WHOLE)
    await desk.grants.approve(ADMIN, desk.customer, grant.id)
    await desk.grants.revoke(SECOND, desk.customer, grant.id)
    second = await asked(desk)
    await desk.grants.deny(ADMIN, desk.customer, second.id)
    third = await opened(desk)
    until = 1_800_000_000_000 + 2 * 3_600_000
    one, two = (
        {"operator": "1001", "hours": 2, "dataset": DATASET},
        {"operator": "1001", "hours": 2, "images": list(ONE_IMAGE.images)},
    )
    assert await desk.events() == [
        (Event.GRANT_REQUEST, ANNA, grant.id, one | {"until": None}),
        (Event.GRANT_APPROVE, ADMIN, grant.id, one | {"until": until}),
        (Event.GRANT_REVOKE, SECOND, grant.id, {"operator": "1001"}),
        (Event.GRANT_REQUEST, ANNA, second.id, two | {"until": None}),
        (Event.GRANT_DENY, ADMIN, second.id, {"operator": "1001"}),
        (Event.GRANT_OPEN, ADMIN, third.id, two | {"until": until}),
    ]


WIDENED = (
    f"images = NULL, dataset = '{DATASET}'",
    f"images = json_array('{IMAGE}', 'another image', 'a third one')",
    "images = '[]'",
    "images = 'no list'",
    "operator = '1002'",
    "hours = 72",
    "ends_at = ends_at + 1",
    "asked_by = 'operator'",
    "mac = zeroblob(32)",
    "mac = x''",
)


@pytest.mark.parametrize("change", WIDENED)
async def test_a_row_that_was_changed_is_no_grant(desk: Desk, change: str) -> None:
    grant = await opened(desk)
    await tampered(desk, f"UPDATE grants SET {change}")
    for actor in (ANNA, BERT):
        for image in (IMAGE, "a third one"):
            assert not await desk.sees(actor, image=image)
        assert not await desk.sees(actor, whole=True)
    assert await desk.grants.list(desk.customer) == []
    with pytest.raises(NotFound, match="no such grant"):
        await desk.grants.approve(ADMIN, desk.customer, grant.id)
    another = await opened(desk)
    assert await desk.sees(), "a genuine one beside it counts"
    assert [one.id for one in await desk.grants.list()] == [another.id]


async def tampered(desk: Desk, *statements: str) -> None:
    def act(connection: Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    await desk.accounts.ledger.write(act)


async def test_a_row_brings_no_grant_back_and_makes_none_live(desk: Desk) -> None:
    revoked, denied, pending = await opened(desk), await asked(desk), await asked(desk)
    await desk.grants.revoke(ADMIN, desk.customer, revoked.id)
    await desk.grants.deny(ADMIN, desk.customer, denied.id)
    await tampered(
        desk,
        "UPDATE grants SET closed = NULL, closed_at = NULL",
        f"UPDATE grants SET opened_at = asked_at WHERE id IN ('{denied.id}', '{pending.id}')",
    )
    assert not await desk.sees()
    await tampered(
        desk,
        "INSERT INTO grants SELECT 'made up', customer, operator, dataset, images, hours, reason, asked_by,"
        f" asked_at, opened_at, ends_at, closed, closed_at, mac, seq FROM grants WHERE id = '{revoked.id}'",
    )
    assert not await desk.sees()


async def test_a_row_that_is_put_back_as_it_was_brings_a_revoked_grant_not_back(desk: Desk) -> None:
    grant = await opened(desk)
    await tampered(desk, "CREATE TEMP TABLE kept AS SELECT * FROM grants")
    await desk.grants.revoke(ADMIN, desk.customer, grant.id)
    back = "UPDATE grants SET closed = NULL, closed_at = NULL, mac = (SELECT mac FROM kept)"
    await tampered(desk, back)
    assert not await desk.sees()


@pytest.mark.parametrize("end", ["revoked", "denied"])
async def test_an_ended_grant_is_told_as_ended_and_never_approved_again(desk: Desk, end: str) -> None:
    grant = await asked(desk) if end == "denied" else await opened(desk)
    await tampered(desk, "CREATE TEMP TABLE kept AS SELECT * FROM grants")
    if end == "denied":
        await desk.grants.deny(ADMIN, desk.customer, grant.id)
    else:
        await desk.grants.revoke(ADMIN, desk.customer, grant.id)
    await tampered(desk, "UPDATE grants SET closed = NULL, closed_at = NULL, mac = (SELECT mac FROM kept)")
    assert [one.state for one in await desk.grants.list(desk.customer)] == [end]
    with pytest.raises(Conflict, match=f"the grant is {end}"):
        await desk.grants.approve(ADMIN, desk.customer, grant.id)
    assert not await desk.sees()


async def test_an_approval_that_a_hand_put_in_does_not_count(desk: Desk) -> None:
    one, two = await two_people(desk.accounts.tokens, desk.customer)
    desk.grants = await desk.restarted(four_eyes=True)
    grant = await desk.grants.open(one, desk.customer, ONE_IMAGE, WHY)
    await tampered(desk, f"UPDATE grant_approvals SET token = '{two.id}'")
    with pytest.raises(NotFound):
        await desk.grants.approve(one, desk.customer, grant.id)
    grant = await asked(desk)
    await tampered(desk, f"INSERT INTO grant_approvals VALUES ('{grant.id}', '{two.id}', 1)")
    with pytest.raises(NotFound):
        await desk.grants.approve(one, desk.customer, grant.id)
    assert not await desk.sees()


@pytest.mark.parametrize(
    ("when", "change"),
    [
        ("INSERT ON grants", "UPDATE grants SET operator = '1002' WHERE id = new.id"),
        ("UPDATE OF ends_at ON grants", "UPDATE grants SET hours = 72 WHERE id = new.id"),
        (
            "INSERT ON grants",
            "INSERT INTO grant_approvals (grant_id, token, approved_at) VALUES (new.id, 'made up', 1)",
        ),
        (
            "INSERT ON grant_approvals WHEN new.token <> 'made up'",
            "INSERT INTO grant_approvals (grant_id, token, approved_at) VALUES (new.grant_id, 'made up', 1)",
        ),
    ],
)
async def test_a_trigger_has_no_say_in_what_counts(desk: Desk, when: str, change: str) -> None:
    """It acts with each of the appliance's own writes, and what it makes of a row is no grant."""
    await tampered(desk, f"CREATE TRIGGER widens AFTER {when} BEGIN {change}; END")
    with pytest.raises(NotFound, match="no such grant"):
        await opened(desk)
    for actor in (ANNA, BERT):
        assert not await desk.sees(actor)
    assert await desk.grants.list() == []


async def test_two_approvals_of_one_moment_are_two(desk: Desk) -> None:
    """Whichever of both tokens sorts first."""
    one, two = sorted(await two_people(desk.accounts.tokens, desk.customer), key=lambda actor: actor.id)
    desk.grants = await desk.restarted(four_eyes=True)
    for first, second in ((one, two), (two, one)):
        grant = await asked(desk)
        await desk.grants.approve(first, desk.customer, grant.id)
        live = await desk.grants.approve(second, desk.customer, grant.id)
        assert (live.state, set(live.approvals)) == ("live", {one.id, two.id})


async def test_none_outlives_a_restore(desk: Desk) -> None:
    now = int(desk.accounts.clock.now * 1000)
    pending, live = await asked(desk), await opened(desk, WHOLE)
    await desk.accounts.ledger.write(
        lambda connection: module.close_all(connection, desk.keyring.service, now)
    )
    assert {one.state for one in await desk.grants.list()} == {"revoked"}
    assert not await desk.sees(whole=True)
    for grant in (pending, live):
        with pytest.raises(Conflict):
            await desk.grants.approve(ADMIN, desk.customer, grant.id)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["ask", "open"]), st.integers(1, 4)),
        st.tuples(st.sampled_from(["approve", "second", "deny", "revoke", "renew"]), st.integers(0, 3)),
        st.tuples(st.sampled_from(["pass", "set"]), st.integers(-30, 30)),
    ),
    min_size=4,
    max_size=24,
)


@given(st.booleans(), STEPS)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_an_image_is_seen_while_a_grant_is_live_and_never_else(
    tmp_path_factory: pytest.TempPathFactory, four_eyes: bool, steps: Sequence[tuple[str, int]]
) -> None:
    asyncio.run(played(tmp_path_factory.mktemp("played"), steps, four_eyes=four_eyes))


@dataclass
class Modelled:
    """A grant as the README says that it behaves; time in hours that were counted."""

    hours: int
    asked_at: float
    approvals: set[str] = field(default_factory=set)
    opened_at: float | None = None
    closed: bool = False

    def state(self, now: float) -> str:
        if self.closed:
            return "closed"
        if self.opened_at is None:
            return "pending" if now < self.asked_at + 24 else "expired"
        return "live" if now < self.opened_at + self.hours else "expired"

    def approve(self, token: str, now: float, needed: int) -> None:
        if self.state(now) == "pending":
            self.approvals.add(token)
            if len(self.approvals) == needed:
                self.opened_at = now


async def played(folder: Path, steps: Sequence[tuple[str, int]], *, four_eyes: bool) -> None:
    clock, counter = Clock(), Clock(0.0)
    async with Ledger(folder, Registry()) as ledger, Customers(ledger, clock) as customers:
        keyring = Keyring.create(folder / "keyring", os.urandom(32))
        zoo = (await customers.add(ANNA, "Zoo")).id
        forward = ForwardTime(0.0, clock, counter)
        began = forward.now()
        grants = Grants(ledger, keyring, customers, forward.now, four_eyes=four_eyes)
        people = await two_people(Tokens(ledger, keyring.service, customers, clock), zoo)
        model = Model(2 if four_eyes else 1, people)
        for step, number in steps:
            if step in {"pass", "set"}:
                clock.now += number * HOUR
                counter.now += max(number, 0) * HOUR if step == "pass" else 0
            else:
                await model.act(grants, zoo, step, number)
            model.hours = (forward.now() - began) / HOUR
            live = {identity for identity, one in model.known.items() if one.state(model.hours) == "live"}
            assert {one.id for one in await grants.list(zoo) if one.state == "live"} == live
            try:
                assert await grants.see(ANNA, zoo, DATASET, IMAGE) in live
            except Forbidden:
                assert not live
        keyring.wipe()


async def two_people(tokens: Tokens, customer: CustomerId) -> tuple[Actor, Actor]:
    """Tokens that the customer's first one issues."""
    first = Actor("token", (await tokens.add(ANNA, customer)).id)
    one, two = [(await tokens.add(first, customer, {Scope.ADMIN})).id for _ in range(2)]
    return Actor("token", one), Actor("token", two)


@dataclass
class Model:
    """All grants of a customer, and what the acts do to them."""

    needed: int
    people: tuple[Actor, Actor]
    hours: float = 0.0
    known: dict[GrantId, Modelled] = field(default_factory=dict)

    async def act(self, grants: Grants, customer: CustomerId, step: str, number: int) -> None:
        access = Access("1001", max(number, 1), DATASET)
        if step == "ask":
            made = await grants.ask(ANNA, customer, access, WHY)
            self.known[made.id] = Modelled(access.hours, self.hours)
        elif step == "open":
            self.opened(await grants.open(self.people[0], customer, access, WHY))
        elif self.known:
            chosen = list(self.known)[number % len(self.known)]
            if step == "renew":
                self.opened(await grants.renew(self.people[0], customer, chosen, None))
                return
            with contextlib.suppress(Conflict):
                await decided(grants, customer, step, chosen, self.people)
            self.decide(step, self.known[chosen])

    def opened(self, made: Grant) -> None:
        self.known[made.id] = one = Modelled(made.access.hours, self.hours)
        one.approve(self.people[0].id, self.hours, self.needed)

    def decide(self, step: str, one: Modelled) -> None:
        state = one.state(self.hours)
        if step in {"approve", "second"}:
            one.approve(self.people[step == "second"].id, self.hours, self.needed)
        elif state == "pending" or (step == "revoke" and state == "live"):
            one.closed = True


async def decided(
    grants: Grants, customer: CustomerId, step: str, grant: GrantId, people: tuple[Actor, Actor]
) -> None:
    if step == "revoke":
        await grants.revoke(people[0], customer, grant)
    elif step == "deny":
        await grants.deny(people[0], customer, grant)
    else:
        await grants.approve(people[step == "second"], customer, grant)
