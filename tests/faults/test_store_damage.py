"""Sealed files that are not what was sealed: each is told by its name, the rest of the dataset is served."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from appliance.accounts.audit import entries
from appliance.datasets import rows
from appliance.datasets.records import Dataset, Image, ReadPermit
from appliance.errors import NotFound, SealBroken, StorageFailed
from tests.storing import ACTOR, Stand, stand

CHUNK, TAG, START = 16384, 16, 120
# Around the borders of chunks; the thumbnail of up to 100 bytes follows.
SIZES = [1, 100, CHUNK - 101, CHUNK - 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 7, 70 * CHUNK]
BIG = [size for size in SIZES if size >= 2 * CHUNK]
Change = Callable[[bytes, np.random.RandomState], bytes]


async def filled(one: Stand, sizes: list[int]) -> tuple[Dataset, list[Image]]:
    dataset = await one.datasets.default(await one.customer())
    contents = [bytes([number]) + os.urandom(size - 1) for number, size in enumerate(sizes)]
    return dataset, [await one.store.put(ACTOR, dataset, content) for content in contents]


def file(one: Stand, image: Image) -> Path:
    return one.state / "images" / image.name.container.hex / image.name.object.hex


async def is_given_out(one: Stand, image: Image) -> bool:
    """Whole, or refused by its name."""
    permit = ReadPermit(image.customer, image.dataset, image.id, "token")
    try:
        for variant, size in (("image", image.size), ("thumbnail", image.thumbnail)):
            opened = await one.store.open(permit, variant)  # type: ignore[arg-type]
            try:
                assert sum([len(piece) async for piece in opened.read(0, opened.length)]) == size
            finally:
                opened.close()
    except (SealBroken, NotFound, StorageFailed) as error:
        said = str(error)
    else:
        return True
    assert image.id in said or image.name.object.hex in said
    return False


async def scrubbed(one: Stand, dataset: Dataset, images: list[Image], damaged: set[str]) -> None:
    """Before and after a scrub exactly the damaged ones are refused; after it they are marked, once each."""
    for _ in range(2):
        assert {image.id for image in images if not await is_given_out(one, image)} == damaged
        one.clock.now += 31 * 86400
        while await one.upkeep.scrub(10) == 0.0:
            pass
        assert {image.id for image in await one.store.list(dataset) if image.damaged} == damaged
        told = [entry.subject for entry in await one.ledger.read(entries) if entry.event == "image.damaged"]
        assert sorted(told, key=str) == sorted(damaged)
    assert await one.ledger.read(rows.damaged) == len(damaged)
    assert [image.id for image in await one.store.list(dataset)] == [image.id for image in images]


def flipped(sealed: bytes, rng: np.random.RandomState) -> bytes:
    changed = bytearray(sealed)
    changed[rng.randint(len(sealed))] ^= 1 << rng.randint(8)
    return bytes(changed)


def flipped_in_the_start(sealed: bytes, rng: np.random.RandomState) -> bytes:
    return flipped(sealed[:START], rng) + sealed[START:]


def flipped_in_the_generation(sealed: bytes, rng: np.random.RandomState) -> bytes:
    place = int(rng.randint(56, 60))
    return sealed[:place] + bytes([sealed[place] ^ 64]) + sealed[place + 1 :]


def flipped_in_the_last_tag(sealed: bytes, rng: np.random.RandomState) -> bytes:
    return sealed[:-TAG] + flipped(sealed[-TAG:], rng)


def cut(sealed: bytes, rng: np.random.RandomState) -> bytes:
    return sealed[: rng.randint(len(sealed))]


def cut_by_a_byte(sealed: bytes, rng: np.random.RandomState) -> bytes:
    return sealed[:-1]


def cut_by_a_chunk(sealed: bytes, rng: np.random.RandomState) -> bytes:
    return sealed[: -CHUNK - TAG]


def empty(sealed: bytes, rng: np.random.RandomState) -> bytes:
    return b""


def longer(sealed: bytes, rng: np.random.RandomState) -> bytes:
    return sealed + rng.bytes(1 + rng.randint(50))


def longer_by_its_own_end(sealed: bytes, rng: np.random.RandomState) -> bytes:
    return sealed + sealed[-CHUNK - TAG :]


def zeros_for_a_page(sealed: bytes, rng: np.random.RandomState) -> bytes:
    """What a disk gives for a block that it lost."""
    at = rng.randint(1 + len(sealed) // 4096) * 4096
    return sealed[:at] + bytes(len(sealed[at : at + 4096])) + sealed[at + 4096 :]


def chunks_changed_places(sealed: bytes, rng: np.random.RandomState) -> bytes:
    size = CHUNK + TAG
    first, second = sealed[START : START + size], sealed[START + size : START + 2 * size]
    return sealed[:START] + second + first + sealed[START + 2 * size :]


def a_chunk_twice(sealed: bytes, rng: np.random.RandomState) -> bytes:
    size = CHUNK + TAG
    return sealed[: START + size] + sealed[START : START + size] + sealed[START + 2 * size :]


def a_chunk_left_out(sealed: bytes, rng: np.random.RandomState) -> bytes:
    return sealed[:START] + sealed[START + CHUNK + TAG :]


OF_ANY: list[Change] = [
    *(
        flipped,
        flipped_in_the_start,
        flipped_in_the_generation,
        flipped_in_the_last_tag,
        cut,
        cut_by_a_byte,
        empty,
        longer,
    ),
    *(longer_by_its_own_end, zeros_for_a_page),
]
OF_SEVERAL_CHUNKS: list[Change] = [cut_by_a_chunk, chunks_changed_places, a_chunk_twice, a_chunk_left_out]


@pytest.mark.parametrize("change", [*OF_ANY, *OF_SEVERAL_CHUNKS], ids=lambda change: change.__name__)
async def test_every_second_file_is_damaged(tmp_path: Path, change: Change) -> None:
    rng = np.random.RandomState(len(change.__name__))
    sizes = SIZES if change in OF_ANY else BIG
    async with stand(tmp_path) as one:
        dataset, images = await filled(one, [size for size in sizes for _ in range(2)])
        for image in images[::2]:
            sealed = file(one, image).read_bytes()
            file(one, image).write_bytes(change(sealed, rng))
        await scrubbed(one, dataset, images, {image.id for image in images[::2]})


async def test_every_file_has_anothers_place(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset, images = await filled(one, [5000] * 6)
        contents = [file(one, image).read_bytes() for image in images]
        for image, other in zip(images, [*contents[1:], contents[0]], strict=True):
            file(one, image).write_bytes(other)
        await scrubbed(one, dataset, images, {image.id for image in images})


async def test_a_chunk_or_a_start_of_another_file_of_the_same_dataset(tmp_path: Path) -> None:
    size = CHUNK + TAG
    async with stand(tmp_path) as one:
        dataset, images = await filled(one, [3 * CHUNK] * 4)
        first, second, third, _ = [bytearray(file(one, image).read_bytes()) for image in images]
        foreign = second[START + size : START + 2 * size]
        file(one, images[0]).write_bytes(first[: START + size] + foreign + first[START + 2 * size :])
        file(one, images[2]).write_bytes(second[:START] + third[START:])
        await scrubbed(one, dataset, images, {images[0].id, images[2].id})


async def test_a_file_of_the_same_name_in_another_dataset(tmp_path: Path) -> None:
    """What was sealed for one dataset does not open in another, nor another customer's, name or not."""
    async with stand(tmp_path) as one:
        dataset, images = await filled(one, [5000] * 3)
        other = await one.datasets.add(ACTOR, dataset.customer, "other")
        bobs = await one.datasets.default(await one.customer("Bob"))
        for image, elsewhere in zip(images, (other, bobs), strict=False):
            foreign = await one.store.put(ACTOR, elsewhere, os.urandom(5000))
            file(one, image).write_bytes(file(one, foreign).read_bytes())
        await scrubbed(one, dataset, images, {image.id for image in images[:2]})


async def test_an_earlier_file_of_the_same_name(tmp_path: Path) -> None:
    """Ids are never used twice, so that an old file can only come back as what it was."""
    async with stand(tmp_path) as one:
        dataset, images = await filled(one, [5000] * 2)
        old = file(one, images[0]).read_bytes()
        await one.store.delete(ACTOR, images[0])
        file(one, images[0]).write_bytes(old)
        with pytest.raises(NotFound):
            await one.store.get(dataset.customer, images[0].id)
        place = file(one, images[0])
    async with stand(tmp_path) as one:
        assert not place.exists()
        assert await is_given_out(one, images[1])


async def test_what_is_no_file_in_a_files_place(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        dataset, images = await filled(one, [5000] * 4)
        for image in images[:3]:
            file(one, image).rename(file(one, image).with_suffix(".aside"))
        file(one, images[0]).symlink_to(file(one, images[0]).with_suffix(".aside"))
        file(one, images[1]).mkdir()
        await scrubbed(one, dataset, images, {image.id for image in images[:3]})


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.full)])
async def test_one_bit_in_each_image_of_a_dataset(tmp_path: Path, rounds: int) -> None:
    """Each in turn, all others served, and well again once the bit is as it was."""
    rng = np.random.RandomState(rounds)
    async with stand(tmp_path) as one:
        _, images = await filled(one, [size for size in SIZES if size < 6 * CHUNK])
        for _ in range(rounds):
            for image in images:
                sealed = file(one, image).read_bytes()
                file(one, image).write_bytes(flipped(sealed, rng))
                assert [other.id for other in images if not await is_given_out(one, other)] == [image.id]
                file(one, image).write_bytes(sealed)
        assert [await is_given_out(one, image) for image in images] == [True] * len(images)


async def test_the_check_finds_a_damage_that_nobody_notices(tmp_path: Path) -> None:
    """The control: a file that is as it was is not told of, so that the check of the others can fail."""
    async with stand(tmp_path) as one:
        dataset, images = await filled(one, [5000] * 2)
        with pytest.raises(AssertionError):
            await scrubbed(one, dataset, images, {images[0].id})
