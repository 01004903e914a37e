"""Archives in any pieces are what `tarfile` reads, and whatever is done to their bytes is told."""

import asyncio
import io
import tarfile
import unicodedata
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.datasets.interchange.archive import Archive
from appliance.errors import InvalidInput
from tests.datasets import tar

letters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\")
parts = st.text(letters, min_size=1, max_size=60).filter(lambda part: part not in {".", ".."})
names = st.lists(parts, min_size=1, max_size=4).map("/".join)
files = st.dictionaries(names, st.binary(max_size=2000), max_size=6)
forms = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


async def pieces(whole: bytes, cuts: Sequence[int]) -> AsyncIterator[bytes]:
    at = 0
    for cut in [*sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]:
        yield whole[at:cut]
        at = cut


async def everything(whole: bytes, cuts: Sequence[int]) -> list[tuple[str, bytes]]:
    return [(member.name, bytes(await member.read())) async for member in Archive(pieces(whole, cuts))]


def by_tarfile(whole: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:", encoding="utf-8") as opened:
        found = []
        for member in opened:
            content = opened.extractfile(member)
            assert content is not None
            found.append((member.name, content.read()))
        return found


@given(files, forms, st.lists(st.integers(0, 1 << 20), max_size=8))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_pieces_give_the_same_members(content: dict[str, bytes], form: int, cuts: list[int]) -> None:
    whole = tar(content, form)
    if len({unicodedata.normalize("NFC", name) for name in content}) < len(content):
        with pytest.raises(InvalidInput, match="two files have this name"):
            asyncio.run(everything(whole, cuts))
    else:
        assert asyncio.run(everything(whole, cuts)) == by_tarfile(whole) == list(content.items())


changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4)


@given(content=files, form=forms, changed=changes, end=st.integers(0, 1 << 16), cut=st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_whatever_is_done_to_an_archive_it_is_refused_or_read(
    content: dict[str, bytes], form: int, changed: list[tuple[int, int]], end: int, *, cut: bool
) -> None:
    whole = bytearray(tar(content, form))
    for at, byte in changed:
        whole[at % len(whole)] = byte
    sent = bytes(whole[: end % len(whole)] if cut else whole)
    try:
        found = asyncio.run(everything(sent, []))
    except InvalidInput:
        return
    assert sum(len(data) for _, data in found) <= len(sent)
    for name, _ in found:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
