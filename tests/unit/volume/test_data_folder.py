"""The guarded way to stored images: what opens, what takes it offline, what brings it back, what poisons."""

import errno
import os
import timeit
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import StorageFailed, VolumeFull, VolumeOffline
from appliance.volume import DataFolder, Encryption, NotAtHand, VolumeFacts
from appliance.volume.anchor import PROBE, SENTINEL

LUKS = VolumeFacts(Path("/data"), "ext4", "luks", False, 1 << 40, 1 << 41, 1 << 20)


class Volume:
    """What the walk to the devices finds; a test changes it, or has something happen during the walk."""

    def __init__(self) -> None:
        self.facts = LUKS
        self.during: Callable[[], None] = lambda: None

    def __call__(self, path: Path) -> VolumeFacts:
        during, self.during = self.during, lambda: None
        during()
        return self.facts


@pytest.fixture
def volume() -> Volume:
    return Volume()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def folder(path: Path, volume: Volume) -> DataFolder:
    folder = DataFolder(path, encrypted=True, facts=volume)
    folder.open()
    return folder


def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> list[int]:
    """Have an `os` call fail with this errno; the list grows by one for each call."""
    calls: list[int] = []

    def fail(*args: object, **kwargs: object) -> None:
        calls.append(number)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    return calls


def swap(path: Path) -> Path:
    """Replace the folder by another with the same sentinel; where the first one is now."""
    moved = path.with_name("moved")
    path.rename(moved)
    path.mkdir()
    (path / SENTINEL).write_bytes((moved / SENTINEL).read_bytes())
    return moved


def swap_back(path: Path) -> None:
    (path / SENTINEL).unlink()
    path.rmdir()
    path.with_name("moved").rename(path)


def test_a_folder_is_made_once_and_known_again(path: Path, volume: Volume) -> None:
    with DataFolder(path, encrypted=True, facts=volume) as first:
        assert first.condition.state == "ready"
        assert len(first.id) == 32
        assert path.stat().st_mode & 0o777 == 0o700
        assert (path / SENTINEL).read_text() == first.id + "\n"
        assert first.facts == LUKS
    with DataFolder(path, encrypted=True, expected=first.id, facts=volume) as again:
        assert again.id == first.id
    assert sorted(found.name for found in path.iterdir()) == [PROBE, SENTINEL]


def test_the_sentinel_is_durable_before_it_has_its_name(
    path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    fsync, rename = os.fsync, os.rename

    def sync(fd: int) -> None:
        made.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def renamed(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        made.append(f"name {target}")
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", renamed)
    DataFolder(path, encrypted=True, facts=volume).open()
    assert made == [path.parent.name, ".volume.draft", f"name {SENTINEL}", "images", PROBE]


@pytest.mark.parametrize("encryption", ["plain", "unknown", "volatile", "dm-crypt"])
def test_only_luks_opens_where_encryption_is_demanded(
    path: Path, volume: Volume, encryption: Encryption
) -> None:
    volume.facts = replace(LUKS, encryption=encryption)
    folder = DataFolder(path, encrypted=True, facts=volume)
    with pytest.raises(VolumeOffline, match=f"/data \\(ext4\\), which is {encryption}: .*LUKS"):
        folder.open()
    assert not path.exists()
    assert folder.condition.state == "closed"
    with DataFolder(path, encrypted=False, facts=volume) as demo:
        assert demo.condition.state == "ready"
        assert demo.facts == volume.facts


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_read_only_volume_does_not_open(path: Path, volume: Volume, encrypted: bool) -> None:
    volume.facts = replace(LUKS, read_only=True)
    with pytest.raises(VolumeOffline, match="read-only"):
        DataFolder(path, encrypted=encrypted, facts=volume).open()
    assert not path.exists()


def test_another_volume_than_the_expected_does_not_open(path: Path, volume: Volume) -> None:
    expected = "0" * 32
    with pytest.raises(VolumeOffline, match=rf"\.volume is missing: {expected} is expected"):
        DataFolder(path, encrypted=True, expected=expected, facts=volume).open()
    assert not (path / SENTINEL).exists()
    with DataFolder(path, encrypted=True, facts=volume) as made, pytest.raises(VolumeOffline, match=made.id):
        DataFolder(path, encrypted=True, expected=expected, facts=volume).open()


def test_a_damaged_sentinel_does_not_open(path: Path, volume: Volume) -> None:
    path.mkdir()
    (path / SENTINEL).write_text("0123\n")
    with pytest.raises(VolumeOffline, match="damaged"):
        DataFolder(path, encrypted=True, facts=volume).open()


def test_a_folder_that_is_replaced_while_it_is_examined_does_not_open(path: Path, volume: Volume) -> None:
    with DataFolder(path, encrypted=True, facts=volume):
        pass

    def replaced() -> None:
        swap(path)

    def at_the_second_walk() -> None:
        volume.during = replaced

    volume.during = at_the_second_walk
    with pytest.raises(VolumeOffline, match="replaced while it was examined"):
        DataFolder(path, encrypted=True, facts=volume).open()


def test_what_fails_to_open_holds_nothing(path: Path, volume: Volume) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    path.mkdir()
    (path / SENTINEL).write_text("0123\n")
    for _ in range(3):
        with pytest.raises(VolumeOffline):
            DataFolder(path, encrypted=True, facts=volume).open()
    path.joinpath(SENTINEL).unlink()

    def turn_plain() -> None:
        volume.facts = replace(LUKS, encryption="plain")

    def turn_plain_at_the_second_walk() -> None:
        volume.during = turn_plain

    volume.during = turn_plain_at_the_second_walk
    with pytest.raises(VolumeOffline, match="which is plain"):
        DataFolder(path, encrypted=True, facts=volume).open()
    volume.facts = LUKS
    with DataFolder(path, encrypted=True, facts=volume) as folder:
        folder.recheck()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_missing_parent_is_a_storage_error(tmp_path: Path, volume: Volume) -> None:
    with pytest.raises(StorageFailed, match="No such file"):
        DataFolder(tmp_path / "absent" / "images", encrypted=True, facts=volume).open()


def test_nothing_is_given_out_before_open_and_after_close(path: Path, volume: Volume) -> None:
    folder = DataFolder(path, encrypted=True, facts=volume)
    for _ in range(2):
        assert folder.condition.state == "closed"
        with pytest.raises(VolumeOffline, match=r"is not open|is closed"):
            folder.check()
        with pytest.raises(VolumeOffline), folder.writing():
            pytest.fail("given out")
        assert folder.recheck().state == "closed"
        folder.open()
        folder.close()


def test_a_replaced_folder_is_offline_until_a_recheck_finds_the_first_one(
    folder: DataFolder, path: Path
) -> None:
    folder.check()
    moved = swap(path)
    with pytest.raises(VolumeOffline, match="leads to another folder"):
        folder.check()
    assert folder.condition.state == "offline"
    assert folder.recheck().state == "offline"
    assert moved.exists()
    swap_back(path)
    with pytest.raises(VolumeOffline, match="leads to another folder"):
        folder.check()
    assert folder.recheck().state == "ready"
    folder.check()
    assert folder.fault is None


def test_a_folder_that_is_gone_is_offline(folder: DataFolder, path: Path) -> None:
    path.rename(path.with_name("moved"))
    for way in (folder.reading, folder.writing):
        with pytest.raises(VolumeOffline, match="No such file"), way():
            pytest.fail("given out")


@pytest.mark.parametrize("what", ["removed", "another", "link", "pipe", "folder"])
def test_a_folder_without_its_sentinel_is_offline(folder: DataFolder, path: Path, what: str) -> None:
    sentinel = path / SENTINEL
    content = sentinel.read_bytes()
    sentinel.unlink()
    if what == "another":
        sentinel.write_text("0" * 32 + "\n")
    elif what == "link":
        (path / "elsewhere").write_bytes(content)
        sentinel.symlink_to("elsewhere")
    elif what == "pipe":
        os.mkfifo(sentinel)
    elif what == "folder":
        sentinel.mkdir()
    with pytest.raises(VolumeOffline):
        folder.check()
    assert folder.recheck().state == "offline"
    sentinel.rmdir() if what == "folder" else sentinel.unlink(missing_ok=True)
    assert folder.recheck().state == "offline"
    assert not sentinel.exists()
    sentinel.write_bytes(content)
    assert folder.recheck().state == "ready"


def test_a_path_by_a_link_is_followed_and_watched(tmp_path: Path, volume: Volume) -> None:
    real, other, link = tmp_path / "real", tmp_path / "other", tmp_path / "link"
    real.mkdir()
    other.mkdir()
    link.symlink_to(real)
    with DataFolder(link, encrypted=True, facts=volume) as folder:
        folder.check()
        link.unlink()
        link.symlink_to(other)
        with pytest.raises(VolumeOffline):
            folder.check()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_what_this_process_lacks_is_no_fault_of_the_volume(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "open", number)
        with pytest.raises(StorageFailed) as caught:
            folder.check()
        assert not isinstance(caught.value, VolumeOffline)
        assert folder.recheck().state == "ready"
    folder.check()


def test_a_failed_sync_poisons_and_is_not_tried_again(
    folder: DataFolder, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        tried = failing(patch, "fsync", errno.ENOSPC)  # delayed allocation: not merely full
        with pytest.raises(VolumeOffline, match="a sync failed: No space left"), folder.writing() as fd:
            folder.sync(fd)
        with pytest.raises(VolumeOffline, match="until a restart"):
            folder.sync(fd)
        assert folder.recheck().state == "poisoned"
        assert len(tried) == 1
    assert folder.recheck().state == "poisoned"
    with pytest.raises(VolumeOffline, match="No space left"), folder.reading():
        pytest.fail("given out")
    volume.during = lambda: pytest.fail("a poisoned volume is examined")
    folder.recheck()
    folder.poison("another reason")
    folder.close()
    assert folder.condition.state == "poisoned"
    assert "No space left" in (folder.fault or "")


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.ENODEV])
def test_a_write_that_the_medium_refuses_poisons(folder: DataFolder, number: int) -> None:
    with pytest.raises(VolumeOffline, match="a write failed"), folder.writing():
        raise OSError(number, os.strerror(number))
    assert folder.recheck().state == "poisoned"


def test_a_full_volume_is_no_fault(folder: DataFolder) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(VolumeFull), folder.writing():
            raise OSError(number, os.strerror(number))
    assert folder.condition.state == "ready"


def test_a_filesystem_that_turns_read_only_is_offline_while_it_is(folder: DataFolder) -> None:
    with pytest.raises(VolumeOffline, match="read-only"), folder.writing():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert folder.condition.state == "offline"
    assert folder.recheck().state == "ready"


def test_errors_of_others_pass(folder: DataFolder) -> None:
    for error in (ConnectionResetError(errno.ECONNRESET, "reset"), FileNotFoundError(), ValueError("x")):
        for way in (folder.writing, folder.reading):
            with pytest.raises(type(error)) as caught, way():
                raise error
            assert caught.value is error
    assert folder.condition.state == "ready"


def test_one_bad_sector_costs_one_read(folder: DataFolder) -> None:
    with pytest.raises(StorageFailed, match="a read failed") as caught, folder.reading():
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(caught.value, VolumeOffline)
    assert folder.condition.state == "ready"


def test_a_dead_disk_poisons_at_a_read(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(VolumeOffline, match="a sync failed"), folder.reading():
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert folder.condition.state == "poisoned"


def test_a_recheck_follows_the_mapping(folder: DataFolder, volume: Volume) -> None:
    volume.facts = replace(LUKS, encryption="plain")
    assert folder.recheck(write=False).state == "offline"
    assert "which is plain" in (folder.fault or "")
    volume.facts = replace(LUKS, free_bytes=5)
    assert folder.recheck(write=False).state == "ready"
    assert folder.facts == volume.facts


@pytest.mark.parametrize("error", [StorageFailed("no such mount"), ValueError("odd"), PermissionError()])
def test_what_cannot_be_examined_is_offline(folder: DataFolder, volume: Volume, error: Exception) -> None:
    def fail() -> None:
        raise error

    volume.during = fail
    assert folder.recheck().state == "offline"
    assert folder.recheck().state == "ready"


def test_a_medium_that_fails_under_a_recheck_poisons(folder: DataFolder, volume: Volume) -> None:
    def fail() -> None:
        raise StorageFailed("it cannot be examined") from OSError(errno.EIO, os.strerror(errno.EIO))

    volume.during = fail
    assert folder.recheck().state == "poisoned"


def test_it_comes_back_only_with_a_durable_write(
    folder: DataFolder, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = volume.facts
    volume.facts = replace(LUKS, encryption="unknown")
    folder.recheck(write=False)
    volume.facts = probe
    with monkeypatch.context() as patch:
        failing(patch, "pwrite", errno.EROFS)
        assert folder.recheck(write=False).state == "offline"
    assert folder.recheck(write=False).state == "ready"


def test_a_recheck_writes_only_when_it_shall(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = failing(monkeypatch, "fsync", errno.EIO)
    assert folder.recheck(write=False).state == "ready"
    assert synced == []
    assert folder.recheck().state == "poisoned"
    assert len(synced) == 1


def test_a_full_volume_passes_the_recheck(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "pwrite", errno.ENOSPC)
    assert folder.recheck().state == "ready"


def test_a_loss_during_a_recheck_is_not_forgotten(folder: DataFolder, path: Path, volume: Volume) -> None:
    def lose() -> None:
        swap(path)
        with pytest.raises(VolumeOffline):
            folder.check()
        swap_back(path)

    volume.during = lose
    assert folder.recheck().state == "offline"
    assert folder.recheck().state == "ready"


def test_a_recheck_that_hangs_is_offline_until_it_ends(path: Path, volume: Volume) -> None:
    now = 100.0
    folder = DataFolder(path, encrypted=True, facts=volume, silent_seconds=30, clock=lambda: now)
    folder.open()

    def hang() -> None:
        nonlocal now
        now += 30
        folder.check()
        now += 1
        assert folder.condition.state == "offline"
        with pytest.raises(VolumeOffline, match="has not answered for 30 s"):
            folder.check()

    volume.during = hang
    assert folder.recheck().state == "ready"
    assert now == 131.0
    folder.check()


def test_close_waits_for_no_recheck(folder: DataFolder, volume: Volume) -> None:
    volume.during = folder.close
    assert folder.recheck().reason == f"{folder._path} is closed"
    assert folder._fd >= 0
    folder.close()
    assert folder._fd < 0


def test_a_subfolder_is_durable_before_it_is_used(
    folder: DataFolder, path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def sync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    for _ in range(2):
        with folder.writing() as fd, folder.subfolder(fd, "ab", create=True):
            assert synced == ["images"]
    assert (path / "ab").stat().st_mode & 0o777 == 0o700
    with DataFolder(path, encrypted=True, facts=volume) as again, again.writing() as fd:
        synced.clear()  # a name that a crash left may not be durable
        with again.subfolder(fd, "ab", create=True):
            assert synced == ["images"]
        (path / "ab").rmdir()
        with again.subfolder(fd, "ab", create=True):
            assert synced == ["images", "images"]


def test_a_subfolder_is_a_folder_right_here(folder: DataFolder, path: Path) -> None:
    (path / "link").symlink_to("/tmp")
    with folder.reading() as fd:
        for name in ("", ".", "..", "a/b"):
            with pytest.raises(ValueError, match="not the name"), folder.subfolder(fd, name):
                pytest.fail("given out")
        with pytest.raises(NotADirectoryError), folder.subfolder(fd, "link"):
            pytest.fail("given out")
        with pytest.raises(FileNotFoundError), folder.subfolder(fd, "absent"):
            pytest.fail("given out")
    assert folder.condition.state == "ready"


def test_a_check_costs_microseconds(folder: DataFolder) -> None:
    assert min(timeit.repeat(folder.check, number=200, repeat=20)) / 200 < 30e-6


def test_what_is_in_place_is_told_without_waiting(folder: DataFolder, path: Path) -> None:
    with folder.reading() as top:  # the kernel has it in memory from here on
        assert folder.at_hand() == top


def test_what_is_not_in_place_is_not_at_hand(folder: DataFolder, path: Path) -> None:
    moved = swap(path)
    with pytest.raises(NotAtHand):
        folder.at_hand()
    assert folder.fault is None  # whoever waits tells what it is
    swap_back(path)
    sentinel = path / SENTINEL
    content = sentinel.read_bytes()
    for other in (content[::-1], content + b"x", b""):
        sentinel.write_bytes(other)
        with pytest.raises(NotAtHand):
            folder.at_hand()
    sentinel.unlink()
    with pytest.raises(NotAtHand):
        folder.at_hand()
    folder.poison("gone")
    with pytest.raises(VolumeOffline, match="gone"):
        folder.at_hand()
    assert not moved.exists()
