"""States from before results were sealed: the next start seals all in them, and nothing is lost."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from appliance.accounts.customers import CustomerId
from appliance.asynchronous import clear
from appliance.asynchronous.clear import seal_clear_requests
from appliance.asynchronous.requests import LOST, Requests, State, Webhook
from appliance.errors import StorageFailed
from appliance.ledger import Connection, Ledger
from appliance.ledger.database import open_writer
from appliance.ledger.migrations import migrate, shipped
from appliance.metrics import Registry
from appliance.vault import Keyring, open_keyring
from tests.plaintext import Plaintext
from tests.resting import Stopped

ROOT = bytes(range(32))
NOW = 1_800_000_000.0
ALICE = CustomerId("6f5a3b1e-0c0f-4a52-9b0c-3d1d1a6b7c01")
BOB = CustomerId("6f5a3b1e-0c0f-4a52-9b0c-3d1d1a6b7c02")
ERASED = CustomerId("6f5a3b1e-0c0f-4a52-9b0c-3d1d1a6b7c03")
COUNT, DAMAGED = 30, 3
HOOK = Webhook("https://secret-receiver.example/", {"X": "secret header of hers"})


def answer(number: int) -> bytes:
    return b'{"records":[{"_id":"secret patient %09d","diagnosis":"secret illness %09d"}]}' % (number, number)


def old_state(folder: Path) -> Plaintext:
    """A ledger of schema 24 with what requests were answered, in clear; its plaintext."""
    keyring, hook = Keyring.create(folder / "keyring", ROOT), msgspec.json.encode(HOOK)
    connection = open_writer(folder / "ledger.db")
    migrate(connection, shipped()[:24])
    with connection:
        for customer, name, erased in ((ALICE, "a", None), (BOB, "b", None), (ERASED, "c", 1)):
            connection.execute(
                "INSERT INTO customers (id, name, created_at, erased_at) VALUES (?, ?, 1, ?)",
                (customer, name, erased),
            )
            for number in range(COUNT):
                identity = f"{customer}/{number}"
                connection.execute(
                    "INSERT INTO requests (id, customer, type, status, created_at, finished_at, response,"
                    " idempotency_key, digest, webhook, due_at)"
                    " VALUES (?, ?, 'x', 'DONE', 1, ?, ?, ?, ?, ?, ?)",
                    (
                        identity,
                        customer,
                        int(NOW * 1000),
                        b"[" if number == DAMAGED else answer(number),
                        f"secret order {number:09d}",
                        b"a digest of what was sent",
                        keyring.service.seal("webhooks/endpoint", hook, identity.encode())
                        if number < 2
                        else None,
                        1 if number < 2 else None,
                    ),
                )
        connection.execute(
            "INSERT INTO requests (id, customer, type, status, created_at)"
            " VALUES ('open', ?, 'x', 'RETRY', 1)",
            (ALICE,),
        )
    connection.close()
    keyring.wipe()
    plaintext = Plaintext()
    for number in range(COUNT):
        for word in ("secret patient", "secret illness", "secret order"):
            plaintext.add_word(f"{word} {number:09d}")
    return plaintext


def files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Ledger, Keyring]]:
    async with Ledger(folder, Registry()) as ledger:
        keyring = await open_keyring(folder, ledger, bytearray(ROOT))
        try:
            yield ledger, keyring
        finally:
            keyring.wipe()


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[tuple[Requests, Keyring]]:
    async with opened(folder) as (ledger, keyring):
        requests = Requests(ledger, keyring, lambda: NOW, 1000)
        requests.go_by(Stopped(NOW))
        async with requests:
            yield requests, keyring


async def check(folder: Path) -> None:
    async with started(folder) as (requests, keyring):
        for customer in (ALICE, BOB):
            for number in range(COUNT):
                found = await requests.get(customer, f"{customer}/{number}")
                if number == DAMAGED:
                    assert (found.state, b"send it again" in (found.response or b"")) == (State.FAILED, True)
                else:
                    assert (found.state, found.response) == (State.DONE, answer(number))
        lost = await requests.get(ALICE, "open")
        assert (lost.state, LOST.encode() in (lost.response or b"")) == (State.FAILED, True)
        due = await requests.due(9)
        assert {one.request.customer: one.webhook for one in due} == {ALICE: HOOK, BOB: HOOK}
        assert {one.customer for one in keyring.generations()} == {UUID(ALICE), UUID(BOB)}


async def test_all_is_sealed_and_nothing_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    plaintext = old_state(tmp_path)
    assert plaintext.places(files(tmp_path)) != []
    async with started(tmp_path):
        assert plaintext.places(files(tmp_path)) == []  # while it runs, its log included
    assert plaintext.places(files(tmp_path)) == []
    assert f"sealed what {2 * COUNT} asynchronous requests hold" in caplog.text
    await check(tmp_path)


async def test_it_goes_on_after_every_step_that_it_was_stopped_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after one transaction, after two, and so on until it comes to its end."""
    plaintext = old_state(tmp_path)
    monkeypatch.setattr(clear, "_ROWS", 7)
    stops = 0

    async def one_more(ledger: Ledger, keyring: Keyring) -> None:
        written, write = 0, ledger.write

        async def counted(act: Callable[[Connection], object]) -> object:
            nonlocal written
            written += 1
            if written > 1 + stops:
                raise StorageFailed("stopped by the test")
            return await write(act)

        monkeypatch.setattr(ledger, "write", counted)
        await seal_clear_requests(ledger, keyring)

    while True:
        async with opened(tmp_path) as (ledger, keyring):
            try:
                await one_more(ledger, keyring)
                break
            except StorageFailed:
                stops += 1
    assert stops >= 3
    await check(tmp_path)
    assert plaintext.places(files(tmp_path)) == []


async def test_a_new_state_has_nothing_to_seal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with started(tmp_path):
        assert "sealed" not in caplog.text
