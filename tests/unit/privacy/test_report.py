"""The report: what it says is so, what it names exists, and it prints without anything from elsewhere."""

import ast
import asyncio
import re
import uuid
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from appliance.accounts.agreements import Kind
from appliance.accounts.audit import Actor, Event
from appliance.accounts.contracts import Contract
from appliance.accounts.grants import Access, Grants
from appliance.accounts.rights import Scope
from appliance.config import Config
from appliance.privacy.controls import CONTROLS, Control
from appliance.privacy.records import Facts, Records
from appliance.privacy.report import html
from appliance.residency import BackupTarget, Destination, Residency, Volume
from tests.serving import ACTOR, Served

PROJECT = Path(__file__).parents[3]
SHOP = Destination.model_validate(
    {
        "name": "shop <b>",
        "host": "shop.example",
        "cidrs": ["192.0.2.0/24"],
        "port": 443,
        "country": "CZ",
        "purpose": "feeds & images",
        "uses": ["feeds"],
    }
)


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.said)


@pytest.fixture(scope="module")
def facts(served: Served) -> Facts:
    served.tenant(f"report {uuid.uuid4()}")
    return served.run(served.parts.records.facts())


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.control)
def test_the_tests_that_a_control_names_exist(control: Control) -> None:
    assert control.tests
    for named in control.tests:
        file, _, name = named.partition("::")
        tree = ast.parse((PROJECT / file).read_text("utf-8"))
        functions = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert name in functions, named


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.control)
def test_every_control_has_evidence_and_a_reference(control: Control, facts: Facts) -> None:
    assert control.evidence(facts)
    assert control.references
    for reference in control.references:
        assert re.fullmatch(r"GDPR \d+(\(\d\))?(\([a-h]\))?|A\.[5-8]\.\d{1,2}", reference), reference


def test_no_control_is_told_twice() -> None:
    assert len({control.control for control in CONTROLS}) == len(CONTROLS)


def test_every_number_is_that_of_the_running_system(served: Served) -> None:
    name = f"report {uuid.uuid4()}"
    before = served.run(served.parts.records.facts())
    tenant = served.tenant(name)
    signed = served.run(served.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))
    after = served.run(served.parts.records.facts())
    (own,) = [one for one in after.customers if one.id == tenant.id]
    assert (own.name, own.collections, own.agreements) == (name, 1, (("training-data", "active"),))
    assert after.issued.tokens == before.issued.tokens + 1
    assert after.audit[0] == before.audit[0] + 5  # customer, its claim, token, collection, agreement
    assert after.keys[2] == before.keys[2] + 1
    page = served.site.operate("GET", "/appliance/v1/report")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert f"{name} {tenant.id}" in Page(page.body.decode()).text
    served.run(served.parts.agreements.revoke(ACTOR, None, signed.id))
    assert served.parts.erasure is not None
    served.run(served.parts.erasure.erase(ACTOR, tenant.id, name))
    erased = served.run(served.parts.records.facts())
    assert tenant.id not in {one.id for one in erased.customers}
    assert erased.erasures["customer"] == before.erasures.get("customer", 0) + 1
    assert erased.latest[Event.CUSTOMER_ERASE] == int(served.clock * 1000)


def test_a_grant_that_waits_for_a_second_approval_is_not_told_as_given(served: Served) -> None:
    tenant = served.tenant(f"report {uuid.uuid4()}")
    people = Grants(
        served.ledger, served.keyring, served.parts.customers, lambda: served.clock + 9, four_eyes=True
    )
    tokens = served.parts.tokens
    (first,) = served.run(tokens.list(tenant.id))
    one, two = [served.run(tokens.add(Actor("token", first.id), tenant.id, {Scope.ADMIN})) for _ in range(2)]
    before = served.run(served.parts.records.facts()).latest
    opening = people.open(Actor("token", one.id), tenant.id, Access("1001", 2, dataset="a dataset"), "why")
    grant = served.run(opening)
    waits = served.run(served.parts.records.facts()).latest
    assert waits[Event.GRANT_OPEN] == before[Event.GRANT_OPEN]
    served.run(people.approve(Actor("token", two.id), tenant.id, grant.id))
    live = served.run(served.parts.records.facts()).latest
    assert live[Event.GRANT_APPROVE] == int((served.clock + 9) * 1000)


def test_an_agreement_that_has_ended_is_not_told_as_active(served: Served) -> None:
    tenant, ends = served.tenant(f"report {uuid.uuid4()}"), int((served.clock + 60) * 1000)
    contract = Contract(valid_until=ends)
    served.run(served.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA, contract))

    def told(seconds: float) -> tuple[tuple[str, str], ...]:
        parts = served.parts
        records = Records(
            served.ledger,
            served.keyring,
            parts.config,
            None,
            parts.status,
            parts.registry,
            lambda: served.clock + seconds,
        )
        (own,) = [one for one in served.run(records.facts()).customers if one.id == tenant.id]
        return own.agreements

    assert told(59) == (("training-data", "active"),)
    assert told(60) == (("training-data", "expired"),)


def evidence(control: str, facts: Facts) -> str:
    (one,) = [one for one in CONTROLS if control in one.control]
    return one.evidence(facts)


def test_images_that_are_to_be_stored_are_not_told_as_ones_that_never_are(facts: Facts) -> None:
    counters = {**facts.counters, "appliance_store_images_stored_total": 69.0}
    told = evidence("are never stored", replace(facts, counters=counters))
    assert told == "all that was stored since the start: 69 training images, which were sent to be stored"


@pytest.mark.parametrize("key", ["audit.log", "ledger.altered"])
def test_a_record_that_was_changed_is_told_before_it_is_counted(facts: Facts, key: str) -> None:
    whole = evidence("the record does not change", replace(facts, status={}, audit=(7, None)))
    assert whole.startswith("7 entries, ")
    assert "proven" not in whole, "that nobody has done"
    assert "`appliance audit verify` tells" in whole
    status = {"findings": [{"severity": "failed", "key": key, "message": "it was changed"}]}
    told = evidence("the record does not change", replace(facts, status=status, audit=(7, None)))
    assert told == f"it was changed; {whole}"


def test_who_and_where_are_told_as_they_are_declared(facts: Facts) -> None:
    declared = Residency(
        "Prague",
        "CZ",
        False,
        (),
        (),
        controller="Shop a.s.",
        processor="Hosting s.r.o.",
        volumes=(Volume(name="data", luks=str(uuid.uuid4()), country="CZ"),),
        backups=(BackupTarget(name="tapes", path="/mnt", country="SK"),),
    )
    text = Page(html(replace(facts, residency=declared))).text
    for said in ("Shop a.s.", "Hosting s.r.o.", "Prague, CZ", "data (CZ)", "tapes (SK)"):
        assert said in text, said
    assert "not declared" in text  # who keeps the logs
    assert "Hosting" not in Page(html(replace(facts, residency=None))).text


def test_links_without_an_end_are_told(facts: Facts) -> None:
    for public, expected in ((0, False), (3, True)):
        customers = tuple(
            replace(one, public=public if one is facts.customers[0] else 0) for one in facts.customers
        )
        text = Page(html(replace(facts, customers=customers))).text
        assert ("not those of 3 datasets" in text, "made public" in text) == (expected, expected)


def test_customers_may_not_read_it(served: Served) -> None:
    tenant = served.tenant(f"report {uuid.uuid4()}")
    assert served.site.call("GET", "/appliance/v1/report", headers=tenant.headers()).status == 403


def test_it_is_one_file_without_scripts(facts: Facts) -> None:
    page = Page(html(facts))
    assert page.open == []
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "dl", "dt", "dd"),
        *("table", "thead", "tbody", "tr", "th", "td", "br", "code"),
    }
    assert {name for _, attributes in page.tags for name in attributes} <= {"lang", "charset"}
    assert "url(" not in html(facts)
    assert "@import" not in html(facts)


def test_no_word_is_wider_than_the_paper(facts: Facts) -> None:
    """A table that is wider loses its last columns when it is printed."""
    style = html(facts).partition("<style>")[2].partition("</style>")[0]
    assert "td { overflow-wrap: anywhere }" in style
    assert "thead { display: table-header-group }" in style
    assert "tr { break-inside: avoid }" in style


def test_words_of_others_are_escaped(facts: Facts) -> None:
    hostile = '<script>alert(1)</script> & "quotes"'
    (one, *rest) = facts.customers
    residency = Residency(hostile, "CZ", False, (SHOP,), ())
    changed = replace(
        facts,
        customers=(replace(one, name=hostile), *rest),
        residency=residency,
        exchanges={("shop <b>", "done"): 7},
        status={**facts.status, "findings": [{"severity": "notice", "key": "k", "message": hostile}]},
    )
    page = Page(html(changed))
    assert page.text.count("<script>alert(1)</script>") >= 4
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert "feeds & images" in page.text
    assert "done: 7" in page.text


def test_an_appliance_that_has_nothing_says_so(facts: Facts) -> None:
    empty = replace(
        facts, customers=(), residency=None, erasures={}, exchanges={}, config=Config(profile="demo")
    )
    text = Page(html(replace(empty, status={"state": "ready"}))).text
    assert "an undeclared site" in text
    assert "This is a demonstration" in text
    assert text.count("None.") >= 3


def test_gathering_leaves_the_loop_free(served: Served) -> None:
    """It reads from the ledger on a thread: calls go on meanwhile."""

    async def both() -> int:
        gathering = asyncio.ensure_future(served.parts.records.facts())
        turns = 0
        while not gathering.done():
            await asyncio.sleep(0)
            turns += 1
        await gathering
        return turns

    assert served.run(both()) > 1
