"""Files of a person that something was done to: they are sent, or refused in one way, whatever it was."""

import asyncio
import contextlib
import io
import json
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.cli import vectors
from appliance.cli.output import Refused
from appliance.datasets.interchange import sending, zips
from appliance.errors import InvalidInput

Change = Callable[[bytearray], None]

PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)
RECORDS = "".join(json.dumps({"_id": str(number)}) + "\n" for number in range(len(ROWS)))


def zipped(packed: int, files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", packed) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.comment = b"a comment"
    return written.getvalue()


def array() -> bytes:
    written = io.BytesIO()
    np.save(written, ROWS)
    return written.getvalue()


DATASET = {"a/ä.jpg": b"\xff\xd8" + bytes(range(256)) * 3, "b/y.csv": b"image,label\n" * 50, "b/w.png": b"w"}
EXPORT = {"records-00001.jsonl": RECORDS.encode(), "vectors-00001.npy": array()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("damaged")
    (made / "records.jsonl").write_text(RECORDS)
    return made


def overwritten(at: int, value: int) -> Change:
    def change(whole: bytearray) -> None:
        whole[at % len(whole)] = value

    return change


def flipped(at: int, bit: int) -> Change:
    def change(whole: bytearray) -> None:
        whole[at % len(whole)] ^= 1 << bit

    return change


def cut(at: int, size: int) -> Change:
    def change(whole: bytearray) -> None:
        start = at % len(whole)
        del whole[start : start + size]

    return change


def grown(at: int, content: bytes) -> Change:
    def change(whole: bytearray) -> None:
        whole[at % len(whole) : at % len(whole)] = content

    return change


# Half of them near the end, where the directory of a zip file is.
places = st.integers(-300, -1) | st.integers(0, 2000)
changes = st.lists(
    st.builds(overwritten, places, st.sampled_from([0, 255]) | st.integers(0, 255))
    | st.builds(flipped, places, st.integers(0, 7))
    | st.builds(cut, places, st.integers(1, 60))
    | st.builds(grown, places, st.binary(min_size=1, max_size=20)),
    min_size=1,
    max_size=5,
)


def damaged(whole: bytes, changed: list[Change]) -> bytes:
    content = bytearray(whole)
    for change in changed:
        if content:
            change(content)
    return bytes(content)


async def drained(pieces: AsyncIterator[bytes]) -> None:
    async for _ in pieces:
        pass


def send_dataset(path: Path) -> None:
    with zips.opened(path) as archive:
        found = sending.of_zip(archive, path.stat().st_size)
        asyncio.run(drained(sending.as_tar(found, frozenset(), lambda files, size: None)))


def send_vectors(path: Path, records: Path | None = None) -> None:
    with ExitStack() as stack:
        _, pieces = vectors.content(path, records, stack)
        asyncio.run(drained(pieces))


@given(packed=st.sampled_from(PACKED), changed=changes)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_zip_of_a_dataset(folder: Path, packed: int, changed: list[Change]) -> None:
    path = folder / "dataset.zip"
    path.write_bytes(damaged(zipped(packed, DATASET), changed))
    with contextlib.suppress(InvalidInput):
        send_dataset(path)


@given(packed=st.sampled_from(PACKED), changed=changes)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_zip_of_a_collection(folder: Path, packed: int, changed: list[Change]) -> None:
    path = folder / "export.zip"
    path.write_bytes(damaged(zipped(packed, EXPORT), changed))
    with contextlib.suppress(Refused):
        send_vectors(path)


@given(changed=changes)
@example(changed=[cut(0, 1000)])  # an empty file
@example(changed=[overwritten(10, ord("("))])  # a header whose brackets do not end
@settings(max_examples=150, deadline=None, derandomize=True)
def test_an_array_beside_its_records(folder: Path, changed: list[Change]) -> None:
    path = folder / "vectors.npy"
    path.write_bytes(damaged(array(), changed))
    with contextlib.suppress(Refused):
        send_vectors(path, folder / "records.jsonl")
