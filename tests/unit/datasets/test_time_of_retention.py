"""Nothing is deleted on a time that nobody saw pass: clocks that leapt, restores, damage, first starts."""

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from prometheus_client import generate_latest

from appliance.accounts.audit import entries
from appliance.accounts.customers import Customers
from appliance.accounts.forward import note_correction
from appliance.datasets.records import Dataset, Image
from appliance.datasets.witness import WITNESS, Record
from appliance.errors import NotFound
from appliance.ledger import Connection, Ledger
from appliance.metrics import Registry
from tests.backing import Shelf, put_back
from tests.storing import ACTOR, PHOTO, Clock, Stand, damage, default, files, restore, stand

HOUR, DAY = 3600.0, 86_400.0


class Machine:
    """Both clocks of a machine: `wall` may be set, `counted` knows only of what passes."""

    def __init__(self) -> None:
        self.wall, self.counted = Clock(), Clock(0.0)

    def pass_by(self, seconds: float) -> None:
        self.wall.now += seconds
        self.counted.now += seconds


async def a_month(one: Stand) -> Dataset:
    """A dataset that keeps its images for 30 days, with one in it."""
    dataset = await one.datasets.add(ACTOR, await one.customer(), "a month", retention_days=30)
    await one.store.put(ACTOR, dataset, PHOTO)
    return dataset


async def test_a_leap_that_was_put_right_deletes_nothing_after_a_restore(tmp_path: Path) -> None:
    machine, shelf = Machine(), Shelf.under(tmp_path)
    (tmp_path / "state").mkdir()
    async with stand(tmp_path / "state", clock=machine.wall, monotonic=machine.counted) as one:
        dataset = await a_month(one)
        machine.wall.now += 365 * DAY
        await one.links.keep()  # as the running appliance does: links never go back
        machine.wall.now -= 365 * DAY
        made = await shelf.take(one)
    await put_back(made.folder, made.keyring, tmp_path / "again")
    async with stand(tmp_path / "again", clock=machine.wall, monotonic=machine.counted) as again:
        assert "it is not known how late it was" in (again.upkeep.doubt() or "")
        assert await again.store.expire() == 0
        machine.pass_by(DAY)
        assert again.upkeep.doubt() is None
        assert await again.store.expire() == 0
        machine.pass_by(29 * DAY - 1)
        assert await again.store.expire() == 0
        machine.pass_by(1)
        assert await again.store.expire() == 1
        assert await again.store.list(dataset) == []


async def test_a_crash_in_the_first_minutes_of_all_leaves_no_doubt(tmp_path: Path) -> None:
    machine = Machine()
    (tmp_path / "state").mkdir()
    async with stand(tmp_path / "state", clock=machine.wall, monotonic=machine.counted) as one:
        await a_month(one)
        machine.pass_by(30)
        shutil.copytree(tmp_path / "state", tmp_path / "after")
    async with stand(tmp_path / "after", clock=machine.wall, monotonic=machine.counted) as again:
        assert again.upkeep.doubt() is None
        assert again.upkeep.leaps.believed() == machine.wall.now


@pytest.mark.parametrize("bit", [0, 7, 13, 35, 63, 64, 100, 191, 200, 440])
async def test_a_bit_that_flips_in_the_believed_time_deletes_nothing(tmp_path: Path, bit: int) -> None:
    machine = Machine()
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as one:
        dataset = await a_month(one)
    damage_bit(tmp_path / "images" / WITNESS, 9 * 8 + bit)
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as again:
        assert "it is not known how late it was" in (again.upkeep.doubt() or "")
        assert await again.store.expire() == 0
        machine.pass_by(DAY)
        assert again.upkeep.doubt() is None
        assert await again.store.expire() == 0
        assert len(await again.store.list(dataset)) == 1


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 17, b"\xff" * 600, None])
async def test_an_appliance_runs_on_with_any_witness(tmp_path: Path, content: bytes | None) -> None:
    machine = Machine()
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as one:
        dataset = await a_month(one)
    witness = tmp_path / "images" / WITNESS
    witness.unlink() if content is None else witness.write_bytes(content)
    for _ in range(2):
        async with (
            stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as again,
            again.upkeep.at_leisure(again.store),
        ):
            await again.store.put(ACTOR, dataset, os.urandom(1000))
            assert again.upkeep.doubt() is not None
            machine.pass_by(HOUR)
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as again:
        assert "for 22 hours more" in (again.upkeep.doubt() or ""), "no restart begins the day anew"
        assert len(await again.store.list(dataset)) == 3


def damage_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


async def test_an_image_that_was_proven_by_a_clock_that_was_ahead_is_proven_again(tmp_path: Path) -> None:
    machine = Machine()
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as one:
        await a_month(one)
        machine.wall.now += 365 * DAY
        assert await one.upkeep.scrub(60) > 0
        machine.wall.now -= 365 * DAY
        (sealed,) = files(tmp_path)
        damage(sealed)
        assert await one.upkeep.scrub(60) > 0
        await one.upkeep.look_again()
        assert one.upkeep.damaged == 1


async def test_a_first_start_with_the_clock_behind_makes_no_image_old(tmp_path: Path) -> None:
    machine = Machine()
    right = machine.wall.now
    machine.wall.now -= 6 * 365 * DAY
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as one:
        dataset = await a_month(one)
        machine.pass_by(HOUR)
        machine.wall.now = right
        assert "If it is right now, nothing has to be done" in (one.upkeep.doubt() or "")
        await one.store.put(ACTOR, dataset, PHOTO + b"x")
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as again:
        machine.pass_by(DAY)
        await once(again)
        assert await again.store.expire() == 0
        assert len(await again.store.list(dataset)) == 2
        machine.pass_by(29 * DAY - HOUR - 1)
        assert await again.store.expire() == 0
        machine.pass_by(1)
        assert await again.store.expire() == 1
        machine.pass_by(HOUR)
        assert await again.store.expire() == 1


@pytest.mark.parametrize("back", [3 * HOUR, 40 * DAY])
async def test_a_wrong_clock_that_goes_back_and_is_set_right_makes_no_image_old(
    tmp_path: Path, back: float
) -> None:
    machine = Machine()
    right = machine.wall.now
    machine.wall.now -= 100 * DAY
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as one:
        dataset = await a_month(one)
        for to in (right - 60 * DAY, right - 60 * DAY - back, right):
            machine.wall.now = to
            await one.store.put(ACTOR, dataset, PHOTO + b"%f" % to)
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as again:
        machine.pass_by(DAY)
        await once(again)
        machine.pass_by(29 * DAY - 1)
        assert await again.store.expire() == 0
        machine.pass_by(1)
        assert await again.store.expire() == 4


@pytest.mark.parametrize("step", [120.0, -120.0])
async def test_an_image_stored_when_the_clock_is_right_rests_no_longer_though_it_steps_again(
    tmp_path: Path, step: float
) -> None:
    machine = Machine()
    right = machine.wall.now
    machine.wall.now -= 6 * 365 * DAY
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as one:
        dataset = await a_month(one)
        machine.wall.now = right
        await one.store.put(ACTOR, dataset, PHOTO + b"x")
        machine.pass_by(HOUR)
        machine.wall.now += step
        machine.pass_by(DAY)
        await once(one)
        machine.pass_by(29 * DAY)
        assert await one.store.expire() == 2


async def test_a_clock_that_is_set_while_a_correction_is_written_is_doubted_as_well(tmp_path: Path) -> None:
    machine = Machine()
    async with stand(tmp_path, clock=machine.wall, monotonic=machine.counted) as one:
        dataset = await a_month(one)
        machine.wall.now += 60 * DAY
        one.upkeep.doubt()
        machine.pass_by(DAY)
        found = one.upkeep.leaps.correction()
        assert found is not None
        machine.wall.now += 40 * DAY
        one.upkeep.doubt()
        one.upkeep.leaps.correct(found)
        assert "960 hours ahead" in (one.upkeep.doubt() or "")
        await one.ledger.write(partial(note_correction, **asdict(found)))
        machine.pass_by(DAY)
        await once(one)
        machine.pass_by(28 * DAY - 1)
        assert await one.store.expire() == 0
        machine.pass_by(1)
        assert await one.store.expire() == 1
        assert await one.store.list(dataset) == []


@pytest.mark.parametrize("sees", ["status", "an upload", "the upkeep alone"])
async def test_a_clock_that_is_set_is_durable_at_once(tmp_path: Path, sees: str) -> None:
    """What the disk has then is what a kill leaves: the images from before grow no older by it."""
    machine = Machine()
    right = machine.wall.now
    machine.wall.now -= 60 * DAY
    (tmp_path / "state").mkdir()
    async with stand(tmp_path / "state", clock=machine.wall, monotonic=machine.counted) as one:
        dataset = await a_month(one)
    async with (
        stand(tmp_path / "state", clock=machine.wall, monotonic=machine.counted) as one,
        AsyncExitStack() as running,
    ):
        if sees != "an upload":
            await running.enter_async_context(one.upkeep.at_leisure(one.store))
            await one.upkeep.scrub(60)
        machine.wall.now = right
        if sees == "an upload":
            await one.store.put(ACTOR, dataset, PHOTO + b"x")
        elif sees == "status":
            assert one.upkeep.doubt() is not None
        record = one.files.witnessed()
        async with asyncio.timeout(60 if sees == "the upkeep alone" else 1):
            while record is None or not record.belief.leapt:
                await asyncio.sleep(0)
                record = one.files.witnessed()
        shutil.copytree(tmp_path / "state", tmp_path / "killed")
    async with stand(tmp_path / "killed", clock=machine.wall, monotonic=machine.counted) as again:
        assert "because it was set" in (again.upkeep.doubt() or "")
        machine.pass_by(DAY)
        await once(again)
        assert await again.store.expire() == 0
        machine.pass_by(29 * DAY - 1)
        assert await again.store.expire() == 0
        machine.pass_by(1)
        assert await again.store.expire() == (2 if sees == "an upload" else 1)


@pytest.mark.parametrize("byte", range(9))
async def test_nothing_is_removed_because_of_a_witness_that_was_changed(tmp_path: Path, byte: int) -> None:
    async with stand(tmp_path) as one:
        dataset = await a_month(one)
    yesterday = (tmp_path / "ledger.db").read_bytes()
    async with stand(tmp_path) as one:
        await one.store.put(ACTOR, dataset, PHOTO + b"x")
    restore(tmp_path, yesterday)
    async with stand(tmp_path) as one:
        assert any("older than the sealed files" in finding for finding in one.upkeep.findings)
        for number in range(4):
            await one.store.put(ACTOR, dataset, PHOTO + b"%d" % number)
    damage_bit(tmp_path / "images" / WITNESS, byte * 8)
    async with stand(tmp_path) as one:
        lost, rowless = one.upkeep.findings
        assert "images/witness" in lost
        assert "1 sealed files" in rowless
        assert "move them out" in rowless
    (kept,) = {path.name for path in files(tmp_path)} - {
        UUID(image.id).hex for image in await listed(tmp_path, dataset)
    }
    (tmp_path / "images" / UUID(dataset.id).hex / kept).rename(tmp_path / kept)
    async with stand(tmp_path) as one:
        assert one.upkeep.findings == [], "the way out that the README tells"


async def test_a_witness_of_an_older_version_is_taken_up_once(tmp_path: Path) -> None:
    """Its MAC was over the belief alone."""
    async with stand(tmp_path) as one:
        await a_month(one)
    async with stand(tmp_path) as one:
        keys, witness = one.keyring.service, tmp_path / "images" / WITNESS
        fields = witness.read_bytes()[:57]
        former = fields + keys.mac("believed time", fields[9:])
        whole = Record.opened(witness.read_bytes(), keys)
        assert Record.opened(former, keys) == whole
    witness.write_bytes(former)
    async with stand(tmp_path) as one:
        assert (one.upkeep.findings, one.upkeep.doubt()) == ([], None)
        assert witness.read_bytes() != former
    damage_bit(witness, 60)
    async with stand(tmp_path) as one:
        assert any("images/witness" in finding for finding in one.upkeep.findings)


async def listed(state: Path, dataset: Dataset) -> Sequence[Image]:
    async with stand(state) as one:
        return await one.store.list(dataset)


async def once(one: Stand) -> None:
    """What the upkeep does now and then, until it believes the clock."""
    async with one.upkeep.at_leisure(one.store), asyncio.timeout(60):
        while one.upkeep.doubt() is not None:
            await one.ledger.read(lambda _: None)


async def test_images_go_when_their_time_in_the_dataset_is_over(tmp_path: Path) -> None:
    async with stand(tmp_path) as one:
        kept = await default(one)
        short = await one.datasets.add(ACTOR, kept.customer, "a month", retention_days=30)
        for dataset in (kept, short):
            await one.store.put(ACTOR, dataset, PHOTO)
        one.clock.now += 10 * 86400
        later = await one.store.put(ACTOR, short, PHOTO + b"x")
        assert await one.store.expire() == 0
        one.clock.now += 20 * 86400
        assert await one.store.expire() == 1
        assert await one.store.expire() == 0
        assert await one.store.list(short) == [later]
        assert len(await one.store.list(kept)) == 1
        assert len(files(tmp_path)) == 2
        log = await one.ledger.read(lambda connection: entries(connection, kept.customer))
        assert [entry.actor.id for entry in log if entry.event == "image.delete"] == ["retention"]


async def test_a_clock_that_leaps_ahead_deletes_nothing_for_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, passed = Clock(), Clock(0.0)
    async with stand(tmp_path, clock=clock) as one:
        short = await one.datasets.add(ACTOR, await one.customer(), "a month", retention_days=30)
        image = await one.store.put(ACTOR, short, PHOTO)
    clock.now += 31 * 86400
    async with Ledger(tmp_path, Registry()) as ledger, Customers(ledger, clock) as customers:
        await customers.add(ACTOR, "audited before the store is opened, as the daemon's start is")
    async with stand(tmp_path, clock=clock, monotonic=passed) as again:
        assert "744 hours ahead" in caplog.text
        assert "for 24 hours more" in (again.upkeep.doubt() or "")
        async with again.upkeep.at_leisure(again.store):
            for _ in range(20):
                assert await again.store.list(short) == [image]
        assert "appliance_store_clock_doubted_seconds 2.6784e+06" in generate_latest(again.registry).decode()
    clock.now += 3600
    passed.now = 0.0
    async with stand(tmp_path, clock=clock, monotonic=passed) as again:
        async with again.upkeep.at_leisure(again.store):
            for _ in range(20):
                assert await again.store.list(short) == [image]
        passed.now += 86400
        clock.now += 86400
        assert again.upkeep.doubt() is None
        async with again.upkeep.at_leisure(again.store):
            while await again.store.list(short):
                pass


async def test_an_image_is_kept_for_its_time_though_the_clock_was_behind_when_it_came(tmp_path: Path) -> None:
    clock = Clock()
    async with stand(tmp_path, clock=clock) as one:
        short = await one.datasets.add(ACTOR, await one.customer(), "a month", retention_days=30)
    clock.now -= 40 * 86400
    async with stand(tmp_path, clock=clock) as behind:
        image = await behind.store.put(ACTOR, short, PHOTO)
    clock.now += 40 * 86400
    async with stand(tmp_path, clock=clock) as right:
        clock.now += 30 * 86400 - 1
        assert await right.store.expire() == 0
        assert await right.store.list(short) == [image]
        clock.now += 1
        assert await right.store.expire() == 1


async def test_images_from_a_clock_that_was_ahead_keep_no_others(tmp_path: Path) -> None:
    """Though they come first, and are more than are looked at once."""
    clock = Clock()
    async with stand(tmp_path, clock=clock) as one:
        short = await one.datasets.add(ACTOR, await one.customer(), "a month", retention_days=30)
    clock.now += 90 * 86400
    async with stand(tmp_path, clock=clock) as ahead:
        first = await ahead.store.put(ACTOR, short, PHOTO)

        def as_many_more(connection: Connection) -> None:
            columns = "format, width, height, size, thumbnail, facet"
            connection.execute(
                f"INSERT INTO images (key, id, dataset, created_at, rests_from, content, {columns})"
                " WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 300)"
                f" SELECT key + i, 'more ' || i, dataset, created_at, rests_from, randomblob(32), {columns}"
                " FROM images, n"
            )
            connection.execute("UPDATE datasets SET next_position = 301, images = 301")

        await ahead.ledger.write(as_many_more)
    clock.now -= 90 * 86400
    async with stand(tmp_path, clock=clock) as right:
        other = await right.store.put(ACTOR, short, PHOTO + b"x")
        assert other.key > first.key
        clock.now += 30 * 86400 - 1
        assert await right.store.expire() == 0
        clock.now += 1
        for _ in range(3):  # all are looked at in turn
            await right.store.expire()
        with pytest.raises(NotFound):
            await right.store.get(short.customer, other.id)
        assert await right.store.get(short.customer, first.id) == first
