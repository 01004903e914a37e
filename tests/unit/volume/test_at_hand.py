"""What is in memory is opened and read at once; for anything else the caller is told to wait elsewhere."""

import os
from pathlib import Path

import pytest

from appliance.volume import NotAtHand, open_at_hand, read_at_hand

FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOATIME


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("inside/file")
    return tmp_path


def test_what_was_just_written_is_at_hand(folder: Path) -> None:
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fd = open_at_hand("inside/file", FLAGS, top)
    try:
        assert os.fstat(fd) == (folder / "inside" / "file").stat()
        assert not os.get_inheritable(fd)
        assert os.pread(fd, 100, 0) == b"0123456789"
        try:
            assert read_at_hand(fd, 4, 3) == b"3456"
        except NotAtHand:  # a filesystem that cannot tell, such as a tmpfs of an older kernel
            with pytest.raises(OSError, match="supported"):
                os.preadv(fd, [bytearray(4)], 3, os.RWF_NOWAIT)
    finally:
        os.close(fd)
        os.close(top)


def test_what_is_not_there_is_not_at_hand(folder: Path) -> None:
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fd = os.open(folder / "inside" / "file", FLAGS)
    try:
        with pytest.raises((FileNotFoundError, NotAtHand)):
            open_at_hand("inside/nothing", FLAGS, top)
        for other in ("inside/file/deeper", "link"):
            with pytest.raises(NotAtHand):
                open_at_hand(other, FLAGS, top)
        with pytest.raises(NotAtHand):  # fewer than asked for: whoever waits for the disk finds out why
            read_at_hand(fd, 100, 0)
    finally:
        os.close(fd)
        os.close(top)


def test_a_read_whose_time_is_noted_waits_elsewhere(folder: Path) -> None:
    """The kernel would wait for the journal, whatever it has in memory."""
    fd = os.open(folder / "inside" / "file", FLAGS & ~os.O_NOATIME)
    try:
        assert os.pread(fd, 100, 0) == b"0123456789"
        with pytest.raises(NotAtHand):
            read_at_hand(fd, 4, 3)
    finally:
        os.close(fd)
