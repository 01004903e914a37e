"""The disk fails under the ledger (strace makes the system calls fail): it says so, and keeps its word."""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.ledger import Ledger
from appliance.metrics import Registry
from tests.faults.ledger_writer import insert
from tests.faults.test_ledger_kill import inserted
from tests.ledgers import log_is_empty

NO_MORE = "no further write is accepted until a restart"


@dataclass(frozen=True)
class Outcome:
    """What a writer under faults said, word by word, and whether it met the fault."""

    said: list[list[str]]
    met: bool

    @property
    def words(self) -> list[str]:
        return [line[0] for line in self.said]

    @property
    def acknowledged(self) -> set[str]:
        return {line[1] for line in self.said if line[0] == "acknowledged"}

    @property
    def reasons(self) -> list[str]:
        return [line[-1] for line in self.said if line[0] in {"refused", "failed"}]


@dataclass(frozen=True)
class Fault:
    """The `when`-th system calls `call` on FOLDER/`file`, counted in each thread, fail with `error`."""

    file: str
    call: str
    when: int | str = 1  # or "first..last", or "first+" for all from there on
    error: str = "EIO"


def write_under(fault: Fault, folder: Path, mode: str, count: int) -> Outcome:
    """Run a writer of tests.faults.ledger_writer that meets the fault."""
    trace = folder.with_suffix(".trace")
    command = [
        *("strace", "-f", "-qq", "-y", "-o", str(trace)),
        *("-P", str(folder / fault.file), "-e", f"trace={fault.call}"),
        *("-e", f"inject={fault.call}:error={fault.error}:when={fault.when}"),
        *(sys.executable, "-m", "tests.faults.ledger_writer", str(folder), mode, str(count)),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return Outcome([json.loads(line) for line in ended.stdout.splitlines()], "INJECTED" in trace.read_text())


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def prepared(folder: Path) -> Path:
    """A sound ledger with its schema, so that the next start writes nothing before the first act."""
    new(folder)
    async with Ledger(folder, Registry()) as ledger:
        await insert(ledger, "before")
    return folder


async def survivors(folder: Path) -> set[str]:
    """What a restart on the sound disk finds; it must accept writes again."""
    async with Ledger(folder, Registry()) as ledger:
        found = await ledger.read(inserted)
        await insert(ledger, "after")
        assert await ledger.read(inserted) == found | {"after"}
    return found


def kept_its_word(outcome: Outcome, found: set[str]) -> None:
    """Once refused, refused for good and with the reason; nothing acknowledged is lost."""
    assert outcome.met
    words = [word for word in outcome.words if word in {"acknowledged", "refused"}]
    assert words == sorted(words)
    assert all(NO_MORE in reason for reason in outcome.reasons[1:])
    assert outcome.acknowledged | {"before"} <= found


@pytest.mark.parametrize(
    ("call", "when", "acknowledged", "error"),
    [
        ("fdatasync", 1, 0, "EIO"),  # of the log's header
        ("fdatasync", 2, 0, "EIO"),
        ("fdatasync", 3, 1, "EIO"),
        ("fdatasync", 2, 0, "ENOSPC"),  # the kernel has dropped what it had taken: not merely full
        ("pwrite64", 1, 0, "EIO"),
        ("pwrite64", 2, 0, "EIO"),
    ],
)
async def test_a_failed_write_refuses_every_further_one(
    tmp_path: Path, call: str, when: int, acknowledged: int, error: str
) -> None:
    folder = await prepared(tmp_path / "state")
    outcome = write_under(Fault("ledger.db-wal", call, when, error), folder, "sequential", 6)
    refused = 6 - acknowledged
    assert outcome.words == ["opened", *["acknowledged"] * acknowledged, *["refused"] * refused, "closed"]
    assert "disk I/O error" in outcome.reasons[0]
    kept_its_word(outcome, await survivors(folder))


@pytest.mark.parametrize(
    ("when", "refused"),
    [("1", 1), ("2", 1), ("3..7", None), ("10..12", None), ("4+", None)],
)
async def test_a_full_volume_refuses_what_finds_no_room_and_nothing_else(
    tmp_path: Path, when: str, refused: int | None
) -> None:
    """As soon as there is room writes go on; what was refused is not there, also not in a log read later."""
    folder = await prepared(tmp_path / "state")
    outcome = write_under(Fault("ledger.db-wal", "pwrite64", when, "ENOSPC"), folder, "sequential", 6)
    assert outcome.met
    assert (outcome.words[0], outcome.words[-1]) == ("opened", "closed")
    assert all("its volume is full" in reason for reason in outcome.reasons)
    assert outcome.words.count("refused") == refused or refused is None
    assert (outcome.words[-2] == "acknowledged") == (when != "4+")
    assert await survivors(folder) == outcome.acknowledged | {"before"}


@pytest.mark.parametrize(("call", "when"), [("fdatasync", 1), ("pwrite64", "1+")])
async def test_a_failed_checkpoint_refuses_writes_and_keeps_the_log(
    tmp_path: Path, call: str, when: int | str
) -> None:
    folder = await prepared(tmp_path / "state")
    # 30 acts of about 50 pages: the log is checkpointed on the way. The first writes only make room ahead.
    outcome = write_under(Fault("ledger.db", call, when), folder, "heavy", 30)
    assert 0 < len(outcome.acknowledged) < 30
    assert all(NO_MORE in reason for reason in outcome.reasons)
    assert not log_is_empty(folder)
    kept_its_word(outcome, await survivors(folder))


@pytest.mark.parametrize("when", ["1", "2..5", "1+"])
async def test_a_checkpoint_that_finds_no_room_keeps_the_log_and_is_tried_again(
    tmp_path: Path, when: str
) -> None:
    folder = await prepared(tmp_path / "state")
    outcome = write_under(Fault("ledger.db", "pwrite64", when, "ENOSPC"), folder, "heavy", 30)
    assert outcome.met
    assert len(outcome.acknowledged) == 30
    if when == "1+":
        assert "the last checkpoint failed" in outcome.reasons[0]
        assert not log_is_empty(folder)
    else:
        assert outcome.words[-1] == "closed"
    assert outcome.acknowledged | {"before"} == await survivors(folder)


@pytest.mark.parametrize(
    ("file", "call"), [("ledger.db", "fdatasync"), ("ledger.db", "pwrite64"), ("ledger.db-wal", "ftruncate")]
)
async def test_a_failed_last_checkpoint_fails_the_close_and_keeps_the_log(
    tmp_path: Path, file: str, call: str
) -> None:
    folder = await prepared(tmp_path / "state")
    outcome = write_under(Fault(file, call), folder, "sequential", 6)
    assert outcome.words == ["opened", *["acknowledged"] * 6, "failed"]
    assert "the last checkpoint failed" in outcome.reasons[0]
    assert not log_is_empty(folder)
    kept_its_word(outcome, await survivors(folder))


@pytest.mark.parametrize(
    ("file", "call", "when"),
    [("", "fsync", 1), ("ledger.db-wal", "pwrite64", 7), ("ledger.db-wal", "fdatasync", 1)],
)
async def test_a_first_start_that_cannot_be_durable_is_none(
    tmp_path: Path, file: str, call: str, when: int
) -> None:
    folder = new(tmp_path / "state")
    outcome = write_under(Fault(file, call, when), folder, "sequential", 1)
    assert outcome.words == ["failed"]
    assert await survivors(folder) == set()


def test_the_check_finds_a_ledger_that_breaks_its_word() -> None:
    """The control: one that loses what it acknowledged, goes on after a failure, or gives no reason."""
    lines = [["acknowledged", "a"], ["refused", "b", "disk I/O error"], ["refused", "c", NO_MORE]]
    kept_its_word(Outcome(lines, met=True), {"before", "a"})
    for said, met, found in (
        (lines, True, {"before"}),
        (lines, True, {"a"}),
        (lines, False, {"before", "a"}),
        ([*lines, ["acknowledged", "d"]], True, {"before", "a", "d"}),
        ([*lines, ["refused", "d", "disk I/O error"]], True, {"before", "a"}),
    ):
        with pytest.raises(AssertionError):
            kept_its_word(Outcome(said, met), found)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize(
    ("file", "call", "at_least"),
    [
        ("ledger.db-wal", "fdatasync", 7),
        ("ledger.db-wal", "pwrite64", 50),
        ("ledger.db", "pwrite64", 5),
        ("ledger.db-shm", "pwrite64", 8),
    ],
)
async def test_every_call_may_fail(tmp_path: Path, file: str, call: str, at_least: int, error: str) -> None:
    for when in itertools.count(1):
        folder = await prepared(tmp_path / f"state-{when}")
        outcome = write_under(Fault(file, call, when, error), folder, "sequential", 6)
        if not outcome.met:
            assert when > at_least
            break
        if error == "ENOSPC" and call == "pwrite64" and file != "ledger.db-shm":
            # Merely full: one act is refused, or a checkpoint is put off.
            assert outcome.acknowledged | {"before"} == await survivors(folder)
            assert len(outcome.acknowledged) >= 5
        else:
            assert outcome.reasons
            kept_its_word(outcome, await survivors(folder))
