"""What is acknowledged would survive a power cut: every byte and name was synced before, in order."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.order_of_syncs import CALLS, Call, Model, calls
from tests.faults.store_harness import ROOT_FOLDER

ACKNOWLEDGED = 19  # seven images that are put first, then twelve acts; those at the same time are not counted


@dataclass(frozen=True)
class Traced:
    """The calls of a store that began with an empty folder."""

    state: str
    calls: list[Call]

    def broken(self, without: Callable[[Call], bool] = lambda call: False) -> list[str]:
        """What a power cut could have broken, had the syncs that match `without` never been made."""
        model = Model(self.state)
        found = model.read([call for call in self.calls if not (call.syncs and without(call))])
        assert model.acknowledged == ACKNOWLEDGED
        return found

    def syncs(self, of: str) -> Callable[[Call], bool]:
        """Those of what `of` names: a part of the path, after the state folder."""
        return lambda call: f"{self.state}{of}" in call.arguments


def trace(state: Path, *options: str) -> Traced:
    state.mkdir()
    log = state.with_suffix(".trace")
    command = ["strace", "-f", "-y", "--seccomp-bpf", "-s", "300", "-o", str(log), "-e", f"trace={CALLS}"]
    ended = subprocess.run(
        [*command, *options, sys.executable, "-m", "tests.faults.store_writer"],
        cwd=ROOT_FOLDER,
        input=json.dumps([str(state), "new"]) + "\n\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '["closed"]' in ended.stdout
    made = calls(log.read_text(errors="replace").splitlines())
    return Traced(
        str(state), [call for call in made if str(state) in call.arguments or call.arguments.startswith("1<")]
    )


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return trace(tmp_path_factory.mktemp("traced") / "state")


def test_everything_is_synced_before_it_is_acknowledged(traced: Traced) -> None:
    assert traced.broken() == []


@pytest.mark.parametrize(
    ("of", "what"),
    [
        ("/ledger.db-wal>", "ledger.db-wal is not on the disk when put old-0 is acknowledged"),
        ("/ledger.db>", "ledger.db is all that there is without the log"),
        ("/images>", "the folder {state}/images is not on the disk when put old-0 is acknowledged"),
        ("/images/", "is given a name"),
        ("/images/.volume.draft>", "/images/.volume.draft is given a name"),
        ("/.keyring.", ".draft is given a name"),
        (">", "the folder {state} is not on the disk when add fresh is acknowledged"),
        ("/images/witness>", "/images/witness is not on the disk when put old-1 is acknowledged"),
    ],
)
def test_the_check_misses_each_kind_of_sync(traced: Traced, of: str, what: str) -> None:
    """The control: a store that leaves them out is found out."""
    broken = traced.broken(traced.syncs(of))
    assert [one for one in broken if what.format(state=traced.state) in one], broken[:10]


def test_the_check_misses_single_syncs(traced: Traced) -> None:
    """Each one of those of a file before it has a name, and most of the others."""
    # A file without a name is called by the number of its inode.
    singly = [call for call in traced.calls if call.name == "fsync" and "/#" in call.arguments]
    keyring = [call for call in traced.calls if call.name == "fsync" and "/.keyring." in call.arguments]
    together = [call for call in traced.calls if call.name == "syncfs"]
    assert all(traced.syncs("/images/")(call) for call in singly)
    assert len(singly) >= 12
    assert len(keyring) >= 8
    assert len(together) == 1
    for dropped in (*singly, *keyring, *together):
        assert traced.broken(dropped.__eq__), dropped
    every = [call for call in traced.calls if call.syncs and traced.state in call.arguments]
    needed = sum(bool(traced.broken(dropped.__eq__)) for dropped in every)
    print(f"{len(every)} syncs, {needed} of which are missed singly")
    assert needed > len(every) / 2


@pytest.mark.parametrize("call", ["fsync", "fdatasync", "syncfs"])
def test_a_store_without_syncs_is_found_out(tmp_path: Path, call: str) -> None:
    """The control of the trace: the calls are answered as done, and are not done."""
    assert trace(tmp_path / "state", "-e", f"inject={call}:retval=0").broken()
