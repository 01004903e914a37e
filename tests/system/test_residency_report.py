"""What a running appliance states of where it stands: signed, proven by two files, refused when changed."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from demo.state import DemoState, StepFailed
from tests.running import CopyState, RunningAppliance
from tests.system.fake_systemd import edit
from tests.waiting import eventually


def verified(state: DemoState, report: Path, key: Path) -> Any:
    """What a report proves, without configuration, state or daemon."""
    program = state.command()[0]
    words = [program, "--config", "/nowhere", "residency", "verify", str(report), str(key), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["statement"]


def test_a_report_is_what_the_route_answers_and_is_proven_elsewhere(
    appliance: RunningAppliance, tmp_path: Path
) -> None:
    state = appliance.state
    elsewhere = {"task_id": appliance.task, "records": [{"_url": "http://169.254.169.254/latest/meta-data/"}]}
    answer = appliance.post("/recognition/v2/classify", elsewhere)
    assert answer.document["records"][0]["_status"]["code"] == 400

    file, key = tmp_path / "report.json", tmp_path / "report.json.pub"
    written = state.ask("residency", "report", "--out", str(file))
    assert written == {"report": str(file), "key": str(key)}
    statement = verified(state, file, key)
    predicate = statement["predicate"]
    assert predicate["appliance"]["public_key"] == key.read_text().strip()
    assert (predicate["verdict"], predicate["appliance"]["profile"]) == ("demonstration", "demo")
    declared = (state.folder / "residency.toml").read_bytes()
    sums = subprocess.run(["sha256sum"], input=declared, capture_output=True, check=True).stdout.split()
    assert statement["subject"][0]["digest"]["sha256"] == sums[0].decode()
    assert (predicate["declared"]["country"], predicate["declared"]["destinations"]) == ("CZ", [])
    assert predicate["facts"]["machine"]["volume"]["encryption"] in {"plain", "luks", "unknown", "volatile"}
    assert predicate["facts"]["machine"]["core_limit"] == 0
    (undeclared,) = predicate["connections"]["by_destination"]
    assert (undeclared["allowed"], undeclared["refused"] >= 1) == (0, True)

    asked = appliance.call("GET", "/appliance/v1/residency")
    assert asked.status == 200
    route = tmp_path / "route.json"
    route.write_bytes(asked.body)
    assert verified(state, route, key)["predicate"]["declared"] == predicate["declared"]


def test_a_refused_connection_is_in_the_audit_log(appliance: RunningAppliance) -> None:
    refused = {"task_id": appliance.task, "records": [{"_url": "http://169.254.169.254/"}]}
    appliance.post("/recognition/v2/classify", refused)

    def rows() -> list[Any]:
        found: list[Any] = []
        after: int | None = 0
        while after is not None:
            page = appliance.state.ask("audit", "list", "--limit", "1000", "--after", str(after))
            found += [entry for entry in page["entries"] if entry["event"] == "outbound.refuse"]
            after = page["next"]
        return found

    eventually(lambda: bool(rows()), "the row")
    assert {row["subject"] for row in rows()} == {"(undeclared)"}


def test_people_read_it_and_scopes_hold(appliance: RunningAppliance) -> None:
    told = appliance.state.run("residency", "report")
    assert told.returncode == 0, told.stderr
    assert "demonstration, CZ: demonstration at " in told.stdout
    assert "(undeclared)" in told.stdout
    assert appliance.call("GET", "/appliance/v1/residency", headers={}).status == 401


def test_a_report_is_of_a_running_daemon(copy_state: CopyState) -> None:
    assert copy_state().run("residency", "report").returncode == 69


def test_a_backup_goes_where_the_residency_file_has_it(copy_state: CopyState, tmp_path: Path) -> None:
    state, shelf = copy_state(), tmp_path / "shelf"
    shelf.mkdir()
    (tmp_path / "keyrings").mkdir()
    words = ("backup", "--to", str(shelf), "--keyring-to", str(tmp_path / "keyrings"))
    told = state.run(*words)
    assert told.returncode == 0, told.stderr
    assert "declares no [[backups]]" in told.stderr
    target = f'[[backups]]\nname = "shelf"\npath = "{shelf}"\ncountry = "CZ"\n\n[[clients]]\ncidr = "::1/128"'
    edit(state.folder / "residency.toml", '[[clients]]\ncidr = "::1/128"', target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StepFailed, match="keyrings: lies below no path of"):
        state.ask(*words)
    assert sorted(tmp_path.rglob("*")) == before
    edit(state.folder / "residency.toml", f'path = "{shelf}"', f'path = "{tmp_path}"')
    state.ask(*words)
