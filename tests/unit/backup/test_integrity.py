"""Every changed, missing or additional file of a backup is found and named; so is a wrong manifest."""

import asyncio
import hashlib
import shutil
from pathlib import Path

import pytest

from appliance.backup.contents import Header, Manifest
from appliance.backup.integrity import compare
from appliance.errors import BackupInvalid
from tests.backing import Shelf, proven, put_back
from tests.storing import ACTOR, stand


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("original")

    async def make() -> Shelf:
        shelf = Shelf.under(folder)
        async with stand(folder) as opened:
            for name in ("Summer", "Winter"):
                dataset = await opened.datasets.add(ACTOR, await opened.customer(), name)
                for number in range(2):
                    await opened.store.put(ACTOR, dataset, f"{name} {number} ".encode() * 3000)
            await shelf.take(opened)
        return shelf

    return asyncio.run(make())


@pytest.fixture
def backup(shelf: Shelf, tmp_path: Path) -> Path:
    (made,) = shelf.backups.iterdir()
    shutil.copytree(made, tmp_path / made.name)
    return tmp_path / made.name


@pytest.fixture
def keyring(shelf: Shelf) -> Path:
    return next(shelf.keyrings.glob("keyring-*"))


def files(backup: Path) -> list[Path]:
    return sorted(path for path in backup.rglob("*") if path.is_file() and path.name != "manifest")


def problems(backup: Path, keyring: Path) -> list[str]:
    """What is found with the keyring; without, the same files must be named."""
    with pytest.raises(BackupInvalid) as refused:
        proven(backup, keyring)
    assert {text.split(": ")[0] for text in compare(backup)} == {
        text.split(": ")[0] for text in refused.value.problems
    }
    return refused.value.problems


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_an_untouched_backup_has_no_problems(backup: Path, keyring: Path) -> None:
    assert compare(backup) == []
    assert len(files(backup)) == 6
    assert proven(backup, keyring).files == 6


def test_every_changed_file_is_named(backup: Path, keyring: Path) -> None:
    for path in files(backup):
        before = path.read_bytes()
        for offset in (0, len(before) // 2, len(before) - 1):
            flip(path, offset)
            assert problems(backup, keyring) == [f"{path}: changed"]
            path.write_bytes(before)
        for longer in (before[:-1], before + b"x", b""):
            path.write_bytes(longer)
            assert problems(backup, keyring) == [
                f"{path}: changed: it has {len(longer)} bytes instead of {len(before)}"
            ]
        path.write_bytes(before)
    for path in files(backup):
        flip(path, 100)
    assert problems(backup, keyring) == [f"{path}: changed" for path in _listed(backup)]


def _listed(backup: Path) -> list[Path]:
    return [backup / entry.path for entry in Manifest(backup).entries()]


def test_every_missing_file_is_named(backup: Path, keyring: Path) -> None:
    for path in files(backup):
        before = path.read_bytes()
        path.unlink()
        assert problems(backup, keyring) == [f"{path}: missing"]
        path.write_bytes(before)


def test_every_additional_file_is_named(backup: Path, keyring: Path) -> None:
    (backup / "images" / "more").mkdir()
    more = [backup / "images" / "more" / "x", backup / "notes.txt", backup / "images" / ("0" * 32)]
    for path in more:
        path.write_bytes(b"")
    assert sorted(problems(backup, keyring)) == sorted(f"{path}: not of this backup" for path in more)


def test_files_that_changed_places_are_named(backup: Path, keyring: Path) -> None:
    first, second, *_ = [path for path in files(backup) if "images" in path.parts]
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert sorted(problems(backup, keyring)) == [f"{first}: changed", f"{second}: changed"]


def test_a_link_in_place_of_a_file_is_not_followed(backup: Path, keyring: Path, tmp_path: Path) -> None:
    path = files(backup)[0]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    (problem,) = problems(backup, keyring)
    assert problem.startswith(f"{path}: ")


def test_a_changed_manifest_is_refused(backup: Path, keyring: Path) -> None:
    manifest = backup / "manifest"
    before = manifest.read_bytes()
    lines = before.splitlines(keepends=True)
    for changed in (
        b"",
        before[:-1],
        before + b"x\n",
        b"".join(lines[:-1]),
        b"".join([*lines[:2], *lines[3:]]),
        b"".join([*lines[:3], lines[4], lines[3], *lines[5:]]),
        before.replace(b'"images":4', b'"images":5'),
        before.replace(b"backup 1", b"backup 2"),
        before[:-2] + (b"0" if before[-2:-1] != b"0" else b"1") + b"\n",
    ):
        manifest.write_bytes(changed)
        with pytest.raises(BackupInvalid):
            proven(backup, keyring)
    # With digests made to fit, as whoever can write the medium would do it.
    path = files(backup)[0]
    (line,) = [line for line in lines if line.endswith(f" {path.relative_to(backup)}\n".encode())]
    flip(path, 100)
    fitting = hashlib.sha256(path.read_bytes()).hexdigest().encode() + line[64:]
    manifest.write_bytes(before.replace(line, fitting))
    assert compare(backup) == []
    with pytest.raises(BackupInvalid, match="changed"):
        proven(backup, keyring)


def test_another_name_is_told(backup: Path, keyring: Path) -> None:
    moved = backup.rename(backup.with_name("20200101T000000Z-1"))
    with pytest.raises(BackupInvalid, match="the folder was given another name"):
        proven(moved, keyring)
    with pytest.raises(BackupInvalid, match="not the folder of a backup"):
        proven(moved.rename(moved.with_name("yesterday")), keyring)


def test_a_newer_versions_backup_is_told(backup: Path, keyring: Path) -> None:
    manifest = backup / "manifest"
    header = Manifest(backup).header
    assert isinstance(header, Header)
    text = manifest.read_bytes().replace(f'"schema":{header.schema}'.encode(), b'"schema":999')
    manifest.write_bytes(text)
    with pytest.raises(BackupInvalid, match="made by a newer version"):
        proven(backup, keyring)


async def test_nothing_is_restored_from_what_is_not_whole(
    backup: Path, keyring: Path, tmp_path: Path
) -> None:
    for path in await asyncio.to_thread(files, backup):
        before = await asyncio.to_thread(path.read_bytes)
        await asyncio.to_thread(flip, path, len(before) // 2)
        with pytest.raises(BackupInvalid, match="changed"):
            await put_back(backup, keyring, tmp_path / "state")
        assert await asyncio.to_thread(lambda: list((tmp_path / "state").iterdir())) == []
        await asyncio.to_thread(path.write_bytes, before)
