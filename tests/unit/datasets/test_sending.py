"""Folders, zip files and tars of a person: judged before they are sent, and read as they are due."""

import io
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.datasets.interchange import zips
from appliance.datasets.interchange.sending import Found, again_as_tar, as_tar, of_file, of_folder, of_zip
from appliance.datasets.sources import Source
from appliance.errors import InvalidInput
from tests.datasets import tar, untar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source" / "a").mkdir(parents=True)
    (tmp_path / "source" / "a" / "1.jpg").write_bytes(b"1")
    return tmp_path / "source"


def linked_out(folder: Path) -> None:
    (folder / "a" / "x.jpg").symlink_to("/etc/hostname")


def linked_folder(folder: Path) -> None:
    (folder / "b").symlink_to("a")


def with_pipe(folder: Path) -> None:
    os.mkfifo(folder / "a" / "x.jpg")


def in_latin_1(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/a/k\xf9.jpg"))).write_bytes(b"x")


def with_newline(folder: Path) -> None:
    (folder / "a" / "x\n.jpg").write_bytes(b"x")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (linked_out, "leads out of the folder"),
        (linked_folder, "links to folders are not followed"),
        (with_pipe, "no plain file"),
        (in_latin_1, "not UTF-8"),
        (with_newline, "control character"),
    ],
)
def test_folders_that_are_refused(folder: Path, spoil: Callable[[Path], None], why: str) -> None:
    spoil(folder)
    with pytest.raises(InvalidInput, match=why):
        of_folder(folder)


def test_a_folder_in_the_order_of_its_names(folder: Path) -> None:
    """Links within it are followed, what is hidden or no part of a dataset is passed over."""
    (folder / "b").mkdir()
    (folder / "b" / "1.jpg").symlink_to("../a/1.jpg")
    (folder / ".git").mkdir()
    (folder / ".git" / "2.jpg").write_bytes(b"x")
    (folder / "README").write_bytes(b"x")
    (folder / "a.json").write_bytes(b"{}")
    found = of_folder(folder)
    assert [(file.name, file.size) for file in found.files] == [("a.json", 2), ("a/1.jpg", 1), ("b/1.jpg", 1)]
    assert found.ignored == 1


async def test_a_file_that_changes_meanwhile_is_told(folder: Path) -> None:
    found = of_folder(folder)
    for content in (b"", b"longer"):
        (folder / "a" / "1.jpg").write_bytes(content)
        with pytest.raises(InvalidInput, match="changed while it was read"):
            await sent(found)
    (folder / "a" / "1.jpg").unlink()
    with pytest.raises(InvalidInput, match="cannot be read"):
        await sent(found)


async def sent(found: Found, held: frozenset[bytes] = frozenset()) -> bytes:
    return b"".join([piece async for piece in as_tar(found, held, lambda files, size: None)])


async def test_what_is_held_goes_as_a_name(folder: Path) -> None:
    (folder / "a" / "2.jpg").write_bytes(b"22")
    found = of_folder(folder)
    assert untar(await sent(found)) == {"a/1.jpg": b"1", "a/2.jpg": b"22"}
    held = frozenset([Source("a/2.jpg", 2).digest])
    assert untar(await sent(found, held)) == {"a/1.jpg": b"1", "a/2.jpg": b""}


async def test_a_tar_goes_as_a_folder_would(tmp_path: Path) -> None:
    source = tmp_path / "source.tar"
    source.write_bytes(tar({"README": b"read me", "a/1.jpg": b"1", "a/2.jpg": b"22"}))
    held = frozenset([Source("a/2.jpg", 2).digest])
    pieces = again_as_tar(of_file(source), held, lambda files, size: None)
    found = untar(b"".join([piece async for piece in pieces]))
    assert found == {"README": b"", "a/1.jpg": b"1", "a/2.jpg": b""}


@pytest.mark.parametrize(
    "packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
async def test_a_zip_file_whose_member_is_damaged(packed: int) -> None:
    """Whatever the packing says of it, who sends is told which member is at fault."""
    member = zipfile.ZipInfo("a/x.jpg")
    member.compress_type = packed
    whole = bytearray(zip_of(member, os.urandom(5000)))
    for at in (38, 1000):  # where the packing begins, and in the middle
        damaged = bytearray(whole)
        damaged[at : at + 20] = b"\xff" * 20
        with zipfile.ZipFile(io.BytesIO(damaged)) as archive:
            found = of_zip(archive, len(damaged))
            with pytest.raises(InvalidInput, match=r"'a/x.jpg': this member of the zip file is damaged"):
                await sent(found)


def zip_of(member: zipfile.ZipInfo | str, content: bytes = b"x") -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return written.getvalue()


def a_link() -> bytes:
    info = zipfile.ZipInfo("a/x.jpg")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zip_of(info, b"/etc/passwd")


def encrypted() -> bytes:
    whole = bytearray(zip_of("a/x.jpg"))
    whole[6] |= 1
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    return bytes(whole)


def overlapping() -> bytes:
    """Two entries of the directory for the one member that there is."""
    whole = zip_of("a/x.jpg", os.urandom(5000))
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    entry, tail = whole[start:end], bytearray(whole[end:])
    second = entry.replace(b"a/x.jpg", b"a/y.jpg")
    tail[8:12] = b"\x02\0\x02\0"
    tail[12:16] = (2 * len(entry)).to_bytes(4, "little")
    return whole[:start] + entry + second + bytes(tail)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: zip_of("../x.jpg"), "leads out"),
        (lambda: zip_of("..\\x.jpg"), "leads out"),
        (lambda: zip_of("/x.jpg"), "absolute"),
        (a_link, "no plain file"),
        (encrypted, "is encrypted"),
        (lambda: zip_of("a/x.jpg").replace(b"a/x", b"\0/x"), "without a name"),
        (overlapping, "overlap"),
        (lambda: zip_of("a/x.jpg", bytes(100 << 20)), "unpacks to"),
        (lambda: zip_of("a/x.jpg", bytes(40 << 20)), "unpacks to"),
    ],
    ids=["up", "up on Windows", "absolute", "link", "encrypted", "unnamed", "overlapping", "huge", "bomb"],
)
def test_zip_files_that_are_refused(make: Callable[[], bytes], why: str) -> None:
    whole = make()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive, pytest.raises(InvalidInput, match=why):
        of_zip(archive, len(whole))


@pytest.mark.parametrize(
    "content",
    [b"", b"no zip", zip_of("a/x.jpg")[:-10], zip_of("a/ä.jpg").replace("ä".encode(), b"\xff\xff")],
    ids=["nothing", "text", "cut", "a name that is no UTF-8"],
)
def test_what_is_no_whole_zip_file_is_refused_when_it_is_opened(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="is no zip file, or a damaged one"), zips.opened(path):
        pass
