"""`backup` and `restore` as people type them, with a daemon and without one; the restored state serves."""

import asyncio
import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from demo.state import DemoState
from tests import images
from tests.backing import Shelf
from tests.running import CopyState, RunningAppliance, free_port
from tests.storing import ACTOR, stand
from tests.system.fake_systemd import edit
from tests.verbs import ForkedState

SETTINGS = ("appliance.toml", "residency.toml", "root.key", "demo.token", "demo.collection", "demo.task")


def another_server(state: DemoState, folder: Path) -> DemoState:
    """A machine with the same settings and root key, and no state yet."""
    folder.mkdir()
    for name in SETTINGS:
        shutil.copy(state.folder / name, folder)
    edit(folder / "appliance.toml", f"127.0.0.1:{state.port}", f"127.0.0.1:{free_port()}")
    return ForkedState(folder)


async def with_images(state: DemoState, size: int = 10_000) -> None:
    root = (state.folder / "root.key").read_bytes()
    async with stand(state.folder, root=root) as opened:
        dataset = await opened.datasets.add(ACTOR, await opened.customer("museum"), "Summer")
        for number in range(3):
            await opened.store.put(ACTOR, dataset, f"{number} ".encode() * (size // 2))


def refusal(state: DemoState, *words: str) -> tuple[int, str]:
    """The exit code and the `error` of a refused verb; its reason is on stderr too."""
    done = state.run(*words, "--json")
    document = json.loads(done.stdout)
    assert set(document) == {"error", "reason"}
    assert document["reason"] in done.stderr
    return done.returncode, document["error"]


@pytest.fixture(params=["with a daemon", "without one"])
def served(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "with a daemon")


def test_a_restored_appliance_goes_on(copy_state: CopyState, tmp_path: Path, served: bool) -> None:
    state = copy_state()
    asyncio.run(with_images(state))
    record = {"_id": "photo", "shelf": "A"}
    appliance = RunningAppliance(state, state.port)
    with appliance:
        inserted = appliance.call(
            "POST",
            "/similarity/photos/v2/insert",
            images.jpeg(),
            headers=appliance.headers(content_type="image/jpeg", x_record=json.dumps(record)),
        )
        assert inserted.status == 200, inserted.body
        shelf = Shelf.under(tmp_path)
        words = ("--to", str(shelf.backups), "--keyring-to", str(shelf.keyrings))
        made = state.ask("backup", *words) if served else None
    made = made or state.ask("backup", *words)
    assert set(made) == {
        "id", "backup", "keyring", "tombstones", "ledger_entry", "files", "bytes", "absent", "removed"
    }  # fmt: skip
    again = another_server(state, tmp_path / "again")
    given = ("--from", made["backup"], "--keyring", made["keyring"])
    proven = again.ask("restore", *given, "--verify-only")
    assert (proven["images"], proven["files"]) == (3, made["files"])
    assert not (again.folder / "ledger.db").exists()
    restored = again.ask("restore", *given, "--tombstones", made["tombstones"])
    assert restored == {"state": str(again.folder), **proven}
    with RunningAppliance(again, again.port) as appliance:
        found = appliance.post(
            "/similarity/photos/v2/get", {"records": [{"_id": "photo"}], "fields_to_return": ["*"]}
        )
        assert found.document["answer_records"][0]["shelf"] == "A"
        tagged = appliance.call(
            "POST", "/photo/tags/v2/tags", images.jpeg(), headers=appliance.headers(content_type="image/jpeg")
        )
        assert tagged.status == 200, tagged.body
        status = again.ask("status")
        assert (status["state"], status["collections"]) == ("degraded", 1), status
        # Nobody knows how late it was: nothing is deleted for its age until a day has been seen to pass.
        assert [one["key"] for one in status["findings"] if one["severity"] == "degraded"] == [
            "datasets.clock"
        ]
        assert "backup.restore" in again.run("audit", "list").stdout
        # Over a daemon's state nothing is restored.
        assert refusal(again, "restore", *given, "--without-tombstones") == (1, "state_in_use")


def test_refusals(copy_state: CopyState, tmp_path: Path) -> None:
    state = copy_state()
    shelf = Shelf.under(tmp_path)
    backups, keyrings = str(shelf.backups), str(shelf.keyrings)
    assert refusal(state, "backup", "--to", backups) == (2, "usage")
    assert refusal(state, "backup", "--to", backups, "--keyring-to", backups) == (1, "storage_failed")
    made = state.ask("backup", "--to", backups, "--keyring-to", keyrings)
    given = ("restore", "--from", made["backup"], "--keyring", made["keyring"])
    assert refusal(state, *given) == (1, "tombstones_needed")
    assert made["tombstones"] in state.run(*given).stderr
    assert refusal(state, *given, "--without-tombstones") == (1, "conflict")
    assert refusal(state, *given, "--without-tombstones", "--tombstones", "x") == (2, "usage")
    again = another_server(state, tmp_path / "again")
    absent = str(tmp_path / "absent")
    assert refusal(again, *given[:3], "--keyring", absent, "--verify-only") == (1, "not_found")
    assert refusal(again, *given, "--tombstones", absent) == (1, "backup_invalid")
    assert refusal(again, "restore", "--from", absent, *given[3:], "--verify-only") == (1, "backup_invalid")
    (damaged, *_) = (Path(made["backup"]) / "bundles").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert refusal(again, *given, "--without-tombstones") == (1, "backup_invalid")
    assert f"{damaged}: changed" in again.run(*given, "--verify-only").stderr
    assert not (again.folder / "ledger.db").exists()
    (again.folder / ".restore").mkdir()  # as one that was killed leaves it
    started = again.run("serve")
    assert started.returncode == 1
    assert "run `appliance restore` again" in started.stderr
    assert refusal(again, "customer", "list") == (1, "storage_failed")
    (again.folder / "root.key").write_bytes(bytes(32))
    assert refusal(again, *given, "--verify-only") == (78, "keyring_invalid")


def test_a_backup_that_the_daemon_leaves_is_none(copy_state: CopyState, tmp_path: Path) -> None:
    state = copy_state()
    asyncio.run(with_images(state, size=30_000_000))
    shelf = Shelf.under(tmp_path)
    with RunningAppliance(state, state.port) as appliance:
        making = subprocess.Popen(
            state.command("backup", "--to", str(shelf.backups), "--keyring-to", str(shelf.keyrings)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert making.stderr is not None
        while "copying" not in making.stderr.readline():
            assert making.poll() is None
        making.send_signal(signal.SIGSTOP)  # by far not all has come
        appliance.kill()
        making.send_signal(signal.SIGCONT)
        _, said = making.communicate(timeout=60)
        assert making.returncode == 69
        assert "the daemon went away" in said
    assert list(shelf.backups.iterdir()) == []
    assert list(shelf.keyrings.iterdir()) == []
