"""Verifying tokens: CPU of one among ten thousand and among a million, and what each takes in memory.

A process of its own loads them from a ledger, as a start does.
"""

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile  # noqa: TID251 - for a ledger; no image is near
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.accounts import token_rows
from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.rights import Scope
from appliance.accounts.times import Times
from appliance.accounts.tokens import Tokens
from appliance.errors import Unauthenticated
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from appliance.vault import Keys
from tests.bench.report import Report
from tests.bench.spent import give_back, resident_mib

FEW, MANY = 10_000, 1_000_000
ISSUED, REVOKED = 200_000, 20_000
"""Of an appliance that has been there for long; the audit log tells of each that was revoked."""
CUSTOMERS, GENUINE, ROUNDS = 100, 1000, 11
ROOT, ACTOR = bytes(range(32)), Actor("system", "bench")


@dataclass(frozen=True)
class Seen:
    """What a process took; CPU times are the best of some rounds."""

    bytes_each: float
    load_seconds: float
    genuine_microseconds: float
    refused_microseconds: float


def run(report: Report) -> None:
    seen = {count: measured(count) for count in (FEW, MANY)}
    for count, one in seen.items():
        name = f"{count:,} issued: verify one"
        report.figure(name, one.genuine_microseconds, "CPU us", at_most=50)
        report.figure("  refuse one", one.refused_microseconds, "CPU us", at_most=50)
    slower = seen[MANY].genuine_microseconds / seen[FEW].genuine_microseconds
    report.figure(
        "a million / ten thousand", slower, "", at_most=2, note="what a larger table costs the caches"
    )
    report.figure("memory of one of a million", seen[MANY].bytes_each, "bytes", at_most=256)
    report.figure("load a million", seen[MANY].load_seconds, "CPU s")
    report.figure(f"load {ISSUED:,}, {REVOKED:,} revoked", measured(ISSUED, REVOKED).load_seconds, "CPU s")


def measured(count: int, revoked: int = 0) -> Seen:
    with tempfile.TemporaryDirectory() as folder:
        genuine = asyncio.run(issue(Path(folder), count, revoked))
        asked = [sys.executable, "-m", "tests.bench.tokens", folder]
        root, sent = Path(__file__).parents[2], "\n".join(genuine)
        told = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=root, input=sent)
        return Seen(**json.loads(told.stdout))


async def issue(folder: Path, count: int, revoked: int) -> list[str]:
    """`count` tokens in a ledger; the texts of GENUINE of them, the others are nobody's."""
    keys = Keys(ROOT)
    async with (
        Ledger(folder, Registry()) as ledger,
        Customers(ledger, time.monotonic) as customers,
        Tokens(ledger, keys, customers, time.monotonic) as tokens,
    ):
        owners = [(await customers.add(ACTOR, f"{number}")).id for number in range(CUSTOMERS)]
        scopes = [{Scope.INFER}, {Scope.INFER, Scope.SEARCH_READ}, set(Scope)]
        issuing = (
            tokens.add(ACTOR, owners[number % CUSTOMERS], scopes[number % 3]) for number in range(GENUINE)
        )
        genuine = [issued.token for issued in await asyncio.gather(*issuing)]
        await ledger.write(lambda connection: _fill(connection, owners, count - GENUINE))
        await ledger.write(lambda connection: _revoke(connection, revoked))
        await ledger.write(lambda connection: token_rows.adopt(connection, keys))
        return genuine


def _fill(connection: Connection, owners: list[CustomerId], count: int) -> None:
    connection.executemany(
        "INSERT INTO tokens (id, customer, mac, scopes, created_at) VALUES (?, ?, ?, 'infer search:read', 0)",
        (
            (secrets.token_urlsafe(8)[:10], owners[number % CUSTOMERS], secrets.token_bytes(32))
            for number in range(count)
        ),
    )


def _revoke(connection: Connection, count: int) -> None:
    """So many of those that are nobody's."""
    ids = connection.execute("SELECT id FROM tokens WHERE created_at = 0 LIMIT ?", (count,)).fetchall()
    for (token,) in ids:
        connection.execute("UPDATE tokens SET revoked_at = 1 WHERE id = ?", (token,))
        record(connection, 1, ACTOR, Event.TOKEN_REVOKE, None, str(token))


async def _measure(folder: Path, genuine: list[str]) -> Seen:
    wrong = [text[:-1] + ("A" if text[-1] != "A" else "B") for text in genuine]
    async with Ledger(folder, Registry()) as ledger, Customers(ledger, time.monotonic) as customers:
        give_back()
        before, began = resident_mib([os.getpid()]), time.process_time()
        times = Times(0.0, time.monotonic, time.monotonic)
        times.go_by(time.monotonic())  # as the daemon does
        async with Tokens(ledger, Keys(ROOT), customers, times.ended, times.proven) as tokens:
            spent = time.process_time() - began
            give_back()
            taken = (resident_mib([os.getpid()]) - before) * (1 << 20)
            verified = min(_microseconds(tokens, genuine, genuine=True) for _ in range(ROUNDS))
            refused = min(_microseconds(tokens, wrong, genuine=False) for _ in range(ROUNDS))
            count = await ledger.read(
                lambda connection: connection.execute("SELECT count(*) FROM tokens").get
            )
            return Seen(taken / count, spent, verified, refused)


def _microseconds(tokens: Tokens, texts: list[str], *, genuine: bool) -> float:
    passed, began = 0, time.process_time()
    for text in texts:
        try:
            tokens.verify(text)
            passed += 1
        except Unauthenticated:
            pass
    spent = time.process_time() - began
    assert passed == (len(texts) if genuine else 0)
    return spent * 1e6 / len(texts)


if __name__ == "__main__":
    print(json.dumps(vars(asyncio.run(_measure(Path(sys.argv[1]), sys.stdin.read().split())))))
