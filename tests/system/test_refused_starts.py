"""What does not start, with which exit code, and what the message names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import volume
from demo.state import APPLIANCE, DemoState
from tests.running import CopyState, RunningAppliance
from tests.system.fake_systemd import edit

SECONDS = 60


@pytest.fixture
def state(copy_state: CopyState) -> DemoState:
    return copy_state()


def run(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(APPLIANCE), "--config", str(config), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)


def refusal(state: DemoState) -> str:
    """`serve` and `check-config` refuse with 78 and the same reasons, which are returned."""
    served = run(state.config, "serve")
    assert served.returncode == 78, served.stderr
    checked = state.run("check-config", "--json")
    assert checked.returncode == 78
    document = json.loads(checked.stdout)
    assert document["error"] == "config_invalid"
    assert document["reason"] in served.stderr
    return str(document["reason"])


def test_every_finding_at_once(state: DemoState) -> None:
    edit(state.config, "[api]\n", "[api]\nmax_bodi_bytes = 5\nbody_seconds = 'long'\n")
    edit(state.config, "lame_duck_seconds = 0", "lame_duck_seconds = -1")
    reasons = refusal(state).splitlines()
    assert len(reasons) == 3
    for key in ("api.max_bodi_bytes", "api.body_seconds", "lifecycle.lame_duck_seconds"):
        assert any(f"{state.config}: {key}: " in reason for reason in reasons), reasons


@pytest.mark.parametrize("profile", ["demo", "production"])
def test_a_country_outside_the_eu(state: DemoState, profile: str) -> None:
    edit(state.config, 'profile = "demo"', f'profile = "{profile}"')
    edit(state.config, "[api]\n", '[api]\npublic_url = "https://appliance.example"\n')
    residency = state.folder / "residency.toml"
    edit(residency, 'country = "CZ"', 'country = "US"')
    reason = refusal(state)
    assert f"{residency}: country" in reason
    assert "US" in reason


def test_an_unknown_key_in_the_residency_file(state: DemoState) -> None:
    residency = state.folder / "residency.toml"
    residency.write_text('region = "anywhere"\n' + residency.read_text())
    reason = refusal(state)
    assert f"{residency}: region" in reason
    assert "anywhere" in reason


def test_a_demo_beyond_loopback(state: DemoState) -> None:
    edit(state.config, f'"127.0.0.1:{state.port}"', f'"0.0.0.0:{state.port}"')
    assert "api.listen" in refusal(state)


def test_production_without_what_it_needs(state: DemoState) -> None:
    edit(state.config, 'profile = "demo"', 'profile = "production"')
    edit(state.config, 'residency = "residency.toml"\n', "")
    reason = refusal(state)
    assert ": residency: " in reason
    assert ": api.public_url: " in reason


def test_production_on_a_volume_that_is_not_encrypted(state: DemoState) -> None:
    if volume.facts(state.folder).encryption == "luks":
        pytest.skip("this machine's temporary folder is encrypted")
    edit(state.config, 'profile = "demo"', 'profile = "production"')
    edit(state.config, "[api]\n", '[api]\npublic_url = "https://appliance.example"\n')
    reason = refusal(state)
    assert f"{state.config}: state: " in reason
    assert "LUKS" in reason


def test_the_demo_is_only_warned_of_it(state: DemoState) -> None:
    if volume.facts(state.folder).encryption == "luks":
        pytest.skip("this machine's temporary folder is encrypted")
    checked = run(state.config, "check-config", "--json")
    assert checked.returncode == 0, checked.stderr
    document = json.loads(checked.stdout)
    assert (document["valid"], document["profile"]) == (True, "demo")
    assert "state" in {warning["key"] for warning in document["warnings"]}


def test_a_second_daemon_names_the_first(appliance: RunningAppliance) -> None:
    second = run(appliance.state.config, "serve")
    assert second.returncode == 1
    assert f"pid {appliance.pid}" in second.stderr
    assert str(appliance.state.folder) in second.stderr
    assert appliance.call("GET", "/readyz", headers={}).status == 200


def test_a_root_key_that_others_may_read(state: DemoState) -> None:
    key = state.folder / "root.key"
    key.chmod(0o644)
    served = run(state.config, "serve")
    assert served.returncode == 78
    assert f"chmod 600 {key}" in served.stderr


def test_a_cipher_that_gives_another_answer(state: DemoState) -> None:
    """With nothing but that broken neither the daemon nor a verb without one touches the state."""
    broken = "import hmac; hmac.digest = lambda *_: bytes(32); from appliance.cli import main; exit(main())"
    before = {path: path.read_bytes() for path in state.folder.glob("*") if path.is_file()}
    for words in (["serve"], ["customer", "list"]):
        command = [sys.executable, "-c", broken, "--config", str(state.config), *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        assert ended.returncode == 1
        assert "gives a wrong answer for known case 1" in ended.stderr
    assert {path: path.read_bytes() for path in state.folder.glob("*") if path.is_file()} == before


def test_telemetry_that_was_switched_on(state: DemoState) -> None:
    """The package itself switches it off; who takes that away must find the daemon refusing."""
    program = f"""
import os, sys
import appliance.cli
os.environ["ORT_DISABLE_TELEMETRY"] = "0"
sys.exit(appliance.cli.main(["serve", "--config", {str(state.config)!r}]))
"""
    python = str(APPLIANCE.with_name("python"))
    done = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, check=False, timeout=SECONDS
    )
    assert done.returncode == 1
    assert "ORT_DISABLE_TELEMETRY" in done.stderr


def test_the_findings_of_both_files_come_at_once(state: DemoState) -> None:
    state.config.write_text(state.config.read_text() + '\n[log]\nlevel = "loud"\n')
    (state.folder / "residency.toml").write_text('site = "x"\ncountry = "US"\ncolour = 1\n')
    refused = subprocess.run(state.command("check-config"), capture_output=True, text=True, check=False)
    assert refused.returncode == 78
    for finding in ("appliance.toml: log.level", "residency.toml: country", "residency.toml: colour"):
        assert finding in refused.stderr
