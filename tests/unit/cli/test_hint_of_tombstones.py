"""Which tombstones a restore is told to take, where it was given none."""

from pathlib import Path

from appliance.cli.backups import _which_tombstones


def test_the_newest_end_at_the_highest_entry_whatever_the_clock_said(tmp_path: Path) -> None:
    for name in ("20260101T000000Z-9", "20300101T000000Z-10", "20260301T000000Z-100"):
        (tmp_path / f"tombstones-{name}").touch()
    hint = _which_tombstones(tmp_path / "keyring-20260101T000000Z-9")
    assert f"such as {tmp_path}/tombstones-20260301T000000Z-100" in hint
    assert "such as" not in _which_tombstones(tmp_path / "elsewhere" / "keyring-20260101T000000Z-9")
