"""What is exported and imported again is the same: ids, metadata and every bit of the vectors."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from appliance.search import exact
from appliance.search.collections import Metadata, NewRecord, OpenCollection, Record, Vector
from appliance.search.interchange import exporting, importing
from tests.searching import ACTOR, shelf

Numbers = npt.NDArray[np.floating]

DIM = 5
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
fields = (text | st.sampled_from(["_vector", "__vector", "vector", "___vector"])).filter(
    lambda name: name not in {"_id", "_base64", "_file"}
)
ids = text.filter(lambda name: bool(name) and "\0" not in name)
vectors = arrays.arrays(np.float64, DIM, elements=st.floats(-1e30, 1e30, allow_subnormal=False)).filter(
    lambda vector: bool(np.linalg.norm(vector) > 1e-6)
)
records = st.dictionaries(ids, st.tuples(vectors, st.dictionaries(fields, values, max_size=4)), max_size=8)


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for low in range(0, len(content), 97):
        yield content[low : low + 97]


async def members(archive: zipfile.ZipFile) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]:
    for name in archive.namelist():
        yield name.partition("-")[0], pieces(archive.read(name))


async def exported(opened: OpenCollection, *, as_zip: bool) -> bytes:
    pages = await exporting.begin(ACTOR, opened)
    given = exporting.as_zip(pages, DIM) if as_zip else exporting.as_lines(pages)
    return b"".join([piece async for piece in given])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(records, st.integers(1, 3))
def test_import_of_export_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, stored: dict[str, tuple[Numbers, Metadata]], rows: int
) -> None:
    async def there_and_back(folder: Path) -> None:
        async with shelf(folder) as things:
            source = await things.collection(DIM, "source")
            await source.insert(ACTOR, [NewRecord(one, *stored[one]) for one in stored])
            before = [page async for page in source.stored(100)]
            whole = await exported(source, as_zip=False)
            packed = await exported(source, as_zip=True)
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                candidates = {
                    "lines": importing.of_lines(pieces(whole), DIM, 1 << 20),
                    "zip": importing.of_parts(members(archive), DIM, 1 << 20),
                }
                for name, given_back in candidates.items():
                    copy = await things.collection(DIM, name)
                    report = await importing.run(ACTOR, copy, given_back, replace=False)
                    assert (report.inserted, report.refused) == (len(stored), 0), report.reasons
                    after = [page async for page in copy.stored(100)]
                    assert told(after) == told(before)
                    assert await exported(copy, as_zip=False) == whole
                    assert await exported(copy, as_zip=True) == packed

    with patch.object(exporting, "_VECTORS", rows * DIM * 4):
        asyncio.run(there_and_back(tmp_path_factory.mktemp("shelf")))


def told(pages: list[list[tuple[Record, Vector]]]) -> list[tuple[str, Metadata, bytes]]:
    return [(record.id, record.metadata, vector.tobytes()) for page in pages for record, vector in page]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1, 1, width=32)))
def test_what_is_of_length_one_stays_as_it_is(vector: Numbers) -> None:
    if np.linalg.norm(vector.astype(np.float64)) < 1e-9:
        return
    once = exact.normalised(vector, len(vector))
    assert exact.normalised(once, len(vector)).tobytes() == once.tobytes()
