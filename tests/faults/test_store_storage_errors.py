"""The disk fails under the store: it says so, keeps its word, and takes no failed sync for a good one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.volume.anchor import SENTINEL
from tests.faults.store_harness import (
    NAMES,
    SYNCS,
    WRITES,
    Heard,
    Point,
    Writers,
    certainly_absent,
    check,
)

SHORT = 45  # every so many points
LAST = "large-0"
FAILING = (*WRITES, *SYNCS, *NAMES, "openat")
SYNC = re.compile(rf"\b({'|'.join(SYNCS)})\(")


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    with Writers(tmp_path) as running:
        yield running


def kept_its_word(heard: Heard, point: Point, error: str) -> None:
    """It ended by itself, gave out images unless it said that their volume is offline, which it then stayed,
    and after a failed sync it stored and synced no more.
    """
    assert heard.code == 0
    assert heard.end in {"closed", "failed"}
    assert heard.offline == [*heard.refused.values()].count("VolumeOffline")
    assert heard.reads == len(heard.refused) - heard.offline
    assert begun_after(heard, {"VolumeOffline"}) <= {"VolumeOffline"}
    injected, line = next((n, line) for n, line in enumerate(heard.trace) if "INJECTED" in line)
    is_sentinel = f'"{SENTINEL}"' in line
    if is_sentinel and point.thread != "sealed-files_0":  # which looks at it once more after the last put
        assert "VolumeOffline" in heard.refused.values()
    if point.thread == "blocking_0":
        return  # the keyring: a change of it that failed is none, and the next one writes another file
    if point.call in SYNCS:
        # Behind all that was asked for are the last sync of the witness, and those of the closing ledger: a
        # failed one before these would be followed by them, which no sync may be.
        closing = ("put", LAST) in heard.done and "/ledger.db" in line
        assert heard.said("refused", "put") or heard.end == "failed" or "/witness>" in line or closing
        assert None not in begun_after(heard, {"StorageFailed", "VolumeOffline"})
        assert not [line for line in heard.trace[injected + 1 :] if SYNC.search(line)]
    elif error == "ENOSPC" and point.thread == "sealing_0" and not is_sentinel:
        assert [*heard.refused.values()] == ["VolumeFull"]  # of a volume that was full, and has room again


def begun_after(heard: Heard, refusals: set[str]) -> set[str | None]:
    """How the puts ended that were begun after one had been refused so; None for well."""
    first = next(
        (
            n
            for n, (word, *what) in enumerate(heard.order)
            if (word, what[0]) == ("refused", "put") and heard.refused["put", what[1]] in refusals
        ),
        len(heard.order),
    )
    return {
        heard.refused.get((act, label))
        for word, act, label in heard.order[first:]
        if (word, act) == ("begin", "put")
    }


async def sweep(writers: Writers, points: list[Point], error: str) -> list[Heard]:
    heard = []
    for point in points:
        state = writers.copy()
        one = writers.failing_at(state, point, error)
        try:
            if one.met:
                kept_its_word(one, point, error)
            await check(state, one, certainly_absent(one, point))
        except Exception as failure:
            failure.add_note(f"{error} at {point}: {one.order}, {one.refused}, {one.end}")
            raise
        heard.append(one)
    return heard


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("each", [SHORT, pytest.param(1, marks=pytest.mark.full)])
async def test_any_call_may_fail(writers: Writers, each: int, error: str) -> None:
    points = writers.points(FAILING)
    chosen = [point for number, point in enumerate(points) if number % each == 0 or point.when == 1]
    heard = await sweep(writers, chosen, error)
    met = [one for one in heard if one.met]
    refused = sum(len(one.refused) for one in met)
    print(f"{error}: {len(chosen)} of {len(points)} points, {len(met)} met, {refused} acts refused")
    assert len(met) > 0.9 * len(chosen)
    assert refused > len(met) / 2


def test_the_check_finds_a_store_that_goes_on_after_a_failed_sync() -> None:
    """The control: it syncs once more and takes that for good, stores on, or ends in a crash."""
    point = Point("sealed-files_0", "fsync", 1)

    def heard(*words: list[str], trace: list[str] | None = None, code: int = 0) -> Heard:
        said = Heard(end="closed", code=code, trace=["fsync(7</images>) = -1 EIO (INJECTED)", *(trace or [])])
        for one in words:
            said.take(one)
        return said

    began, refused = ["begin", "put", "a"], ["refused", "put", "a", "VolumeOffline"]
    told = [["begin", "put", "b"], ["refused", "put", "b", "VolumeOffline"]]
    offline = [["offline", ""], ["offline", ""]]
    kept_its_word(heard(began, refused, *told, *offline), point, "EIO")
    for other in (
        heard(began, refused, *told, *offline, trace=["syncfs(7</images>) = 0"]),
        heard(began, refused, ["begin", "put", "b"], ["done", "put", "b"], offline[0]),
        heard(began, refused, *told),
        heard(began, ["done", "put", "a"]),
        heard(began, refused, *told, *offline, code=1),
    ):
        with pytest.raises(AssertionError):
            kept_its_word(other, point, "EIO")


@pytest.mark.parametrize("call", ["writev", "linkat"])
async def test_a_volume_that_stays_full_refuses_every_upload_and_keeps_the_rest(
    writers: Writers, call: str
) -> None:
    thread = "sealed-files_0" if call == "linkat" else "sealing_0"
    state = writers.copy()
    point = Point(thread, call, 1)
    heard = writers.failing_at(state, point, "ENOSPC", ever_after=True)
    assert {label for label in heard.said("done", "put") if "group" not in label} == set()
    assert set(heard.refused.values()) == {"VolumeFull"}
    assert ("delete", "old-0") in heard.done
    assert ("erase", "doomed") in heard.done
    await check(state, heard, certainly_absent(heard, point))


async def test_a_large_image_is_refused_before_it_is_written_where_there_is_no_room(writers: Writers) -> None:
    state = writers.copy()
    point = Point("sealing_0", "fallocate", 1)
    heard = writers.failing_at(state, point, "ENOSPC", ever_after=True)
    assert heard.refused == {("put", "large-0"): "VolumeFull"}
    await check(state, heard, certainly_absent(heard, point))
