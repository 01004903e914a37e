"""`appliance collection import` and `export`: arrays, JSON lines and zips, through a running daemon."""

import json
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from appliance.recognition.hashing import BITS, PIN
from demo.state import DemoState
from tests.running import RunningAppliance
from tests.searching import unit

VECTORS = unit(np.random.default_rng(2), 9000, BITS)


@pytest.fixture(scope="module")
def state(appliance: RunningAppliance) -> DemoState:
    return appliance.state


@pytest.fixture
def customer(state: DemoState, request: pytest.FixtureRequest) -> str:
    return str(state.ask("customer", "add", request.node.name[:100])["id"])


@pytest.fixture
def token(state: DemoState, customer: str, tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(state.ask("token", "add", customer)["token"] + "\n")
    return file


def collection(state: DemoState, customer: str, name: str) -> str:
    return str(state.ask("collection", "add", customer, name, "--backbone", "phash")["id"])


def refused(state: DemoState, *words: str) -> str:
    done = state.run("collection", *words)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("ending", ["zip", "jsonl"])
def test_in_and_out_and_in_again(
    state: DemoState, customer: str, token: Path, tmp_path: Path, ending: str
) -> None:
    array, records = tmp_path / "vectors.npy", tmp_path / "records.jsonl"
    np.save(array, VECTORS)
    records.write_text("".join(json.dumps({"_id": f"r{n}", "n": n}) + "\n" for n in range(len(VECTORS))))
    first, second = (collection(state, customer, name) for name in ("first", "second"))
    words = (str(array), "--backbone", PIN, "--records", str(records))
    report = state.ask("collection", "import", first, *words)
    assert (report["inserted"], report["refused"]) == (9000, 0)
    assert state.ask("collection", "import", first, *words)["kept"] == 9000
    target = tmp_path / f"target.{ending}"
    export = ("export", first, str(target), "--token-file", str(token))
    done = state.ask("collection", *export)
    assert done["bytes"] == target.stat().st_size
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    if ending == "zip":
        with zipfile.ZipFile(target) as archive, archive.open("vectors-00001.npy") as given:
            assert len(np.load(given)) == 9000
    report = state.ask("collection", "import", second, str(target), "--backbone", PIN)
    assert (report["inserted"], report["refused"]) == (9000, 0)
    again = tmp_path / f"again.{ending}"
    state.ask("collection", "export", second, str(again), "--token-file", str(token))
    assert again.read_bytes() == target.read_bytes()
    assert "exists already" in refused(state, *export)


def test_what_is_refused_is_named(state: DemoState, customer: str, tmp_path: Path) -> None:
    made, array = collection(state, customer, "bad"), tmp_path / "vectors.npy"
    np.save(array, np.concatenate([VECTORS[:1], np.zeros((1, BITS), np.float32)]))
    command = state.command("collection", "import", made, str(array), "--backbone", PIN)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[0] == "1 records stored, 0 replaced, 0 were there"
    assert "row 1: vector: is zero" in done.stdout
    lines = tmp_path / "records.jsonl"
    lines.write_text('{"_id": "a"}\n')
    for words, reason in (
        ((str(array), "--backbone", "other@1"), "another model"),
        ((str(array), "--backbone", PIN, "--records", str(lines)), "2x64"),
        ((str(tmp_path / "none.npy"), "--backbone", PIN), "No such file"),
    ):
        assert reason in refused(state, "import", made, *words)


def encrypted(export: bytes) -> bytes:
    whole = bytearray(export)
    whole[6] |= 1
    whole[export.index(b"PK\x01\x02") + 8] |= 1
    return bytes(whole)


@pytest.mark.parametrize(
    ("name", "spoil", "why"),
    [
        ("x.zip", encrypted, "'records-00001.jsonl': is encrypted"),
        ("x.zip", lambda export: export.replace(b"r1", b"r2", 1), "'records-00001.jsonl': this member"),
        ("x.npy", lambda _: b"", "is no array, or a damaged one"),
    ],
    ids=["encrypted", "damaged", "empty"],
)
def test_a_file_that_cannot_be_read_is_refused_also_while_it_is_sent(
    state: DemoState, customer: str, tmp_path: Path, *, name: str, spoil: Callable[[bytes], bytes], why: str
) -> None:
    made, path, records = collection(state, customer, "bad"), tmp_path / name, tmp_path / "records.jsonl"
    records.write_text('{"_id": "r1"}\n')
    np.save(tmp_path / "vectors.npy", VECTORS[:1])
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(records, "records-00001.jsonl")
        archive.write(tmp_path / "vectors.npy", "vectors-00001.npy")
    path.write_bytes(spoil(path.read_bytes()))
    beside = ("--records", str(records)) if path.suffix == ".npy" else ()
    command = state.command("collection", "import", made, str(path), "--backbone", PIN, *beside, "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    answer = json.loads(done.stdout)
    assert answer["error"] == "bad_request"
    assert answer["reason"].startswith(f"{path}: {why}")


def test_records_leave_with_their_customers_token_alone(
    state: DemoState, customer: str, token: Path, tmp_path: Path
) -> None:
    other = str(state.ask("customer", "add", "somebody else")["id"])
    theirs = collection(state, other, "theirs")
    target = tmp_path / "target.jsonl"
    words = ("export", theirs, str(target), "--token-file", str(token))
    assert "no such collection" in refused(state, *words)
    assert not target.exists()
    assert "jsonl" in refused(state, "export", theirs, str(tmp_path / "target"), "--token-file", str(token))


def test_a_snapshot_is_made_listed_restored_and_removed(
    state: DemoState, customer: str, tmp_path: Path
) -> None:
    made, array = collection(state, customer, "copied"), tmp_path / "vectors.npy"
    np.save(array, VECTORS[:300])
    state.ask("collection", "import", made, str(array), "--backbone", PIN)
    snapshot = state.ask("collection", "snapshot", "add", made)
    assert snapshot["records"] == 300
    assert state.ask("collection", "snapshot", "list", made)["snapshots"] == [snapshot]
    state.ask("collection", "import", made, str(array), "--backbone", PIN, "--prefix", "again-")
    restored = state.ask("collection", "snapshot", "restore", made, snapshot["id"])
    assert (restored["id"], restored["count"]) == (made, 300)
    beside = state.ask("collection", "snapshot", "restore", made, snapshot["id"], "--into", "beside")
    assert (beside["name"], beside["count"]) == ("beside", 300)
    assert "no such snapshot" in refused(state, "snapshot", "restore", beside["id"], snapshot["id"])
    assert state.ask("collection", "snapshot", "remove", made, snapshot["id"])["removed"]
    assert state.ask("collection", "snapshot", "list", made)["snapshots"] == []
