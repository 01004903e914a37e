"""Administrators see images only when asked: every way that they have is tried, then the one that is right.

The operator has the whole operator socket and command line, and whatever token it can have issued. What it
must not get is one stored image, or one approval.
"""

import base64
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.accounts.audit import Event
from appliance.api.payload import Form
from appliance.api.routes import ROUTES
from appliance.api.routing import Route, Surface
from demo.state import DemoState
from tests import images
from tests.datasets import agreed, new_dataset
from tests.running import CopyState, RunningAppliance
from tests.serving import Reply, Served, Tenant

V1 = "/appliance/v1"
TAKES_AWAY = ("/suspend", "/empty", "/root/rotate", "/root/retire")  # and with it what the others are after
ON_THE_SOCKET = [
    route
    for route in ROUTES
    if Surface.SOCKET in route.surfaces and route.method != "DELETE" and not route.path.endswith(TAKES_AWAY)
]


def leaks(photo: bytes, body: bytes) -> bool:
    """Whether any part of the image, as it is or in base64, is in an answer."""
    pieces = [photo[at : at + 48] for at in range(0, len(photo) - 48, 48)]
    forms = [*pieces, *(base64.b64encode(piece) for piece in pieces)]
    return any(form in body for form in forms)


# What a single request can ask: every route of the operator socket, with the ids of what it is after.


@pytest.fixture(scope="module")
def photo() -> bytes:
    return images.jpeg(200, seed=20)


@pytest.fixture(scope="module")
def victim(served: Served) -> Tenant:
    """A customer that uses its tokens."""
    tenant = agreed(served, "a customer that trusts nobody")
    assert served.site.call("GET", f"{V1}/tokens", headers=tenant.headers()).status == 200
    return tenant


@pytest.fixture(scope="module")
def stored(served: Served, victim: Tenant, photo: bytes) -> dict[str, str]:
    """The ids of all that leads to the image."""
    dataset = new_dataset(served, victim, "not for you")
    path = f"/recognition/v2/training-image?workspace={dataset}"
    answer = served.site.call("POST", path, photo, victim.headers(content_type="image/jpeg"))
    assert answer.status == 201, answer.body
    document = {"customer": victim.id, "images": [answer.document["id"]], "reason": "curiosity"}
    pending = served.site.operate("POST", f"{V1}/grants/request", document).document["id"]
    (token,) = served.run(served.parts.tokens.list(victim.id))
    return {
        "customers": victim.id,
        "datasets": dataset,
        "images": answer.document["id"],
        "collections": victim.collection,
        "tokens": token.id,
        "grants": pending,
        "containers": dataset,
        "agreements": served.run(served.parts.agreements.list(victim.id))[0].id,
    }


def asked(served: Served, route: Route, ids: dict[str, str], victim: Tenant) -> Reply:
    """The route with everything that it could be asked about the victim."""
    parts = route.path.split("/")
    nouns = [part for part in parts if part in ids]
    path = route.path.replace("{id}", ids[nouns[-1]] if nouns else "x").replace("{name}", "x")
    path = path.replace("{version}", "1") + f"?customer={victim.id}&format=csv"
    documents: dict[str, dict[str, Any]] = {
        "tokens": {"customer": victim.id, "scopes": ["admin", "datasets:read"], "recovery": True},
        "rotate": {"customer": victim.id} if "containers" in parts else {"overlap_seconds": 0},
        "request": {"customer": victim.id, "images": [ids["images"]], "reason": "again"},
        "agreements": {"customer": victim.id, "kind": "training-data"},
        "collections": {"customer": victim.id, "name": str(uuid.uuid4())},
        "customers": {"name": str(uuid.uuid4())},
    }
    if route.form is Form.FIELDS:
        return served.site.operate(route.method, path, documents.get(parts[-1], {}))
    return served.site.operate(route.method, path)


@pytest.mark.parametrize("route", ON_THE_SOCKET, ids=lambda route: f"{route.method} {route.path}")
def test_no_route_of_the_operator_socket_shows_an_image(
    served: Served, victim: Tenant, stored: dict[str, str], photo: bytes, route: Route
) -> None:
    answer = asked(served, route, stored, victim)
    assert answer.status < 500
    assert not leaks(photo, answer.body)
    entries = served.audited(victim)
    assert [entry for entry in entries if entry.event in {Event.IMAGE_OPEN, Event.GRANT_APPROVE}] == []
    assert [entry for entry in entries if entry.event is Event.DATASET_EXPORT] == []
    (grant,) = [one for one in served.run(served.parts.grants.list(victim.id)) if one.id == stored["grants"]]
    assert grant.state == "pending"


def test_the_customers_decisions_are_not_on_the_socket_and_not_an_operators(
    served: Served, victim: Tenant, stored: dict[str, str]
) -> None:
    for act in ("approve", "deny", "renew"):
        assert served.site.operate("POST", f"{V1}/grants/{stored['grants']}/{act}").status == 404
        assert served.site.call("POST", f"{V1}/grants/{stored['grants']}/{act}").status == 401
    document = {"operator": "0", "images": [stored["images"]], "reason": "mine"}
    assert served.site.operate("POST", f"{V1}/grants", document).status == 405


def test_what_an_operator_may_see_no_longer_it_may_not_see_by_an_older_permit(
    served: Served, victim: Tenant, photo: bytes
) -> None:
    """Of a grant nothing is left: no link, no key, no cookie that goes on."""
    dataset = new_dataset(served, victim, "for an hour")
    path = f"/recognition/v2/training-image?workspace={dataset}"
    answer = served.site.call("POST", path, photo, victim.headers(content_type="image/jpeg"))
    image = answer.document["id"]
    document = json.dumps({"operator": str(os.getuid()), "images": [image], "reason": "once"}).encode()
    grant = served.site.call("POST", f"{V1}/grants", document, victim.headers()).document
    shown = served.site.operate("GET", f"{V1}/images/{image}")
    assert leaks(photo, shown.body), "otherwise nothing here shows anything"
    assert not {"location", "set-cookie", "link"} & set(shown.headers)
    served.site.call("DELETE", f"{V1}/grants/{grant['id']}", headers=victim.headers())
    again = {"if-none-match": shown.headers["etag"], "range": "bytes=0-9"}
    answer = served.site.operate("GET", f"{V1}/images/{image}", headers=again)
    assert answer.status == 403
    assert not leaks(photo, answer.body)


# What a person can do with the command line of a real appliance, over and over.


@pytest.fixture
def appliance(copy_state: CopyState) -> Iterator[RunningAppliance]:
    """A daemon of its own, where two people of the customer's have to approve."""
    state = copy_state()
    with state.config.open("a") as settings:
        settings.write("\n[grants]\nfour_eyes = true\n")
    with RunningAppliance(state, state.port) as running:
        yield running


Try = Callable[..., subprocess.CompletedProcess[bytes]]


def tries(state: DemoState) -> Try:
    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*state.command(*words), "--json"], capture_output=True, check=False, timeout=60
        )

    return run


@pytest.mark.timeout(300)  # it starts the command line some thirty times
def test_the_operators_command_line_gets_no_image_and_no_approval(
    appliance: RunningAppliance, tmp_path: Path
) -> None:
    state, run = appliance.state, tries(appliance.state)
    customer = state.ask("customer", "list")["customers"][0]["id"]
    state.ask("agreement", "sign", customer, "training-data")
    photo = images.jpeg(200, seed=21)
    upload = appliance.call(
        "POST", "/recognition/v2/training-image", photo, headers=appliance.headers(content_type="image/jpeg")
    )
    image, shown = upload.document["id"], {"datasets": customer}
    (mine,) = [one["id"] for one in state.ask("token", "list", customer)["tokens"]]
    people = [appliance.post(f"{V1}/tokens", {"scopes": ["admin"]}).document["token"] for _ in range(2)]
    grant = state.ask("grant", "request", customer, "--image", image, "--reason", "curiosity")["id"]
    over = state.ask("grant", "request", customer, "--dataset", "Default", "--reason", "more of it")["id"]
    recovered = state.ask("token", "add", customer, "--recovery")
    kept = tmp_path / "kept"
    kept.write_text(recovered["token"])

    target = tmp_path / "seen"
    for words in (
        ("token", "add", customer),
        ("token", "add", customer, "--scope", "datasets:read"),
        ("token", "add", customer, "--recovery", "--scope", "admin", "--scope", "datasets:read"),
        ("token", "rotate", mine),
        ("token", "rotate", recovered["id"], "--overlap-seconds", "0"),
        ("image", "read", image, str(target)),
        ("dataset", "export", shown["datasets"], str(target), "--format", "csv"),
        ("dataset", "export", "Default", str(target), "--format", "csv", "--token-file", str(kept)),
    ):
        done = run(*words)
        assert done.returncode == 1, (words, done.stdout)
        assert not leaks(photo, done.stdout + done.stderr)
    for act, token in (("approve", recovered["token"]), ("renew", recovered["token"]), ("approve", "")):
        headers = {"authorization": f"Token {token}", "content-type": "application/json"}
        for one in (grant, over):
            answer = appliance.call("POST", f"{V1}/grants/{one}/{act}", b"{}", headers=headers)
            assert answer.status == 401
    backups = state.ask(
        "backup", "--to", str(folder(tmp_path, "a")), "--keyring-to", str(folder(tmp_path, "b"))
    )
    files = [path for path in Path(backups["backup"]).rglob("*") if path.is_file()]
    assert len(files) > 2
    assert not any(leaks(photo, path.read_bytes()) for path in files)
    assert not target.exists()
    events = [entry["event"] for entry in audit(appliance)]
    assert {"image.open", "grant.approve", "grant.open", "dataset.export"}.isdisjoint(events), "0 and 0"
    assert events.count("grant.request") == 2

    # The customer saw the token of recovery in its log, and cancels it. Two of its people have to approve.
    (told,) = [entry for entry in audit(appliance) if entry["details"].get("recovery")]
    assert told["subject"] == recovered["id"]
    own = appliance.headers()
    assert appliance.call("DELETE", f"{V1}/tokens/{recovered['id']}", headers=own).status == 204
    approve = f"{V1}/grants/{grant}/approve"
    assert appliance.post(approve, {}).status == 403, "the first token is of none of the two"
    for _ in range(2):
        assert appliance.post(approve, {}, authorization=f"Token {people[0]}").document["state"] == "pending"
    (held,) = appliance.post(approve, {}, authorization=f"Token {people[0]}").document["approvals"]
    signed = {"authorization": f"Token {people[0]}"}
    turned = appliance.post(f"{V1}/tokens/{held}/rotate", {}, **signed).document["token"]
    issued = appliance.post(f"{V1}/tokens", {"scopes": ["admin"]}, **signed).document["token"]
    for same in (turned, issued):
        assert appliance.post(approve, {}, authorization=f"Token {same}").status == 403
    assert run("image", "read", image, str(target)).returncode == 1
    assert appliance.post(approve, {}, authorization=f"Token {people[1]}").document["state"] == "live"
    assert state.ask("image", "read", image, str(target))["bytes"] == len(target.read_bytes())
    assert leaks(photo, target.read_bytes())
    assert target.stat().st_mode & 0o777 == 0o600
    (opened,) = [entry for entry in audit(appliance) if entry["event"] == "image.open"]
    assert (opened["actor"], opened["subject"]) == ({"kind": "operator", "id": str(os.getuid())}, image)
    assert opened["reason"] == "curiosity"


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def audit(appliance: RunningAppliance) -> list[dict[str, Any]]:
    """The log as the customer sees it."""
    answer = appliance.call("GET", f"{V1}/audit?limit=1000")
    return list(answer.document["entries"])
