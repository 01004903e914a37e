"""What uploads must leave free, and the ballast that a deletion gets back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import VolumeFull, VolumeOffline
from appliance.volume import DataFolder, HeldFolder, Space, VolumeFacts
from appliance.volume.space import BALLAST

FACTS = VolumeFacts(Path("/data"), "ext4", "luks", False, 1 << 40, 1 << 41, 1 << 20)
MIB = 1 << 20


class Disk:
    """A volume of 1000 MiB of which the test says how much is free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 500 * MIB
        self.full = False
        real, allocate = os.fstatvfs, os.posix_fallocate

        def statvfs(fd: int) -> os.statvfs_result:
            values = list(real(fd))
            values[1:5] = [4096, 1000 * MIB // 4096, self.free // 4096 + 7, self.free // 4096]
            return os.statvfs_result(values)

        def fallocate(fd: int, offset: int, length: int) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            allocate(fd, offset, length)
            self.free -= length

        monkeypatch.setattr(os, "fstatvfs", statvfs)
        monkeypatch.setattr(os, "posix_fallocate", fallocate)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    with DataFolder(tmp_path / "images", encrypted=True, facts=lambda _: FACTS) as folder:
        yield folder


@pytest.fixture
def state(tmp_path: Path) -> Iterator[HeldFolder]:
    held = HeldFolder(tmp_path)
    yield held
    held.close()


def test_the_larger_reserve_counts(folder: DataFolder, disk: Disk) -> None:
    by_size = Space(folder, fraction=0.05, least_bytes=100 * MIB)
    by_fraction = Space(folder, fraction=0.2, least_bytes=100 * MIB)
    disk.free = 110 * MIB
    with by_size.room(10 * MIB):
        pass
    with (
        pytest.raises(VolumeFull, match=r"110 MiB are free .* less than 100 MiB"),
        by_size.room(10 * MIB + 1),
    ):
        pytest.fail("taken in")
    disk.free = 210 * MIB
    with by_fraction.room(10 * MIB):
        pass
    with pytest.raises(VolumeFull, match="less than 200 MiB"), by_fraction.room(11 * MIB):
        pytest.fail("taken in")


def test_the_reserve_of_a_large_server_is_20_gib_or_a_twentieth(folder: DataFolder, disk: Disk) -> None:
    with pytest.raises(VolumeFull, match="less than 20480 MiB"), Space(folder).room(1):
        pytest.fail("taken in")


def test_what_is_promised_counts_until_it_is_written(folder: DataFolder, disk: Disk) -> None:
    space = Space(folder, least_bytes=100 * MIB)
    disk.free = 120 * MIB
    with space.room(15 * MIB):
        with pytest.raises(VolumeFull), space.room(6 * MIB):
            pytest.fail("taken in")
        with space.room(5 * MIB):
            pass
    with pytest.raises(ValueError, match="broken off"), space.room(20 * MIB):
        raise ValueError("broken off")
    with space.room(20 * MIB):
        pass


def test_the_last_of_a_volume_is_kept_for_deletions(folder: DataFolder, disk: Disk) -> None:
    space = Space(folder, least_bytes=100 * MIB)
    disk.free = 16 * MIB
    space.check_some()
    disk.free -= 4096
    with pytest.raises(VolumeFull, match="nothing is taken in, only deleted"):
        space.check_some()


def test_an_offline_volume_has_no_room(folder: DataFolder, disk: Disk) -> None:
    folder.poison("a test says so")
    space = Space(folder, least_bytes=0)
    for call in (space.release_ballast, space.restore_ballast, space.before_deletion):
        with pytest.raises(VolumeOffline):
            call()
    with pytest.raises(VolumeOffline), space.room(1):
        pytest.fail("taken in")


def test_the_ballast_is_really_there_and_given_back(folder: DataFolder, tmp_path: Path, disk: Disk) -> None:
    space = Space(folder, ballast_bytes=2 * MIB)
    file = tmp_path / "images" / BALLAST
    assert not space.release_ballast()
    assert space.restore_ballast()
    assert file.stat().st_blocks * 512 >= 2 * MIB
    assert file.stat().st_size == 2 * MIB
    before = file.stat().st_ino
    assert space.restore_ballast()
    assert file.stat().st_ino == before
    assert space.release_ballast()
    assert not file.exists()


def test_what_is_said_of_the_ballast_is_durable(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    made: list[str] = []
    calls = {name: getattr(os, name) for name in ("fsync", "rename", "unlink")}

    def sync(fd: int) -> None:
        made.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        calls["fsync"](fd)

    def rename(*names: str, **folders: int) -> None:
        calls["rename"](*names, **folders)
        made.append("rename")

    def unlink(name: str, *, dir_fd: int) -> None:
        calls["unlink"](name, dir_fd=dir_fd)
        made.append(f"unlink {name}")

    for each in (rename, unlink):
        monkeypatch.setattr(os, each.__name__, each)
    monkeypatch.setattr(os, "fsync", sync)
    space = Space(folder, ballast_bytes=MIB)
    space.restore_ballast()
    assert made == ["sync .ballast.draft", "rename", "sync images"]
    made.clear()
    space.release_ballast()
    assert made == ["unlink .ballast", "sync images"]


def test_a_deletion_gets_the_ballast_only_where_space_is_scarce(folder: DataFolder, disk: Disk) -> None:
    space = Space(folder, ballast_bytes=2 * MIB)
    space.restore_ballast()
    disk.free = 2 * MIB
    assert not space.before_deletion()
    disk.free = 2 * MIB - 4096
    assert space.before_deletion()
    assert not space.before_deletion()


def test_a_ballast_that_is_spent_is_told_until_it_is_back(folder: DataFolder, disk: Disk) -> None:
    space = Space(folder, ballast_bytes=2 * MIB)
    assert space.restore_ballast()
    assert space.shortage() is None
    disk.free = MIB
    assert space.before_deletion()
    assert "1 MiB are free" in (space.shortage() or "")
    disk.free = 3 * MIB
    assert not space.restore_ballast()
    assert "it comes back when 4 MiB are" in (space.shortage() or "")
    disk.free = 4 * MIB
    disk.full = True
    with pytest.raises(VolumeFull):
        space.restore_ballast()
    assert space.shortage() is not None
    disk.full = False
    assert space.restore_ballast()
    assert space.shortage() is None


def test_the_ballast_does_not_fill_the_volume_again(folder: DataFolder, tmp_path: Path, disk: Disk) -> None:
    space = Space(folder, ballast_bytes=2 * MIB)
    disk.free = 4 * MIB - 4096
    assert not space.restore_ballast()
    assert not (tmp_path / "images" / BALLAST).exists()
    disk.free = 4 * MIB
    assert space.restore_ballast()


def test_a_ballast_of_another_size_is_made_anew(folder: DataFolder, tmp_path: Path, disk: Disk) -> None:
    file = tmp_path / "images" / BALLAST
    assert Space(folder, ballast_bytes=3 * MIB).restore_ballast()
    disk.free = 0
    assert Space(folder, ballast_bytes=MIB).restore_ballast()
    assert file.stat().st_size == MIB


def test_a_ballast_that_does_not_fit_leaves_nothing(folder: DataFolder, tmp_path: Path, disk: Disk) -> None:
    space = Space(folder, ballast_bytes=2 * MIB)
    before = sorted((tmp_path / "images").iterdir())
    disk.full = True
    with pytest.raises(VolumeFull):
        space.restore_ballast()
    assert sorted((tmp_path / "images").iterdir()) == before
    (tmp_path / "images" / ".ballast.draft").write_bytes(b"left by a crash")
    disk.full = False
    assert space.restore_ballast()
    assert sorted((tmp_path / "images").iterdir()) == sorted([*before, tmp_path / "images" / BALLAST])


def test_folders_on_one_volume_have_one_ballast(
    folder: DataFolder, state: HeldFolder, tmp_path: Path, disk: Disk
) -> None:
    Space(folder, ballast_bytes=MIB).restore_ballast()
    space = Space(state, least_bytes=0, ballast_bytes=2 * MIB)
    assert space.on(folder) is space
    assert space.restore_ballast()
    assert (tmp_path / BALLAST).stat().st_size == 2 * MIB
    assert not (tmp_path / "images" / BALLAST).exists()


def test_a_folder_on_a_volume_of_its_own_has_its_ballast_and_that_of_the_ledger(
    folder: DataFolder, state: HeldFolder, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        values = list(real(fd))
        if Path(f"/proc/self/fd/{fd}").readlink() == tmp_path / "images":
            values[2] += 1  # st_dev
        return os.stat_result(values)

    ballasts = [tmp_path / BALLAST, tmp_path / "images" / BALLAST]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        space = Space(state, least_bytes=100 * MIB, ballast_bytes=2 * MIB).on(folder)
    assert space.restore_ballast()
    assert [ballast.exists() for ballast in ballasts] == [True, True]
    disk.free = 0
    with pytest.raises(VolumeFull, match="less than 100 MiB"), space.room(1):
        pytest.fail("taken in")
    assert space.before_deletion()
    assert [ballast.exists() for ballast in ballasts] == [False, False]


def test_the_ballast_stays_in_the_folder_that_is_held(tmp_path: Path, disk: Disk) -> None:
    place, aside = tmp_path / "state", tmp_path / "aside"
    place.mkdir()
    held = HeldFolder(place)
    try:
        place.rename(aside)
        place.mkdir()
        assert Space(held, ballast_bytes=MIB).restore_ballast()
        assert [path.name for path in aside.iterdir()] == [BALLAST]
        assert list(place.iterdir()) == []
        assert Space(held, ballast_bytes=MIB).release_ballast()
    finally:
        held.close()


def test_a_held_folder_that_is_full_says_so_and_keeps_nothing(
    state: HeldFolder, tmp_path: Path, disk: Disk
) -> None:
    disk.full = True
    with pytest.raises(VolumeFull, match="No space left"):
        Space(state, ballast_bytes=MIB).restore_ballast()
    assert list(tmp_path.iterdir()) == []
