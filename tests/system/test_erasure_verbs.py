"""`appliance customer erase` and `export`, `appliance erasure`: with a daemon, and the proof without one."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from demo.state import APPLIANCE, DemoState, StepFailed
from tests import images
from tests.running import RunningAppliance


@pytest.fixture(scope="module")
def state(appliance: RunningAppliance) -> DemoState:
    return appliance.state


@pytest.fixture
def customer(state: DemoState, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Id and name of a customer of the test's own, which has an image."""
    name = request.node.name[:100]
    made = state.ask("customer", "add", name)["id"]
    state.ask("agreement", "sign", made, "training-data")
    return str(made), name


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Without a configuration, and so without a state."""
    return subprocess.run([str(APPLIANCE), *words], capture_output=True, text=True, check=False, timeout=60)


def test_a_customer_is_erased_by_its_name_and_the_proof_stands_alone(
    state: DemoState, customer: tuple[str, str], tmp_path: Path
) -> None:
    identity, name = customer
    with pytest.raises(StepFailed, match="--yes"):
        state.ask("customer", "erase", name)
    with pytest.raises(StepFailed, match="letter by letter"):
        state.ask("customer", "erase", name, "--yes", "another")
    made = state.ask("customer", "erase", name, "--yes", name)
    assert identity not in {one["id"] for one in state.ask("customer", "list")["customers"]}
    (listed,) = state.ask("erasure", "list", "--customer", identity)["erasures"]
    assert (listed["id"], listed["kind"]) == (made["id"], "customer")
    assert state.ask("erasure", "show", made["id"])["statement"]["subject"] == identity
    file = tmp_path / "proof.json"
    state.ask("erasure", "show", made["id"], "--out", str(file))
    key = tmp_path / "proof.json.pub"
    good = run("erasure", "verify", str(file), str(key), "--json")
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["statement"]["id"] == made["id"]
    assert "key destroyed" in run("erasure", "verify", str(file), str(key)).stdout
    file.write_text(file.read_text().replace('"sig":"', '"sig":"A', 1))
    bad = run("erasure", "verify", str(file), str(key))
    assert (bad.returncode, bad.stdout) == (1, "")
    for words in (
        (str(tmp_path / "none"), str(key)),
        (str(file), str(tmp_path / "none")),
        (str(key), str(key)),
    ):
        assert run("erasure", "verify", *words).returncode == 1


def test_a_copy_of_everything_goes_to_a_file(
    appliance: RunningAppliance, customer: tuple[str, str], tmp_path: Path
) -> None:
    state, (identity, name) = appliance.state, customer
    token, picture = tmp_path / "token", tmp_path / "picture.jpg"
    token.write_text(state.ask("token", "add", identity)["token"])
    picture.write_bytes(images.plain(b"export"))
    state.ask("dataset", "import", identity, str(_folder(tmp_path, picture)))
    target = tmp_path / "all.zip"
    words = ("customer", "export", name, "--token-file", str(token), "--out", str(target))
    assert state.ask(*words)["bytes"] == target.stat().st_size
    assert target.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("customer.json"))["id"] == identity
        assert any(one.endswith("/coco.tar") for one in archive.namelist())
    with pytest.raises(StepFailed, match="exists already"):
        state.ask(*words)
    others = ("customer", "export", "demo", "--token-file", str(token), "--out", str(tmp_path / "other.zip"))
    with pytest.raises(StepFailed, match="no such customer"):
        state.ask(*others)
    assert not (tmp_path / "other.zip").exists()


def _folder(tmp_path: Path, picture: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "winter").mkdir(parents=True)
    picture.rename(folder / "winter" / "picture.jpg")
    return folder
