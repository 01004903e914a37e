"""Backups over the operator socket: for operators alone, one at a time, of all that customers wrote."""

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.accounts.agreements import Kind as Agreed
from appliance.accounts.audit import Event, entries
from appliance.backup.receiving import Received, receive
from appliance.backup.wire import Kind, frames
from tests import images
from tests.api.test_tasks_and_objects import BOX_LABELS, BOX_TASKS, OBJECTS, made
from tests.api.test_training_images import ask, label, upload
from tests.backing import Shelf, proven, silent
from tests.serving import ACTOR, Reply, Served, Tenant
from tests.waiting import eventually

PATH = "/appliance/v1/backup"
SECRETS = (b"Sorrento", b"Amalfi", b"Positano", b"Ravello", b"Maiori", b"Minori")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the module's own: others leave damaged images in theirs."""
    with Served(tmp_path_factory.mktemp("backed-up")) as served:
        yield served


@pytest.fixture(scope="module")
def owner(served: Served) -> Tenant:
    """A customer that has images, labels, boxes and records with words of its own."""
    tenant = served.tenant("the customer Sorrento")
    served.run(served.parts.agreements.sign(ACTOR, tenant.id, Agreed.TRAINING_DATA))
    image = upload(served, tenant, images.plain("a picture"), meta_data={"place": "Amalfi"})
    label(served, tenant, "label Positano", description="Ravello")
    task = made(served, tenant, BOX_TASKS, {"name": "task Maiori"})
    box = made(served, tenant, BOX_LABELS, {"name": "box Maiori"})
    joined = {"label_id": box["id"]}
    assert ask(served, tenant, "POST", f"{BOX_TASKS}/{task['id']}/add-label", joined).status < 300
    thing = {"image": image["id"], "detection_label": box["id"], "data": [1, 1, 9, 9]}
    made(served, tenant, OBJECTS, thing | {"meta_data": {"place": "Minori"}})
    return tenant


def take(served: Served, shelf: Shelf) -> tuple[Received, Reply]:
    """A backup, as it is received; and the answer."""
    answer = served.site.operate("POST", PATH)
    assert answer.status == 200, answer.body

    async def arriving() -> AsyncIterator[bytes]:
        yield answer.body

    received = asyncio.run(receive(arriving(), shelf.backups, shelf.keyrings, keep_days=30, progress=silent))
    return received, answer


def made_so_far(served: Served) -> int:
    found = served.run(served.ledger.read(lambda connection: entries(connection, limit=10_000)))
    return sum(entry.event == Event.BACKUP_MAKE for entry in found)


def test_a_backup_is_streamed_audited_and_whole(served: Served, owner: Tenant, tmp_path: Path) -> None:
    before = made_so_far(served)
    received, answer = take(served, Shelf.under(tmp_path))
    assert answer.headers["content-type"] == "application/vnd.appliance.backup"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert received.absent == []
    assert made_so_far(served) == before + 1
    copy = tmp_path / "keyring"
    copy.write_bytes(received.keyring.read_bytes())
    assert proven(received.folder, copy).images == received.header.images >= 1


def test_no_word_of_a_customer_is_in_it(served: Served, owner: Tenant, tmp_path: Path) -> None:
    received, answer = take(served, Shelf.under(tmp_path))
    stored = images.plain("a picture")
    for secret in (*SECRETS, stored[:64], stored[-64:], owner.token.encode()[15:40], b"colours"):
        assert secret not in answer.body
    for path in (received.folder, received.keyring.parent):
        for file in path.rglob("*"):
            assert not file.is_file() or not any(secret in file.read_bytes() for secret in SECRETS), file


def test_nobody_but_operators_gets_one(served: Served, owner: Tenant) -> None:
    before = made_so_far(served)
    for headers in ({}, owner.headers()):
        answer = served.site.call("POST", PATH, headers=headers)
        assert answer.status == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert served.site.call("POST", PATH, headers=headers, operator=True).status == 404
    assert served.site.operate("GET", PATH).status == 405
    assert made_so_far(served) == before


def test_one_at_a_time_and_none_for_ever(served: Served, owner: Tenant) -> None:
    """Who takes nothing keeps others waiting until he goes, and nobody else."""
    for number in range(20):
        upload(served, owner, images.encoded(images.noise(400, number), "PNG"))
    with socket.socket(socket.AF_UNIX) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(str(served.site.socket))
        slow.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert slow.recv(12) == b"HTTP/1.1 200"
        refused = served.site.operate("POST", PATH)
        assert (refused.status, refused.document["detail"]) == (
            409,
            "a backup is being made already: wait for its end",
        )
        asked = {"name": f"meanwhile {uuid.uuid4()}"}
        assert ask(served, owner, "POST", "/appliance/v1/collections", asked).status == 201
        assert served.run(served.ledger.empty_log())  # the ledger is copied: nothing looks at its log
    eventually(lambda: served.site.operate("POST", PATH).status == 200, "the next backup")


def test_a_backup_that_breaks_off_says_why(
    served: Served, owner: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.parts.backups is not None
    monkeypatch.setattr(served.parts.backups, "_reserve", 1 << 60)
    answer = served.site.operate("POST", PATH)
    assert answer.status == 200

    async def last() -> tuple[Kind, bytes]:
        async def arriving() -> AsyncIterator[bytes]:
            yield answer.body

        return [found async for found in frames(arriving())][-1]

    kind, why = asyncio.run(last())
    assert kind is Kind.FAILED
    assert b"have to stay free" in why
    assert json.loads(served.site.operate("GET", "/appliance/v1/status").body)["state"] == "ready"
