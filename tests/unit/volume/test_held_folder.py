"""A held folder: what goes by its descriptor stays in it, and another folder under its path is told."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import StorageFailed, VolumeOffline
from appliance.volume import HeldFolder, write_atomically


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    return place


@pytest.fixture
def held(place: Path) -> Iterator[HeldFolder]:
    held = HeldFolder(place)
    yield held
    held.close()


def test_the_folder_that_was_opened_is_well(held: HeldFolder) -> None:
    held.check()


def test_another_folder_in_its_place_is_told_until_it_is_back(held: HeldFolder, place: Path) -> None:
    aside = place.rename(place.with_name("aside"))
    with pytest.raises(VolumeOffline, match=r"place: No such file .*mount its volume there again"):
        held.check()
    place.mkdir()
    with pytest.raises(VolumeOffline, match="another folder or filesystem"):
        held.check()
    place.rmdir()
    aside.rename(place)
    held.check()


def test_what_goes_by_the_descriptor_stays_in_the_folder(held: HeldFolder, place: Path) -> None:
    aside = place.rename(place.with_name("aside"))
    place.mkdir()
    write_atomically(place / "key", b"new", dir_fd=held.fd)
    assert [path.name for path in aside.iterdir()] == ["key"]
    assert list(place.iterdir()) == []


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="absent: No such file"):
        HeldFolder(tmp_path / "absent")
