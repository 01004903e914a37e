"""Where exports land: whole, for their user alone, and never outside of the target."""

import os
import stat
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.datasets.interchange.landing import land
from appliance.errors import Conflict, InvalidInput, StorageFailed
from tests.datasets import tar, untar

FILES = {"a/1.jpg": b"1" * 1000, "a/b/2.jpg": b"", "c.json": b"{}"}
ENDINGS = ("", ".tar", ".zip")


async def pieces(whole: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(whole), 700):
        yield whole[start : start + 700]


async def landed(whole: bytes, target: Path) -> int:
    return (await land(pieces(whole), target, lambda files, size: None)).files


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def found(target: Path) -> dict[str, bytes]:
    if target.suffix == ".tar":
        return untar(target.read_bytes())
    if target.suffix == ".zip":
        with zipfile.ZipFile(target) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    files = [path for path in target.rglob("*") if path.is_file()]
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_everything_is_there_for_its_user_alone(tmp_path: Path, ending: str) -> None:
    before = os.umask(0)
    try:
        target = tmp_path / f"target{ending}"
        assert await landed(tar(FILES), target) == 3
    finally:
        os.umask(before)
    assert found(target) == FILES
    for path in (target, *target.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert names(tmp_path) == [target.name]


@pytest.mark.parametrize("ending", ENDINGS)
async def test_what_is_left_out_is_told_and_stays_in_it(tmp_path: Path, ending: str) -> None:
    files = {**FILES, "LEFT_OUT.csv": b'image,reason\na/3.jpg,damaged\n"a,""b"".jpg",deleted\n'}
    target = tmp_path / f"target{ending}"
    one = await land(pieces(tar(files)), target, lambda files, size: None)
    assert (one.files, one.left_out) == (4, [("a/3.jpg", "damaged"), ('a,"b".jpg', "deleted")])
    assert found(target) == files


@pytest.mark.parametrize("ending", ENDINGS)
async def test_one_that_breaks_off_leaves_nothing(tmp_path: Path, ending: str) -> None:
    with pytest.raises(InvalidInput, match="breaks off"):
        await landed(tar(FILES)[:1200], tmp_path / f"target{ending}")
    assert names(tmp_path) == []


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("partial", ["", ".partial"])
async def test_what_is_there_stays(tmp_path: Path, ending: str, partial: str) -> None:
    present = tmp_path / f"target{ending}{partial}"
    present.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="exists already"):
        await landed(tar(FILES), tmp_path / f"target{ending}")
    assert names(tmp_path) == [present.name]


async def test_nothing_is_written_outside(tmp_path: Path) -> None:
    for name in ("../x", "/tmp/x", "a/../../x"):
        with pytest.raises(InvalidInput):
            await landed(tar({name: b"x"}), tmp_path / "target")
    assert names(tmp_path) == []


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_name_as_long_as_names_may_be(tmp_path: Path, ending: str) -> None:
    target = tmp_path / ("x" * (255 - len(ending)) + ending)
    assert await landed(tar(FILES), target) == 3
    assert found(target) == FILES
    assert names(tmp_path) == [target.name]
    with pytest.raises(StorageFailed, match="too long"):
        await landed(tar(FILES), tmp_path / ("x" * 256 + ending))


async def test_the_root_is_there_already() -> None:
    with pytest.raises(Conflict, match="/ exists already"):
        await landed(tar(FILES), Path("/"))
