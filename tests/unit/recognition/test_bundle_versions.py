"""Versions of one name: which answers, what takes one away, and what a restart and a crash leave."""

import shutil
from pathlib import Path

import apsw
import pytest

from appliance.accounts import audit
from appliance.errors import Conflict, NotFound, NotInstalled
from appliance.ledger import Ledger
from appliance.ledger.migrations import migrate, shipped
from appliance.metrics import Registry
from appliance.recognition.bundles import Bundles
from appliance.recognition.staging import from_folder
from tests.unit.recognition.test_bundles import OPERATOR, make, opened


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


async def install(installed: Bundles, source: Path, version: str, *, activate: bool = True) -> None:
    files = from_folder(make(source / version, version=version))
    await installed.install(OPERATOR, files, activate=activate)


async def test_all_versions_share_the_task_and_the_first_answers(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, _):
        await install(installed, tmp_path, "9")
        await install(installed, tmp_path, "10")
        first, later = installed.list()
        assert first.task == later.task
        assert installed.catalogue().for_task(first.task) == first
        assert installed.catalogue().for_task(first.task, "10") == later
        with pytest.raises(NotFound, match="no such version"):
            installed.catalogue().for_task(first.task, "11")
        assert (first.active, later.active) == (True, False)


async def test_an_activated_version_answers_from_then_on(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, ledger):
        await install(installed, tmp_path, "1")
        await install(installed, tmp_path, "2")
        made = await installed.activate(OPERATOR, "tiny", "2")
        assert (made.version, made.active) == ("2", True)
        assert await installed.activate(OPERATOR, "tiny", "2") == made
        *_, entry = await ledger.read(audit.entries)
        assert (entry.event, entry.subject, entry.details) == (
            audit.Event.BUNDLE_ACTIVATE,
            made.task,
            {"bundle": "tiny@2"},
        )
    async with opened(state) as (installed, _):
        assert installed.backbone().version == "2"
        assert installed.catalogue().for_route("photo/tags/v2/tags").version == "2"
        assert installed.catalogue().for_task(made.task).version == "2"
        assert installed.backbone("tiny@1").version == "1"
        assert [bundle.active for bundle in installed.list()] == [False, True]


async def test_a_version_may_wait_to_be_activated(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, _):
        await install(installed, tmp_path, "1", activate=False)
        (waiting,) = installed.list()
        with pytest.raises(NotInstalled):
            installed.backbone()
        with pytest.raises(NotFound, match="no active version"):
            installed.catalogue().for_task(waiting.task)
        assert not installed.catalogue().route_installed("photo/tags/v2/tags")
        assert installed.catalogue().for_task(waiting.task, "1") == waiting
        await installed.activate(OPERATOR, "tiny", "1")
        assert installed.backbone().version == "1"


async def test_a_removed_version_leaves_nothing(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, ledger):
        await install(installed, tmp_path, "1")
        await install(installed, tmp_path, "2")
        with pytest.raises(Conflict, match=r"activate another version first \(2\)"):
            await installed.remove(OPERATOR, "tiny", "1")
        await installed.activate(OPERATOR, "tiny", "2")
        removed = await installed.remove(OPERATOR, "tiny", "1")
        assert removed.version == "1"
        assert not (state / "bundles/tiny@1").exists()
        assert [bundle.version for bundle in installed.list()] == ["2"]
        with pytest.raises(NotFound):
            await installed.remove(OPERATOR, "tiny", "1")
        await installed.remove(OPERATOR, "tiny", "2")
        *_, entry = await ledger.read(audit.entries)
        assert (entry.event, entry.details) == (audit.Event.BUNDLE_REMOVE, {"bundle": "tiny@2"})
    async with opened(state) as (installed, _):
        assert [*installed.list()] == []
        assert [*(state / "bundles").iterdir()] == []
        await install(installed, tmp_path / "again", "1")
        assert installed.backbone().task != removed.task


async def test_a_removal_that_was_interrupted_is_finished_by_the_next_start(
    tmp_path: Path, state: Path
) -> None:
    """Between the row and the files: the folder is there and nobody lists it."""
    async with opened(state) as (installed, _):
        await install(installed, tmp_path, "1")
        kept = shutil.copytree(installed.backbone().folder, tmp_path / "kept")
        await installed.remove(OPERATOR, "tiny", "1")
    shutil.copytree(kept, state / "bundles/tiny@1")
    async with opened(state) as (installed, _):
        assert [*installed.list()] == []
    assert [*(state / "bundles").iterdir()] == []


async def test_unknown_versions(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, _):
        await install(installed, tmp_path, "1")
        for name, version in (("tiny", "2"), ("other", "1"), ("", ""), ("tiny@1", "")):
            with pytest.raises(NotFound):
                await installed.activate(OPERATOR, name, version)
            with pytest.raises(NotFound):
                await installed.remove(OPERATOR, name, version)


async def test_verification_names_what_has_changed(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, _):
        await install(installed, tmp_path, "1")
        await install(installed, tmp_path, "2")
        assert [fault for _, fault in await installed.verify()] == [None, None]
        installed.list()[1].model.write_bytes(b"mODEL")
        (_, whole), (damaged, fault) = await installed.verify()
        assert whole is None
        assert damaged.version == "2"
        assert fault is not None
        assert "model.onnx" in fault


async def test_a_ledger_of_before_keeps_its_bundles_and_their_first_version_answers(state: Path) -> None:
    """Written by the schema that gave every version a task of its own."""
    connection = apsw.Connection(str(state / "ledger.db"))
    migrate(connection, [step for step in shipped() if step.number <= 3])
    rows = [("tiny", "1", "task a"), ("other", "5", "task b"), ("tiny", "2", "task c")]
    for name, version, task in rows:
        connection.execute(
            "INSERT INTO bundles (name, version, task, manifest, installed_at) VALUES (?, ?, ?, ?, 0)",
            (name, version, task, bytes(32)),
        )
    connection.close()
    async with Ledger(state, Registry()) as ledger:
        listed = await ledger.read(
            lambda db: [*db.execute("SELECT name, version FROM bundles ORDER BY number")]
        )
        tasks = await ledger.read(
            lambda db: [*db.execute("SELECT name, task, active FROM bundle_tasks ORDER BY name")]
        )
    assert listed == [("tiny", "1"), ("other", "5"), ("tiny", "2")]
    assert tasks == [("other", "task b", "5"), ("tiny", "task a", "1")]
