"""The verbs, once through a running daemon and once on a state that no daemon holds: the same answers."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import zstandard
from onnx import numpy_helper

from demo.state import DemoState
from tests import bundles, images
from tests.exports import classifier_model
from tests.running import CopyState, RunningAppliance
from tests.system.fake_systemd import edit

MIB = 1 << 20


@pytest.fixture(scope="module", params=["with a daemon", "without one"])
def state(request: pytest.FixtureRequest, copy_state: CopyState) -> DemoState:
    if request.param == "with a daemon":
        return request.getfixturevalue("appliance").state  # type: ignore[no-any-return]
    return copy_state()


def run(state: DemoState, *words: str) -> subprocess.CompletedProcess[str]:
    return state.run(*words)


def refusal(state: DemoState, *words: str) -> tuple[int, str]:
    """The exit code and the `error` of a refused verb; its reason is on stderr too."""
    done = run(state, *words, "--json")
    document = json.loads(done.stdout)
    assert set(document) == {"error", "reason"}
    assert document["reason"] in done.stderr
    return done.returncode, document["error"]


def rows(document: Any, kind: str) -> dict[str, Any]:
    return {row["id"]: row for row in document[kind]}


@pytest.mark.timeout(300)  # it starts the CLI some forty times
def test_customers_tokens_and_collections(state: DemoState) -> None:
    customer = state.ask("customer", "add", "Galerie Ž")
    assert customer["name"] == "Galerie Ž"
    assert rows(state.ask("customer", "list"), "customers")[customer["id"]] == customer
    assert refusal(state, "customer", "add", "Galerie Ž") == (1, "conflict")
    assert state.ask("customer", "suspend", "Galerie Ž")["suspended_at"]
    assert state.ask("customer", "resume", customer["id"]) == customer
    assert refusal(state, "customer", "suspend", "nobody") == (1, "not_found")

    first = state.ask("token", "add", customer["id"])
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    second = state.ask(
        "token", "add", "Galerie Ž", "--scope", "infer", "--scope", "search:read", "--expires-at", later
    )
    assert first["token"].startswith("xapp_")
    listed = rows(state.ask("token", "list", "Galerie Ž"), "tokens")
    assert set(listed) == {first["id"], second["id"]}
    assert "admin" in listed[first["id"]]["scopes"]
    assert listed[second["id"]]["scopes"] == ["infer", "search:read"]
    assert first["token"] not in json.dumps(listed)

    limited = state.ask("customer", "limit", "Galerie Ž", "--collections", "3", "--jobs", "0")
    assert limited["quotas"]["collections"] == {"used": 0, "limit": 3}
    assert (
        state.ask("customer", "limit", customer["id"], "--jobs", "default")["quotas"]["jobs"]["limit"] == 1000
    )
    rates = {"requests_per_minute": 60, "bytes_per_minute": None}
    assert (
        state.ask("token", "limit", second["id"], "--requests-per-minute", "60")
        == {"id": second["id"]} | rates
    )
    assert refusal(state, "token", "limit", "0000000000") == (1, "not_found")
    assert refusal(state, "customer", "limit", "nobody", "--jobs", "1") == (1, "not_found")
    assert refusal(state, "customer", "limit", "Galerie Ž", "--jobs", "-1") == (1, "bad_request")
    assert refusal(state, "customer", "limit", "Galerie Ž", "--jobs", "few") == (2, "usage")
    assert refusal(state, "token", "add", "Galerie Ž", "--collection", "nothing") == (1, "not_found")

    successor = state.ask("token", "rotate", second["id"], "--overlap-seconds", "0")
    assert successor["token"] != second["token"]
    state.ask("token", "revoke", first["id"])
    assert rows(state.ask("token", "list"), "tokens")[first["id"]]["revoked_at"] is not None
    assert refusal(state, "token", "revoke", "0000000000") == (1, "not_found")
    for verb in ("token add", "token list", "collection list"):
        assert refusal(state, *verb.split(), "nobody") == (1, "not_found")
    assert refusal(state, "token", "add", customer["id"], "--scope", "everything") == (1, "bad_request")

    collection = state.ask("collection", "add", "Galerie Ž", "photos")
    assert (
        rows(state.ask("collection", "list", customer["id"]), "collections")[collection["id"]]["count"] == 0
    )
    assert state.ask("collection", "rename", collection["id"], "Boots")["name"] == "Boots"
    assert state.ask("collection", "empty", collection["id"])["id"] == collection["id"]
    assert refusal(state, "collection", "empty", "nothing") == (1, "not_found")
    hashes = state.ask("collection", "add", "Galerie Ž", "hashes", "--backbone", "phash")
    assert (hashes["backbone"], hashes["dim"], hashes["recall"]) == ("phash@1", 64, 0.95)
    assert state.ask("collection", "recall", hashes["id"], "0.99")["recall"] == 0.99
    assert refusal(state, "collection", "recall", hashes["id"], "1") == (1, "bad_request")
    for verb, elsewhere in (
        ("token revoke", f"../collections/{collection['id']}"),
        ("token rotate", f"../keys/customers/{customer['id']}"),
        ("collection remove", f"../tokens/{second['id']}"),
    ):  # an id is no way to something else
        assert refusal(state, *verb.split(), elsewhere) == (1, "not_found")
    for made in (collection, hashes):
        state.ask("collection", "remove", made["id"])
    assert state.ask("collection", "list", customer["id"])["collections"] == []
    assert refusal(state, "collection", "remove", collection["id"]) == (1, "not_found")


def test_agreements_and_the_audit_log(state: DemoState) -> None:
    customer = state.ask("customer", "add", "Museum Ž")["id"]
    signed = state.ask("agreement", "sign", "Museum Ž", "training-data")
    assert (signed["customer"], signed["state"]) == (customer, "active")
    assert refusal(state, "agreement", "sign", customer, "training-data") == (1, "conflict")
    assert refusal(state, "agreement", "sign", customer, "everything") == (1, "bad_request")
    assert refusal(state, "agreement", "sign", "nobody", "training-data") == (1, "not_found")
    assert state.ask("agreement", "revoke", signed["id"]) == {"id": signed["id"], "revoked": True}
    assert refusal(state, "agreement", "revoke", "../tokens/x") == (1, "not_found")
    pending = state.ask("agreement", "sign", customer, "training-data", "--await-acceptance")
    listed = rows(state.ask("agreement", "list", "Museum Ž"), "agreements")
    assert {listed[one["id"]]["state"] for one in (signed, pending)} == {"revoked", "pending"}
    assert rows(state.ask("agreement", "list"), "agreements").keys() >= listed.keys()
    assert "pending" in run(state, "agreement", "list", customer).stdout

    first = state.ask("audit", "list", "--customer", "Museum Ž", "--limit", "2")
    assert [entry["event"] for entry in first["entries"]] == ["customer.add", "agreement.sign"]
    words = ("audit", "list", "--customer", customer, "--after", str(first["next"]))
    assert [entry["event"] for entry in state.ask(*words)["entries"]] == [
        "agreement.revoke",
        "agreement.sign",
    ]
    assert f"more: --after {first['next']}" in run(state, *words[:4], "--limit", "2").stdout


def test_people_read_tables(state: DemoState) -> None:
    listed = run(state, "customer", "list")
    assert listed.returncode == 0
    heading, *lines = listed.stdout.splitlines()
    assert heading.split() == ["id", "name", "created_at", "suspended_at", "claimed_at"]
    assert any("demo" in line.split() for line in lines)
    bundles = run(state, "bundle", "list").stdout
    assert "efficientnet-lite0" in bundles
    assert state.task in bundles


@pytest.mark.parametrize(
    "words", [("customer", "list"), ("token", "revoke", "x", "--json"), ("customer", "add")]
)
def test_a_verb_in_a_process_of_its_own_says_the_same(state: DemoState, words: tuple[str, ...]) -> None:
    """The others are forked from one interpreter."""
    alone, forked = DemoState(state.folder).run(*words), state.run(*words)
    assert (alone.returncode, alone.stdout, alone.stderr) == (
        forked.returncode,
        forked.stdout,
        forked.stderr,
    )


def test_a_refused_bundle_says_why(state: DemoState, tmp_path: Path) -> None:
    before = state.ask("bundle", "list")
    (installed, *_) = (state.folder / "bundles").iterdir()
    altered, oversized, linked = (tmp_path / name for name in ("altered", "oversized", "linked"))
    for folder in (altered, oversized, linked):
        shutil.copytree(installed, folder)
    (altered / "labels.txt").write_text("x")
    with (oversized / "labels.txt").open("ab") as file:
        file.truncate(8 * MIB + 1)
    (linked / "labels.txt").unlink()
    (linked / "labels.txt").symlink_to("/etc/shadow")
    for folder, why in {
        tmp_path / "absent": "the folder cannot be read: No such file or directory",
        tmp_path: "'altered' is not a plain file",
        altered: "labels.txt is not the file that bundle.toml lists: its SHA-256 differs",
        oversized: f"labels.txt has more than {8 * MIB} bytes",
        linked: "'labels.txt' is not a plain file",
    }.items():
        assert refusal(state, "bundle", "install", str(folder)) == (1, "bad_request")
        assert run(state, "bundle", "install", str(folder)).stderr == f"appliance: {folder}: {why}\n"
    assert state.ask("bundle", "list") == before
    assert [path.name for path in (state.folder / "bundles").iterdir()] == [installed.name]


def test_a_relative_path_is_the_callers(state: DemoState, tmp_path: Path) -> None:
    (installed,) = (state.folder / "bundles").iterdir()
    shutil.copytree(installed, tmp_path / "starter")
    command = state.command("bundle", "install", "starter", "--json")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["task"] == state.task  # the same bundle once more: the same answer


def test_status(appliance: RunningAppliance) -> None:
    status = appliance.state.ask("status")
    assert status["pid"] == appliance.pid
    assert (status["profile"], status["state"]) == ("demo", "ready")
    assert status["listeners"]["api"] == [f"127.0.0.1:{appliance.port}"]
    assert status["listeners"]["operator"][0].startswith("127.0.0.1:")
    assert status["listeners"]["operator"] != ["127.0.0.1:0"]
    assert status["customers"] >= 1
    assert status["collections"] >= 1
    assert status["volume"]["free_bytes"] > 0
    assert [bundle["task"] for bundle in status["bundles"]] == [appliance.task]
    assert status["devices"][0]["state"] == "serving"
    text = run(appliance.state, "status").stdout
    assert f"pid {appliance.pid}" in text
    assert f"127.0.0.1:{appliance.port}" in text


@pytest.mark.parametrize("ending", [".tar", ".tar.zst"])
@pytest.mark.parametrize("folder", ["", "second/"])
def test_a_bundle_in_an_archive_is_installed(
    copy_state: CopyState, tmp_path: Path, ending: str, folder: str
) -> None:
    state = copy_state()
    (installed,) = (state.folder / "bundles").iterdir()
    shutil.copytree(installed, tmp_path / "second")
    edit(tmp_path / "second" / "bundle.toml", 'version = "1"', 'version = "2"')
    archive = tmp_path / f"bundle{ending}"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as writer:
        writer.add(tmp_path / "second", folder or ".")
    packed = raw.getvalue()
    archive.write_bytes(packed if ending == ".tar" else zstandard.compress(packed))
    made = state.ask("bundle", "install", str(archive))
    assert (made["name"], made["version"], made["active"]) == ("efficientnet-lite0", "2", False)
    archive.write_bytes(archive.read_bytes()[: len(packed) // 3])
    code, reason = refusal(state, "bundle", "install", str(archive))
    assert (code, reason) == (1, "bad_request")


def test_a_bundle_installed_while_serving_is_served(copy_state: CopyState, tmp_path: Path) -> None:
    state = copy_state()
    (installed,) = (state.folder / "bundles").iterdir()
    shutil.copytree(installed, tmp_path / "second")
    edit(tmp_path / "second" / "bundle.toml", 'version = "1"', 'version = "2"')
    with RunningAppliance(state, state.port) as appliance:
        made = state.ask("bundle", "install", str(tmp_path / "second"))
        assert (made["name"], made["version"]) == ("efficientnet-lite0", "2")
        assert (made["task"], made["active"]) == (state.task, False)
        answer = appliance.call(
            "POST",
            f"/recognition/v2/classify?task_id={made['task']}&version=2",
            images.jpeg(),
            headers=appliance.headers(content_type="image/jpeg"),
        )
        assert answer.status == 200, answer.body
        assert answer.document["records"][0]["best_label"]["name"]
        assert "2 answers from now on" in run(state, "bundle", "activate", made["name"], "2").stdout
        assert "2 bundles are as they were" in run(state, "bundle", "verify").stdout
        assert refusal(state, "bundle", "remove", made["name"], "2") == (1, "conflict")
        assert refusal(state, "bundle", "remove", made["name"], "../2") == (1, "not_found")
        # The collection's vectors were made by the first version.
        assert refusal(state, "bundle", "remove", made["name"], "1") == (1, "conflict")
        state.ask("bundle", "activate", made["name"], "1")
        assert state.ask("bundle", "remove", made["name"], "2")["removed"] is True
        assert [one["version"] for one in state.ask("bundle", "list")["bundles"]] == ["1"]


def peak(command: list[str], *watched: psutil.Process) -> tuple[int, ...]:
    """Runs a command and returns the most memory that it and each watched process held meanwhile."""
    running = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    most = [0] * (1 + len(watched))
    while running.poll() is None:
        most = [max(m, one.memory_info().rss) for m, one in zip(most, (running, *watched), strict=True)]
        time.sleep(0.001)
    assert running.returncode == 0, running.communicate()[1]
    running.communicate()
    return tuple(most)


def test_a_large_bundle_passes_through_little_memory(copy_state: CopyState, tmp_path: Path) -> None:
    state = copy_state()
    (installed,) = (state.folder / "bundles").iterdir()
    large = tmp_path / "large"
    shutil.copytree(installed, large)
    model, manifest = large / "model.onnx", large / "bundle.toml"
    whole = hashlib.sha256(model.read_bytes()).hexdigest()
    ballast = onnx.GraphProto(
        name="main", initializer=[numpy_helper.from_array(np.ones(24 * MIB, "f4"), "b")]
    )
    with model.open("ab") as file:  # a second message of the same kind adds its fields to the first one's
        file.write(onnx.ModelProto(graph=ballast).SerializeToString())
    assert model.stat().st_size > 96 * MIB
    edit(manifest, whole, hashlib.sha256(model.read_bytes()).hexdigest())
    edit(manifest, 'version = "1"', 'version = "2"')
    with RunningAppliance(state, state.port) as appliance:
        daemon = appliance.processes()[0]
        (small,) = peak(state.command("bundle", "list"))
        before = daemon.memory_info().rss
        client, most = peak(state.command("bundle", "install", str(large)), daemon)
        assert most - before < 16 * MIB
        assert client - small < 16 * MIB
        assert [one["version"] for one in state.ask("bundle", "list")["bundles"]] == ["1", "2"]


def test_a_model_that_does_not_run_is_refused_without_a_daemon_too(
    copy_state: CopyState, tmp_path: Path
) -> None:
    state = copy_state()
    (installed,) = (state.folder / "bundles").iterdir()
    shutil.copytree(installed, tmp_path / "broken")
    model = tmp_path / "broken" / "model.onnx"
    whole = hashlib.sha256(model.read_bytes()).hexdigest()
    another = classifier_model().SerializeToString()  # sound, but it takes no 8-bit pixels
    model.write_bytes(another)
    edit(tmp_path / "broken" / "bundle.toml", whole, hashlib.sha256(another).hexdigest())
    edit(tmp_path / "broken" / "bundle.toml", 'version = "1"', 'version = "2"')
    done = run(state, "bundle", "install", str(tmp_path / "broken"))
    assert done.returncode == 1
    assert "the model cannot be loaded" in done.stderr
    assert [path.name for path in (state.folder / "bundles").iterdir()] == [installed.name]


def test_a_bundle_that_a_start_leaves_out_costs_the_others_nothing_and_is_told_of_until_it_goes(
    copy_state: CopyState, tmp_path: Path
) -> None:
    """What its maker's device saw no process but a daemon can hold against this one."""
    state, reason = copy_state(), "self-test: value 1 of logits is -10 and not 3"
    source = str(bundles.self_tested(tmp_path / "tested", [10.0, 3.0]))
    state.ask("bundle", "install", source)

    def findings() -> list[str]:
        return [one["message"] for one in state.ask("status")["findings"] if one["key"] == "bundle.tested"]

    with RunningAppliance(state, state.port) as appliance:
        assert findings() == [f"tested 1: {reason}"]
        assert reason in [one["fault"] for one in state.ask("bundle", "list")["bundles"]]
        done = run(state, "bundle", "install", source)
        assert (done.returncode, reason in done.stderr) == (1, True), "nor is it served as it comes once more"
        asked = appliance.headers(content_type="image/jpeg")
        answers = [
            appliance.call("POST", f"/{route}/v2/tags", images.jpeg(), headers=asked).document["records"]
            for route in ("photo/tags", "tagging/tested")
        ]
        assert [record["_status"]["code"] for (record,) in answers] == [200, 404]
        state.ask("bundle", "remove", "tested", "1")
        assert findings() == []


def test_output_into_a_closed_pipe_is_no_crash(appliance: RunningAppliance) -> None:
    listing = subprocess.Popen(
        [sys.executable, "-m", "appliance", *appliance.state.command("customer", "list")[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert listing.stdout is not None
    listing.stdout.close()
    assert listing.stderr is not None
    assert "Traceback" not in listing.stderr.read()
    listing.stderr.close()
    assert listing.wait(60) == 1


def test_a_daemon_whose_state_is_covered_is_asked_all_the_same(copy_state: CopyState) -> None:
    """What covers the folder has no lock in it; that a daemon runs, its socket tells."""
    state = copy_state()
    with RunningAppliance(state, state.port):
        aside = (state.folder / "lock").rename(state.folder / "aside")
        assert state.ask("status")["state"] == "ready"
        aside.rename(state.folder / "lock")
