"""When a watch looks: by its clock, or as told; what mounts change is tested where mounts can be made."""

from pathlib import Path
from typing import Any

import pytest

from appliance.volume import Condition, DataFolder, Watch


class Folder:
    """Only counts its rechecks: whether each was to write."""

    def __init__(self) -> None:
        self.rechecks: list[bool] = []

    def recheck(self, *, write: bool = True) -> Condition:
        self.rechecks.append(write)
        return Condition("ready")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder() -> Any:
    return Folder()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_recheck_is_due_every_interval(folder: Any) -> None:
    clock = Clock()
    watch = Watch(folder, seconds=60, clock=clock)
    watch.arm()
    for expected in (1, 2):
        clock.now += 60
        assert watch.step()
        assert folder.rechecks == [True] * expected
    watch.stop()
    assert not watch.step()
    assert folder.rechecks == [True, True]


def test_nothing_is_looked_at_before_it_is_due(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    watch = Watch(folder, seconds=60, clock=clock)
    watch.arm()
    waits: list[float] = []

    class Poll:
        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            waits.append(milliseconds)
            return []

    monkeypatch.setattr(watch, "_poll", Poll())
    for passed, rechecks in ((59.5, 0), (0.5, 1), (0, 1), (60, 2)):
        clock.now += passed
        assert watch.step()
        assert len(folder.rechecks) == rechecks
    assert waits == [500, 0, 60000, 0]


def test_mounts_that_stay_are_no_event(folder: Any) -> None:
    clock = Clock()
    watch = Watch(folder, seconds=60, clock=clock)
    watch.arm()
    clock.now += 59.999
    assert watch.step()
    assert folder.rechecks == []


def test_a_change_of_mounts_is_looked_at_without_a_write(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(folder, seconds=60, clock=Clock())
    watch.arm()

    class Poll:
        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            return [(watch._mounts, 2)]

    monkeypatch.setattr(watch, "_poll", Poll())
    assert watch.step()
    assert folder.rechecks == [False]


async def test_its_thread_ends_with_it_and_gives_everything_back(folder: Any) -> None:
    before = descriptors()
    async with Watch(folder, seconds=3600) as watch:
        assert watch._thread.is_alive()
        assert descriptors() == before + 3
    assert not watch._thread.is_alive()
    assert descriptors() == before
    assert folder.rechecks == []


async def test_a_real_folder_is_watched(tmp_path: Path) -> None:
    """Its descriptors and its probe: a due recheck writes it anew."""
    clock = Clock()
    with DataFolder(tmp_path / "images", encrypted=False) as folder:
        probe = tmp_path / "images" / ".probe"
        before = probe.read_bytes()
        watch = Watch(folder, seconds=60, clock=clock)
        watch.arm()
        clock.now += 60
        count = descriptors()
        assert watch.step()
        assert folder.condition == Condition("ready")
        assert probe.read_bytes() != before
        assert descriptors() == count
        watch.stop()
        assert not watch.step()
