"""Which tombstones a restore is told to take, where it was given none or old ones."""

from pathlib import Path

import pytest

from appliance.cli.backups import _require_newest, _which_tombstones
from appliance.cli.output import Refused


def test_the_newest_end_at_the_highest_entry_whatever_the_clock_said(tmp_path: Path) -> None:
    for name in ("20260101T000000Z-9", "20300101T000000Z-10", "20260301T000000Z-100"):
        (tmp_path / f"tombstones-{name}").touch()
    hint = _which_tombstones(tmp_path / "keyring-20260101T000000Z-9")
    assert f"such as {tmp_path}/tombstones-20260301T000000Z-100" in hint
    assert "such as" not in _which_tombstones(tmp_path / "elsewhere" / "keyring-20260101T000000Z-9")


def test_older_ones_than_those_beside_the_keyring_are_refused(tmp_path: Path) -> None:
    old, newest = (tmp_path / f"tombstones-{name}" for name in ("20300101T000000Z-9", "20260301T000000Z-100"))
    for path in (old, newest):
        path.touch()
    keyring = tmp_path / "keyring-20260101T000000Z-9"
    with pytest.raises(Refused, match=f"{newest.name} is newer than .*{old.name}"):
        _require_newest(old, keyring)
    for given in (newest, tmp_path / "elsewhere" / newest.name, tmp_path / "a copy of them"):
        _require_newest(given, keyring)
