"""A bundle that comes as a stream: refused at the first wrong piece, and nothing of it is left."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.errors import InvalidInput, StorageFailed
from appliance.recognition.manifest import MOST_FILES
from appliance.recognition.staging import Files, from_folder
from tests.unit.recognition.test_bundles import OPERATOR, make, names, opened

PIECE = b"x" * 65536


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


async def stream(files: list[tuple[str, bytes]]) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    for name, content in files:
        yield name, pieces(content)


def sent(folder: Path) -> list[tuple[str, bytes]]:
    return [
        (str(path.relative_to(folder)), path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> list[tuple[str, bytes]]:
    """A bundle that would be installed."""
    return sent(make(tmp_path / "new"))


async def refused(state: Path, files: Files, error: type[BaseException], reason: str) -> None:
    async with opened(state) as (installed, _):
        with pytest.raises(error, match=reason):
            await installed.install(OPERATOR, files)
        assert [*installed.list()] == []
        assert names(state / "bundles") == []


@pytest.mark.parametrize("backwards", [False, True])
async def test_files_come_in_any_order(
    bundle: list[tuple[str, bytes]], state: Path, *, backwards: bool
) -> None:
    async with opened(state) as (installed, _):
        made = await installed.install(OPERATOR, stream(bundle[::-1] if backwards else bundle))
    assert sent(made.folder) == bundle


@pytest.mark.parametrize(
    "name",
    [
        "../model.onnx",
        "licences/../model.onnx",
        "/etc/passwd",
        "licences/",
        "licences",
        "",
        ".",
        "model.onnx.data",
        "licences/deep/MIT.txt",
        "model.onnx\0",
        "licences/a\nb",
    ],
)
async def test_a_name_that_no_bundle_holds(bundle: list[tuple[str, bytes]], state: Path, name: str) -> None:
    await refused(state, stream([*bundle, (name, b"x")]), InvalidInput, "is not a file of a bundle")


async def test_a_name_that_comes_twice(bundle: list[tuple[str, bytes]], state: Path) -> None:
    await refused(state, stream([*bundle, bundle[-1]]), InvalidInput, f"{bundle[-1][0]} came twice")


async def test_more_files_than_a_bundle_holds(state: Path) -> None:
    async def endless() -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        for number in range(10 * MOST_FILES):
            assert number <= MOST_FILES, "read on after the last file that may come"
            yield f"licences/{number}.txt", pieces(b"x")

    await refused(state, endless(), InvalidInput, f"more than {MOST_FILES} files")


async def test_a_file_that_does_not_end(state: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for number in range(100):
            assert number <= 17, "read on after the last byte that may come"
            yield PIECE

    async def files() -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        yield "licences/MIT.txt", endless()

    await refused(state, files(), InvalidInput, r"licences/MIT\.txt has more than 1048576 bytes")


async def test_no_file_at_all(state: Path) -> None:
    await refused(state, stream([]), InvalidInput, r"bundle\.toml is missing")


@pytest.mark.parametrize("whole_files", [0, 1, 3])
async def test_a_stream_that_breaks_off(
    bundle: list[tuple[str, bytes]], state: Path, whole_files: int
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    async def files() -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        for name, content in bundle[:whole_files]:
            yield name, pieces(content)
        yield bundle[whole_files][0], broken()

    await refused(state, files(), ConnectionResetError, "^$")


async def test_a_call_that_is_cancelled(bundle: list[tuple[str, bytes]], state: Path) -> None:
    reached = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"half"
        reached.set()
        await asyncio.Event().wait()

    async def files() -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
        yield "model.onnx", stuck()

    async with opened(state) as (installed, _):
        installing = asyncio.ensure_future(installed.install(OPERATOR, files()))
        await reached.wait()
        # One that waits for its sender keeps nobody from installing.
        made = await installed.install(OPERATOR, stream(bundle))
        installing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await installing
        assert [*installed.list()] == [made]
    assert [path.name for path in (state / "bundles").iterdir()] == ["tiny@1"]


@pytest.fixture
def small_disk(state: Path) -> Iterator[Path]:
    """The state folder with `bundles` on a disk of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("a filesystem is mounted only by root")
    (state / "bundles").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", state / "bundles"], check=True)
    yield state
    subprocess.run(["umount", state / "bundles"], check=True)


@pytest.mark.parametrize("name", ["model.onnx", "licences/ZZZ.txt"])
async def test_of_a_folder_with_a_file_beyond_its_limit_nothing_is_sent(tmp_path: Path, name: str) -> None:
    """Ten sparse gigabytes would be read for minutes, and two of them sent."""
    folder = make(tmp_path / "new")
    with (folder / name).open("ab") as file:
        file.truncate(10 << 30)
    with pytest.raises(InvalidInput, match=f"new: {name} has more than [0-9]+ bytes"):
        await anext(from_folder(folder))


async def test_a_full_disk(tmp_path: Path, bundle: list[tuple[str, bytes]], small_disk: Path) -> None:
    large = make(tmp_path / "large", version="2", model=PIECE * 8)
    await refused(small_disk, from_folder(large), StorageFailed, "bundles: No space left on device")
    async with opened(small_disk) as (installed, _):
        await installed.install(OPERATOR, stream(bundle))
