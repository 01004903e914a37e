"""Arrays, lines and zips of vectors on a person's machine: what is wrong with one is told by its name."""

import io
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from appliance.cli import vectors
from appliance.cli.output import Refused


def array(rows: object = ((1.0, 2.0),)) -> bytes:
    written = io.BytesIO()
    np.save(written, np.array(rows))
    return written.getvalue()


def export(name: str = "records-00001.jsonl", packed: int | None = None) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(name, b'{"_id": "a"}\n')
    whole = bytearray(written.getvalue())
    if packed is not None:
        whole[8] = whole[whole.index(b"PK\x01\x02") + 10] = packed
    return bytes(whole)


async def sent(path: Path, records: Path | None) -> bytes:
    with ExitStack() as stack:
        _, pieces = vectors.content(path, records, stack)
        return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.npy", b"", "is no array, or a damaged one"),
        ("x.npy", array()[:20], "is no array, or a damaged one"),
        ("x.npy", array()[:-1], "is no array, or a damaged one"),
        ("x.npy", b"\x93NUMPY\x01\x00\x02\x00((", "is no array, or a damaged one"),
        ("x.npy", export(), "is no array, or a damaged one"),
        ("x.npy", array(5.0), "the array is one number of float64: rows of floats are expected"),
        ("x.npy", array([["a"]]), "the array is 1x1 of <U1: rows of floats are expected"),
        ("x.npy", array([[1.0], [2.0]]), "the array is 2x1, "),
        ("x.zip", b"no zip", "is no zip file, or a damaged one"),
        ("x.zip", export("x.jpg"), "'x.jpg': an export has records-N.jsonl and vectors-N.npy"),
        ("x.zip", export(packed=99), "'records-00001.jsonl': cannot be read: That compression method is"),
        ("x.zip", export().replace(b'"a"', b'"b"'), "'records-00001.jsonl': this member of the zip file is"),
        ("x.txt", b"", "a .npy, a .jsonl or a .zip is expected"),
    ],
)
async def test_what_cannot_be_sent_is_refused(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    path, records = tmp_path / name, tmp_path / "records.jsonl"
    path.write_bytes(content)
    records.write_text('{"_id": "a"}\n')
    with pytest.raises(Refused) as caught:
        await sent(path, records if path.suffix == ".npy" else None)
    assert caught.value.error == "bad_request"
    assert str(caught.value).startswith(f"{path}: {why}")


async def test_records_that_are_not_there_are_named_themselves(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(array())
    with pytest.raises(Refused, match=r"none\.jsonl: No such file or directory"):
        await sent(tmp_path / "x.npy", tmp_path / "none.jsonl")
