"""kill -9 at the calls of put, delete, erase and changes of keys: acknowledged is whole, the rest is not."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.store_harness import (
    CALLS,
    ROOT_FOLDER,
    THREADS,
    Heard,
    Point,
    Writers,
    certainly_absent,
    check,
    check_files,
    labels,
)
from tests.faults.store_writer import DOOMED, OLD, content
from tests.storing import ACTOR, stand

SHORT = 20  # every so many points
# Calls of a first start, and how many of each one thread makes until the first images are in.
FIRST = {
    "fsync": 20,
    "fdatasync": 14,
    "pwrite64": 70,
    "renameat": 4,
    "mkdir": 1,
    "mkdirat": 1,
    "linkat": 3,
}


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    with Writers(tmp_path) as running:
        yield running


async def sweep(writers: Writers, points: list[Point]) -> list[Heard]:
    """Kill a child at each point; what they all said."""
    heard = []
    for point in points:
        state = writers.copy()
        one = writers.killed_at(state, point)
        try:
            await check(state, one, certainly_absent(one, point))
        except Exception as error:
            error.add_note(f"killed at {point}, after {sorted(one.done)}")
            raise
        heard.append(one)
    return heard


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("each", [SHORT, pytest.param(1, marks=pytest.mark.full)])
async def test_what_was_acknowledged_survives_a_kill_at_any_call(writers: Writers, each: int) -> None:
    points = writers.points(CALLS)
    assert {point.thread for point in points} == {*THREADS}
    # From another offset in each thread and call, so that the short sweep has some of every kind.
    chosen = [point for number, point in enumerate(points) if number % each == 0 or point.when == 1]
    heard = await sweep(writers, chosen)
    killed = [one for one in heard if one.code == -9]
    told = sum(len(one.done) for one in killed)
    print(f"{len(chosen)} of {len(points)} points, {len(killed)} killed, {told} acts acknowledged")
    assert len(killed) > 0.9 * len(chosen)  # how six puts at once are spread over threads is not fixed
    assert any(not one.done for one in killed)
    assert any(("keys", "rotate_root") in one.done for one in killed)


async def test_the_sweep_finds_a_store_that_acknowledges_too_early(writers: Writers) -> None:
    """The control: what is said before it is done is lost by a kill in between."""
    state = writers.copy()
    heard = writers.killed_at(state, Point("sealed-files_0", "linkat", 1), "premature")
    assert heard.said("done", "put") == {"solo-0"}
    with pytest.raises(AssertionError):
        await check(state, heard, set())


async def test_the_check_finds_what_is_lost_left_over_or_came_back(writers: Writers) -> None:
    """The control of each part of the check, on a state that it takes for sound."""
    state = writers.copy()
    heard = writers.killed_at(state, Point("blocking_0", "renameat", 6))
    assert ("erase", "doomed") in heard.done
    await check(state, heard, set())
    async with stand(state) as one:
        image = (await one.store.list(await one.datasets.default(await one.customer())))[0]
    file = state / "images" / image.name.container.hex / image.name.object.hex
    for lie in (
        Heard(heard.begun, heard.done | {("put", "never")}),
        Heard(heard.begun, heard.done | {("delete", OLD[1])}),
        Heard(heard.begun, heard.done - {("erase", "doomed")}),
    ):
        lie.begun = lie.begun - {("erase", "doomed")} if ("erase", "doomed") not in lie.done else lie.begun
        with pytest.raises(AssertionError):
            await check(state, lie, set())
    left_over = state / "images" / uuid.uuid4().hex
    left_over.mkdir()
    with pytest.raises(AssertionError):
        await check(state, heard, set())
    left_over.rmdir()
    file.unlink()
    with pytest.raises(Exception, match="no file"):
        await check(state, heard, set())


def first_start(state: Path, inject: str) -> Heard:
    """A child on an empty folder; none of the traced calls is made before it opens the store."""
    state.mkdir()
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={','.join(FIRST)}"]
    ended = subprocess.run(
        [*command, "-e", inject, sys.executable, "-m", "tests.faults.store_writer"],
        cwd=ROOT_FOLDER,
        input=json.dumps([str(state), "new"]).encode() + b"\n\n",
        capture_output=True,
        timeout=60,
        check=True,
    )
    heard = Heard()
    for line in ended.stdout.splitlines():
        match json.loads(line):
            case ["ended", code]:
                heard.code = code
            case ["ready", *_]:
                pass
            case words:
                heard.take(words)
    return heard


@pytest.mark.timeout(600)
@pytest.mark.parametrize("each", [16, pytest.param(1, marks=pytest.mark.full)])
async def test_a_first_start_that_is_killed_is_begun_again(tmp_path: Path, each: int) -> None:
    points = [(call, when) for call, most in FIRST.items() for when in range(1, most + 1)]
    killed = 0
    for call, when in points[::each]:
        state = tmp_path / f"{call}-{when}"
        heard = first_start(state, f"inject={call}:signal=SIGKILL:when={when}")
        killed += heard.code == -9
        async with stand(state) as one:
            customer = await one.customer()
            await one.datasets.default(customer)
            present = await labels(one, datasets := await one.datasets.list(customer))
            assert heard.said("done", "put") - heard.said("begun", "delete") - {*DOOMED} <= set(present)
            check_files(one, datasets, present)
            assert one.upkeep.findings == []
            await one.store.put(ACTOR, datasets[0], content("afterwards"))
    print(f"{len(points[::each])} points, {killed} killed")
    assert killed == len(points[::each])
