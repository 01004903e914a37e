"""Tars as they come from anybody: every kind that is refused has a case of its own."""

import asyncio
import tarfile
from collections.abc import AsyncIterator, Callable
from itertools import count

import pytest

from appliance.datasets.interchange.archive import MOST_EXTENSION, Archive
from appliance.errors import InvalidInput, TooLarge
from tests import datasets

BLOCK = 512


def tar(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    return datasets.tar(members, form)


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, link
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def raw(name: bytes) -> bytes:
    """A header with these bytes for a name, which no writer of ours would make."""
    block = bytearray(header("x" * len(name)))
    block[: len(name)] = name
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("pax", kind, len(body)) + body.ljust(-(-len(body) // BLOCK) * BLOCK, b"\0")


END = bytes(2 * BLOCK)
ONE = tar(("a/x.jpg", b"x" * 700))


async def pieces(whole: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


async def read(whole: bytes, size: int = 300) -> list[tuple[str, bytes]]:
    return [(member.name, bytes(await member.read())) async for member in Archive(pieces(whole, size))]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("size", [1, 511, 512, 100_000])
async def test_what_others_write_is_read_in_any_pieces(form: int, size: int) -> None:
    long = "/".join(["folder"] * 20)
    members = [("a/x.jpg", b"x" * 700), (f"{long}/y.jpg", b""), ("z", b"z" * 1024)]
    assert await read(tar(*members, form=form), size) == members


async def test_names_beyond_ascii_stay_as_they_are() -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        members = [("žluť/kůň.jpg", b"1"), ("kun\u030a.jpg", b"2"), ("a\u202fb 3.jpg", b"3")]
        assert await read(tar(*members, form=form)) == members


async def test_what_is_not_read_is_passed_over() -> None:
    members = [("a", b"x" * 1000), ("b", b"y" * 10), ("c", b"")]
    archive = Archive(pieces(tar(*members), 77))
    assert [(member.name, member.size) async for member in archive] == [("a", 1000), ("b", 10), ("c", 0)]


async def test_folders_and_the_dot_before_names_are_left_out() -> None:
    whole = header("./", tarfile.DIRTYPE) + header("a.jpg/", tarfile.DIRTYPE) + tar(("./a.jpg/.//b", b"1"))
    assert await read(whole) == [("a.jpg/b", b"1")]


async def test_a_global_header_of_comments_does_not_matter() -> None:
    commented = pax(b"12 comment=\n"[:12].replace(b"12", b"12"), tarfile.XGLTYPE)
    assert await read(commented + ONE) == [("a/x.jpg", b"x" * 700)]


async def test_zeros_that_fill_up_large_records_are_passed_over() -> None:
    assert await read(ONE + bytes(8 << 20), 1 << 16) == [("a/x.jpg", b"x" * 700)]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty"),
    "text": (lambda: b"hello " * 200, "no tar archive"),
    "a few bytes": (lambda: b"hello", "no tar archive"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(600), r"compressed \(gzip\): send the tar plain"),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd" + bytes(600), r"compressed \(zstd\)"),
    "zip": (lambda: b"PK\x03\x04" + bytes(600), "zip"),
    "traversal": (lambda: header("a/../../x") + END, "leads out"),
    "traversal of a folder": (lambda: header("../x/", tarfile.DIRTYPE) + END, "leads out"),
    "absolute": (lambda: header("/etc/passwd") + END, "absolute"),
    "backslashes": (lambda: header("..\\x") + END, "backslash"),
    "a newline": (lambda: header("a\nb") + END, "control character"),
    "latin-1": (lambda: raw(b"k\xf9\xf2.jpg") + END, "not UTF-8"),
    "no name": (lambda: header("./.") + END, "without a name"),
    "a long name": (lambda: header("x" * 2000) + END, "at most 1024 bytes"),
    "a long part of a name": (lambda: header(f"a/{'é' * 128}/b") + END, "at most 255 bytes"),
    "a deep name": (lambda: header("x/" * 40 + "x") + END, "32 parts"),
    "symbolic link": (lambda: header("a", tarfile.SYMTYPE, link="b") + END, "'a' is a symbolic link"),
    "hard link": (lambda: header("a", tarfile.LNKTYPE, link="b") + END, "'a' is a hard link"),
    "a link far away": (lambda: header("a", tarfile.SYMTYPE, link="b" * 300) + END, "a symbolic link"),
    "device": (lambda: header("a", tarfile.CHRTYPE) + END, "'a' is a device"),
    "pipe": (lambda: header("a", tarfile.FIFOTYPE) + END, "'a' is a pipe"),
    "unheard of": (lambda: header("a", b"Z") + END, "'a' is something else"),
    "sparse, GNU": (lambda: header("a", tarfile.GNUTYPE_SPARSE) + END, "sparse"),
    "sparse, pax": (lambda: pax(b"22 GNU.sparse.major=1\n") + header("a") + END, "sparse"),
    "a huge pax header": (lambda: header("a", tarfile.XHDTYPE, 10 << 30), f"at most {MOST_EXTENSION}"),
    "a huge long name": (lambda: header("a", tarfile.GNUTYPE_LONGNAME, 10 << 30), "at most"),
    "pax headers without an end": (lambda: pax(b"9 path=a\n") * 2, "two extended headers"),
    "a pax header of nonsense": (lambda: pax(b"99 path=a\n") + header("a") + END, "damaged"),
    "a pax record without a value": (lambda: pax(b"7 path\n") + header("a") + END, "damaged"),
    "a pax record of no length": (lambda: pax(b"0 path=a\n") + header("a") + END, "damaged"),
    "a pax header of many records": (lambda: pax(b"6 a=b\n" * 1001) + header("a") + END, "1000 records"),
    "a size in words": (lambda: pax(b"12 size=ten\n") + header("a") + END, "no number"),
    "a negative size": (lambda: pax(b"11 size=-1\n") + header("a") + END, "no number"),
    "one name for all": (lambda: pax(b"9 path=a\n", tarfile.XGLTYPE) + ONE, "one name"),
    "an extension of nothing": (lambda: pax(b"9 path=a\n") + END, "ends behind"),
    "cut in a header": (lambda: ONE[:300], "no tar archive"),
    "cut in a later header": (lambda: ONE[: 3 * BLOCK + 40], "breaks off at byte 1576"),
    "cut in data": (lambda: ONE[: BLOCK + 300], "breaks off"),
    "without its end": (lambda: ONE[: 3 * BLOCK], "breaks off at byte 1536"),
    "wrong checksum": (lambda: ONE[: 3 * BLOCK] + b"?" + ONE[1:], "at byte 1536: the header"),
    "two equal names": (lambda: header("a") + header("./a") + END, "two files have this name"),
    "one name in two forms": (lambda: header("\u016f") + header("u\u030a") + END, "two files"),
    "a file, then a folder": (lambda: header("a/x") + header("a/x/b/c") + END, "one name"),
    "a folder, then a file": (lambda: header("a/u\u030a/c") + header("a/\u016f") + END, "one name"),
    "another archive behind": (lambda: ONE + ONE, "follows the archive's end"),
    "zeros without end": (lambda: END + bytes(17 << 20), "follows the archive's end"),
}


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED.keys())
async def test_refused(make: Callable[[], bytes], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        await read(make())


async def test_more_members_than_may_be() -> None:
    whole = header("folder/", tarfile.DIRTYPE) * 40 + END
    assert [member async for member in Archive(pieces(whole, 600), most=40)] == []
    with pytest.raises(TooLarge, match="more than 39 members"):
        assert [member async for member in Archive(pieces(whole, 600), most=39)]


async def test_a_bomb_is_refused_before_it_is_read() -> None:
    """What follows the header would be an error of the test itself."""

    async def bomb() -> AsyncIterator[bytes]:
        yield header("a", tarfile.XHDTYPE, 10 << 30)
        raise AssertionError("read on")

    with pytest.raises(InvalidInput, match="extended header"):
        assert [member async for member in Archive(bomb())]


async def test_folders_in_names_count_as_members_do() -> None:
    whole = b"".join(header(f"{number}/{'a/' * 29}x.txt") for number in range(4)) + END
    assert len([member async for member in Archive(pieces(whole, 600), most=4 * 31)]) == 4
    with pytest.raises(TooLarge, match="folders in their names"):
        assert [member async for member in Archive(pieces(whole, 600), most=3 * 31)]


async def test_others_get_their_turn_while_one_piece_is_read() -> None:
    """By a clock that goes on by a millisecond whenever it is asked, with all headers in one piece."""
    ticks = (tick / 1000 for tick in count())
    whole = b"".join(header(f"{number}/{'a/' * 29}", tarfile.DIRTYPE) for number in range(1000)) + END
    archive = Archive(pieces(whole, len(whole)), clock=lambda: next(ticks))
    turns, ended = 0, False

    async def others() -> None:
        nonlocal turns
        while not ended:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as beside:
        beside.create_task(others())
        assert [member async for member in archive] == []
        ended = True
    assert turns >= 1000 / 4
