"""Sealed files: every size comes back whole and at any place, and nothing that was changed is given out."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import SealBroken
from appliance.vault import Name, SealedFile, Sealer, name_in, sealed_size
from tests import sealed_reader

CHUNK = 16384
KEY = bytes(range(32))
NAME = Name(uuid.UUID(int=1 << 100), uuid.UUID(int=2 << 100), uuid.UUID(int=3 << 100))

BORDERS = sorted({max(0, n * CHUNK + d) for n in (0, 1, 2, 3, 63, 64, 65) for d in range(-17, 18)})
lengths = st.sampled_from(BORDERS) | st.integers(0, 3 * CHUNK)


def sealed(
    data: bytes, name: Name = NAME, key: bytes = KEY, generation: int = 1, step: int = 70_001
) -> bytes:
    sealer = Sealer(name, generation, key)
    parts = [sealer.header]
    parts += [sealer.update(data[at : at + step]) for at in range(0, len(data), step)]
    return b"".join([*parts, sealer.finish()])


@contextmanager
def at_rest(file: bytes) -> Iterator[int]:
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC)
    try:
        os.write(fd, file)
        yield fd
    finally:
        os.close(fd)


def whole(file: bytes, name: Name = NAME, key: bytes = KEY) -> bytes:
    """Read piece by piece and, as small files are, when it is opened: both give the same, or both refuse."""
    read: list[bytes] = []
    broken: list[SealBroken] = []
    with at_rest(file) as fd:
        for ahead in (0, len(file)):
            try:
                opened = SealedFile(fd, name, lambda _: key, ahead)
                read.append(b"".join(bytes(piece) for piece in opened.pieces()))
                if ahead:
                    assert opened.read_at_hand(0, opened.length) == read[-1]
            except SealBroken as error:
                broken.append(error)
            else:
                assert opened.length == len(read[-1])
    assert not (read and broken)
    if broken:
        raise broken[0]
    assert read[0] == read[1]
    return read[0]


def plain(length: int) -> bytes:
    return (os.urandom(997) * (length // 997 + 1))[:length]


@pytest.mark.parametrize("length", BORDERS)
def test_every_size_around_a_border_comes_back(length: int) -> None:
    data = plain(length)
    file = sealed(data)
    assert len(file) == sealed_size(length)
    assert whole(file) == data


@given(lengths, st.data())
def test_any_range_is_the_slice(length: int, data: st.DataObject) -> None:
    content = plain(length)
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    with at_rest(sealed(content)) as fd:
        for ahead in (0, sealed_size(length)):
            pieces = SealedFile(fd, NAME, lambda _: KEY, ahead).pieces(start, stop)
            assert b"".join(bytes(piece) for piece in pieces) == content[start:stop]


@given(lengths, st.integers(1, 2**32 - 1))
@settings(deadline=None)
def test_another_program_reads_it_with_the_key(length: int, generation: int) -> None:
    data = plain(length)
    said, read = sealed_reader.read(sealed(data, generation=generation), KEY)
    assert read == data
    assert said == {
        "object": NAME.object.bytes,
        "container": NAME.container.bytes,
        "customer": NAME.customer.bytes,
        "generation": generation,
    }


def test_every_bit_of_what_comes_before_the_chunks_counts() -> None:
    file = sealed(plain(CHUNK + 5))
    for bit in range(120 * 8):
        changed = bytearray(file)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken, match=str(NAME.object)):
            whole(bytes(changed))


@given(st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]), st.data())
@settings(deadline=None)
def test_one_flipped_bit_anywhere_is_caught(length: int, data: st.DataObject) -> None:
    file = bytearray(sealed(plain(length)))
    place = data.draw(st.integers(0, len(file) - 1))
    file[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SealBroken):
        whole(bytes(file))


@given(st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]), st.data())
@settings(deadline=None)
def test_a_cut_or_longer_file_is_caught(length: int, data: st.DataObject) -> None:
    file = sealed(plain(length))
    cut = file[: data.draw(st.integers(0, len(file) - 1))]
    longer = file + data.draw(st.binary(min_size=1, max_size=40) | st.just(file[120:]) | st.just(file[-16:]))
    for wrong in (cut, longer):
        with pytest.raises(SealBroken):
            whole(wrong)


@given(st.permutations(range(4)).filter(lambda order: order != [0, 1, 2, 3]))
@settings(deadline=None)
def test_chunks_in_another_order_are_caught(order: list[int]) -> None:
    file = sealed(plain(4 * CHUNK + 100))
    start, size = file[:120], CHUNK + 16
    chunks = [file[120 + n * size : 120 + (n + 1) * size] for n in range(4)]
    with pytest.raises(SealBroken, match="chunk"):
        whole(start + b"".join(chunks[n] for n in order) + file[120 + 4 * size :])


def test_a_chunk_of_another_object_is_caught() -> None:
    size = CHUNK + 16
    one, other = sealed(plain(2 * CHUNK)), sealed(plain(2 * CHUNK))
    with pytest.raises(SealBroken, match="chunk 1"):
        whole(one[: 120 + size] + other[120 + size : 120 + 2 * size] + one[120 + 2 * size :])


@pytest.mark.parametrize("field", ["customer", "container", "object"])
def test_it_opens_under_its_own_name_only(field: str) -> None:
    other = Name(**{**{f: getattr(NAME, f) for f in NAME.__slots__}, field: uuid.uuid4()})
    with pytest.raises(SealBroken, match="another object"):
        whole(sealed(plain(10)), name=other)
    # The same with the header rewritten to the name that is asked for.
    file = sealed(plain(10), name=other)
    with pytest.raises(SealBroken, match="key does not fit"):
        whole(sealed(b"")[:64] + file[64:])


def test_another_key_is_told_from_damage() -> None:
    with pytest.raises(SealBroken, match="key does not fit"):
        whole(sealed(plain(10)), key=bytes(32))


def test_what_is_no_sealed_file_is_said() -> None:
    with pytest.raises(SealBroken, match="not a sealed file"):
        whole(plain(500))
    assert name_in(plain(500)) is None
    assert name_in(sealed(b"")) == NAME


def test_a_range_outside_is_refused() -> None:
    with at_rest(sealed(plain(10))) as fd:
        for ahead in (0, sealed_size(10)):
            opened = SealedFile(fd, NAME, lambda _: KEY, ahead)
            for start, stop in ((-1, 5), (5, 11), (6, 5)):
                with pytest.raises(ValueError, match="of 10"):
                    next(opened.pieces(start, stop))


def test_a_file_that_shrinks_while_it_is_read_is_caught() -> None:
    with at_rest(sealed(plain(200 * CHUNK))) as fd:
        pieces = SealedFile(fd, NAME, lambda _: KEY).pieces()
        next(pieces)
        os.ftruncate(fd, 120 + 64 * (CHUNK + 16))
        with pytest.raises(SealBroken, match="cut"):
            next(pieces)
