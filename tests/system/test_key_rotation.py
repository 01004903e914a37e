"""The root key of a real appliance is rotated: what it sealed goes on, the old root opens nothing more."""

import base64
import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from appliance.vault import create_root
from demo.state import DemoState
from tests import images
from tests.hosts import Host
from tests.running import CopyState, RunningAppliance


@pytest.fixture
def state(copy_state: CopyState) -> DemoState:
    return copy_state()


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A file with a new root key."""
    file = tmp_path / "a new.key"
    file.write_bytes(create_root())
    file.chmod(0o600)
    return file


def refusal(state: DemoState, *words: str) -> tuple[int, str, str]:
    done = state.run(*words, "--json")
    document = json.loads(done.stdout)
    return done.returncode, document["error"], document["reason"]


def notices(state: DemoState) -> list[Any]:
    return [one for one in state.ask("status")["findings"] if one["key"] == "keys.root"]


def declare(state: DemoState, host: Host) -> None:
    file = state.folder / "residency.toml"
    declared = tomllib.loads(file.read_text()) | {"destinations": [host.declaration]}
    file.write_text(tomli_w.dumps(declared))


def asked_for(appliance: RunningAppliance, host: Host) -> str:
    """A request whose end is to be told to the host."""
    hook = {"endpoint": f"{host.address}/told", "headers": {"Authorization": "Bearer mine"}}
    photo = {"_base64": base64.b64encode(images.jpeg()).decode()}
    document = {"type": "dominant-colors-generic", "records": [photo], "webhook": hook}
    return str(appliance.post("/account/v2/request", document).document["id"])


def secret(appliance: RunningAppliance) -> str:
    """Asked with the demo's token, which has to be good."""
    answer = appliance.call("GET", "/appliance/v1/webhook-secret")
    assert answer.status == 200
    return str(answer.document["secret"])


def test_a_root_is_rotated_under_a_running_appliance(state: DemoState, new: Path) -> None:
    present = state.folder / "root.key"
    old = present.read_bytes()
    with Host() as host:
        host.answers[:] = [503]
        declare(state, host)
        with RunningAppliance(state, state.port) as appliance:
            request, whsec = asked_for(appliance, host), secret(appliance)
            assert host.told.get(timeout=30).headers["webhook-id"] == request

            assert state.ask("key", "rotate", "root", str(new)) == {
                "rotation": "restart",
                "root_key_file": str(present),
            }
            said = state.run("key", "rotate", "root", str(new)).stdout
            copying, _, retiring = [line.strip() for line in said.splitlines()[1:]]
            assert retiring == "appliance key retire"
            (notice,) = notices(state)
            assert notice["severity"] == "notice"
            assert "restart" in notice["message"]
            assert state.ask("status")["state"] == "ready"
            assert refusal(state, "key", "retire")[:2] == (1, "conflict")
            assert secret(appliance) == whsec

            appliance.stop()
            subprocess.run(["sh", "-c", copying], check=True)
            assert present.read_bytes() == new.read_bytes()
            appliance.start()
            assert secret(appliance) == whsec
            told = host.told.get(timeout=30)  # sealed by the run before, under the other root
            assert told.headers["webhook-id"] == request
            assert told.headers["authorization"] == "Bearer mine"
            assert "key retire" in notices(state)[0]["message"]

            assert state.ask("key", "retire") == {"retired": True}
            assert state.ask("key", "retire") == {"retired": False}
            assert notices(state) == []
            assert state.ask("key", "list")["rotation"] is None
            assert secret(appliance) == whsec
            acts = state.ask("audit", "list", "--limit", "1000")["entries"]
            acts = [entry for entry in acts if entry["event"].startswith("key.")]
            assert [(entry["event"], entry["details"]["key"]) for entry in acts] == [
                ("key.rotate", "root"),
                ("key.retire", "root"),
            ]
    log = state.log.read_text()
    for key in (old, new.read_bytes()):
        for form in (key.hex(), base64.b64encode(key).decode(), repr(key)[2:-1]):
            assert form not in log + json.dumps(acts) + said

    present.write_bytes(old)
    served = state.run("serve")
    assert served.returncode == 78
    assert "Traceback" not in served.stderr
    assert f"{state.folder / 'keyring'} was made for another root key" in served.stderr
    assert "put the right root.key in place" in served.stderr
    code, error, reason = refusal(state, "customer", "list")
    assert (code, error) == (78, "keyring_invalid")
    assert reason in served.stderr
    present.write_bytes(new.read_bytes())
    assert state.ask("customer", "list")["customers"]


def test_without_a_daemon_it_is_the_same(state: DemoState, new: Path) -> None:
    present = state.folder / "root.key"
    old = present.read_bytes()
    assert state.ask("key", "rotate", "root", str(new))["rotation"] == "restart"
    listed = state.run("key", "list").stdout
    assert "change 3 of the keyring" in listed  # the second was the key of the collection
    assert "restart" in listed
    new.write_bytes(create_root())  # lost before it was put in place
    assert refusal(state, "key", "rotate", "root", str(new))[:2] == (1, "conflict")
    taken_back = state.run("key", "rotate", "root", str(present))
    assert "taken back" in taken_back.stdout
    assert state.ask("key", "rotate", "root", str(new))["rotation"] == "restart"
    present.write_bytes(new.read_bytes())
    assert state.ask("key", "retire") == {"retired": True}
    present.write_bytes(old)
    assert refusal(state, "key", "list")[:2] == (78, "keyring_invalid")


@pytest.mark.parametrize(
    ("mode", "size", "why"),
    [(0o644, 32, "chmod 600"), (0o600, 33, "33 bytes instead of 32"), (None, 0, "does not exist")],
)
def test_a_file_that_is_no_root_key(
    state: DemoState, tmp_path: Path, mode: int | None, size: int, why: str
) -> None:
    file = tmp_path / "key"
    if mode is not None:
        file.write_bytes(os.urandom(size))
        file.chmod(mode)
    before = (state.folder / "keyring").read_bytes()
    code, error, reason = refusal(state, "key", "rotate", "root", str(file))
    assert (code, error) == (1, "bad_request")
    assert str(file) in reason
    assert why in reason
    assert (state.folder / "keyring").read_bytes() == before


def test_keys_of_containers_are_rotated_by_name(state: DemoState) -> None:
    """Here there is one, the demo's collection."""
    for words in (("container", "demo", "0" * 32), ("container", "demo", "../x"), ("customer", "nobody")):
        assert refusal(state, "key", "rotate", *words)[:2] == (1, "not_found")
    state.ask("key", "rotate", "container", "demo", state.collection)
    state.ask("key", "rotate", "customer", "demo")
    (customer,) = state.ask("key", "list")["customers"]
    assert customer["generation"] == 2
    assert customer["containers"] == [{"id": state.collection, "kind": "collection", "generations": [1, 2]}]
