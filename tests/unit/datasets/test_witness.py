"""What who has no key can read of the record beside the sealed files."""

from pathlib import Path

import pytest

from appliance.datasets.witness import WITNESS, Record, acknowledged
from appliance.vault import Keyring


def test_how_far_the_ledger_had_come_is_read_without_a_key(tmp_path: Path) -> None:
    keys = Keyring.create(tmp_path / "keyring", bytearray(range(32))).service
    assert acknowledged(tmp_path) is None
    (tmp_path / WITNESS).write_bytes(Record(acknowledged=1 << 40).sealed(keys))
    assert acknowledged(tmp_path) == 1 << 40


@pytest.mark.parametrize("cut", [0, 7, 20])
def test_what_is_cut_short_says_nothing(tmp_path: Path, cut: int) -> None:
    (tmp_path / WITNESS).write_bytes(bytes(cut))
    assert acknowledged(tmp_path) is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / WITNESS).symlink_to("/dev/zero")
    with pytest.raises(OSError, match="Too many levels"):
        acknowledged(tmp_path)
