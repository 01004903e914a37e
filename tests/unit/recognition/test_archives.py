"""Bundles in archives: read in one pass, nothing unpacked, everything refused that is no bundle's file."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from appliance.errors import InvalidInput
from appliance.recognition.staging import from_path, receive
from tests import bundles


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.tagger(tmp_path / "tagger")


def pack(
    bundle: Path, target: Path, prefix: str, change: Callable[[tarfile.TarFile], None] | None = None
) -> Path:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(bundle, prefix.rstrip("/") or ".")
        if change is not None:
            change(archive)
    content = packed.getvalue()
    target.write_bytes(content if target.suffix == ".tar" else zstandard.ZstdCompressor().compress(content))
    return target


@pytest.mark.parametrize("name", ["bundle.tar", "bundle.tar.zst", "bundle.tzst"])
@pytest.mark.parametrize("prefix", ["./", "tagger/", "./tagger/"])
async def test_an_archive_is_the_folder_in_it(bundle: Path, tmp_path: Path, name: str, prefix: str) -> None:
    archive = pack(bundle, tmp_path / name, prefix)
    verified = await receive(from_path(archive), tmp_path / "staged")
    assert verified.manifest.name == "fashion"
    for file in ("bundle.toml", "model.onnx", "labels.txt", "licences/LICENCE.txt"):
        assert (tmp_path / "staged" / file).read_bytes() == (bundle / file).read_bytes()


def member(name: str, **fields: object) -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        content = bytes(fields.pop("content", b""))  # type: ignore[call-overload]
        info.size = len(content)
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info, io.BytesIO(content))

    return add


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (member("../../etc/cron.d/x", content=b"x"), "not a file of a bundle"),
        (member("/etc/passwd", content=b"x"), "not a file of a bundle"),
        (member("licences/../../x", content=b"x"), "not a file of a bundle"),
        (member("tagger/licences/../x", content=b"x"), "not a file of a bundle"),
        (member("run.sh", content=b"x"), "not a file of a bundle"),
        (member("licences/x", type=tarfile.SYMTYPE, linkname="/etc/shadow"), "not a plain file"),
        (member("licences/x", type=tarfile.LNKTYPE, linkname="licences/LICENCE.txt"), "not a plain file"),
        (member("licences/x", type=tarfile.FIFOTYPE), "not a plain file"),
        (member("licences/x", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "not a plain file"),
        (member("licences/x", content=bytes(2 << 20)), "more than 1048576 bytes"),
        (member("model.onnx", content=b"x"), "came twice"),
    ],
)
async def test_hostile_members(
    bundle: Path, tmp_path: Path, change: Callable[[tarfile.TarFile], None], why: str
) -> None:
    archive = pack(bundle, tmp_path / "bundle.tar.zst", "./", change)
    with pytest.raises(InvalidInput, match=why):
        await receive(from_path(archive), tmp_path / "staged")
    assert not (tmp_path / "x").exists()


async def test_a_sparse_file_of_ten_gigabytes(tmp_path: Path) -> None:
    """An old GNU sparse member: nothing is written of what it claims to be."""
    info = tarfile.TarInfo("model.onnx")
    info.type = tarfile.GNUTYPE_SPARSE
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[386:410] = b"00000000000\x00" * 2
    raw[483:495] = b"\x80" + (10 << 30).to_bytes(11, "big")  # the size that is claimed
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\x00 " % sum(raw[:512])
    (tmp_path / "bundle.tar").write_bytes(bytes(raw) + bytes(1024))
    with pytest.raises(InvalidInput, match=r"not a plain file|more than"):
        await receive(from_path(tmp_path / "bundle.tar"), tmp_path / "staged")
    assert sum(path.stat().st_size for path in (tmp_path / "staged").rglob("*") if path.is_file()) == 0


@pytest.mark.parametrize("content", [b"", b"no archive", bytes(4096), b"\x28\xb5\x2f\xfd" + bytes(60)])
@pytest.mark.parametrize("name", ["bundle.tar", "bundle.tar.zst"])
async def test_what_is_no_archive(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput):
        await receive(from_path(tmp_path / name), tmp_path / "staged")


async def test_a_cut_off_archive(bundle: Path, tmp_path: Path) -> None:
    archive = pack(bundle, tmp_path / "bundle.tar.zst", "./")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(InvalidInput):
        await receive(from_path(archive), tmp_path / "staged")


async def test_a_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        await receive(from_path(tmp_path / "none.tar.zst"), tmp_path / "staged")
