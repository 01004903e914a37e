"""The folder is swapped between a check and a write, at every system call: nothing lands in the new one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.errors import VolumeOffline
from appliance.volume import DataFolder, VolumeFacts
from appliance.volume.anchor import PROBE, SENTINEL

FACTS = VolumeFacts(Path("/data"), "ext4", "luks", False, 1 << 40, 1 << 41, 1 << 20)
CALLS = ("open", "mkdir", "write", "fsync", "rename")
IMAGE = b"an image, sealed"

Swap = Callable[[Path], Path]
"""Puts another folder in place of the path; where the first one is afterwards."""


def by_a_folder(path: Path) -> Path:
    moved = path.with_name("moved")
    path.rename(moved)
    (path / "ab").mkdir(parents=True)
    (path / SENTINEL).write_bytes((moved / SENTINEL).read_bytes())
    return moved


def by_a_link(path: Path) -> Path:
    other = by_a_folder(path)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    return other


def by_an_exchange(path: Path) -> Path:
    """Of a parent, so that the path's last name never changes."""
    whole = path.parent.with_name("moved")
    path.parent.rename(whole)
    (path / "ab").mkdir(parents=True)
    (path / SENTINEL).write_bytes((whole / path.name / SENTINEL).read_bytes())
    return whole / path.name


@dataclass
class Interposed:
    """Counts system calls that write or lead to a write; `action` runs before the `when`-th."""

    when: int
    action: Callable[[], None]
    count: int = 0
    reached: bool = False


@contextmanager
def interposed(when: int, action: Callable[[], None]) -> Iterator[Interposed]:
    state = Interposed(when, action)
    real = {name: getattr(os, name) for name in CALLS}

    def wrap(name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            state.count += 1
            if state.count == state.when:
                for each, function in real.items():
                    setattr(os, each, function)
                state.reached = True
                state.action()
            return real[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))
    try:
        yield state
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def put(folder: DataFolder, name: str) -> None:
    """As a store writes an image: under a draft's name, synced, then under its own."""
    with folder.writing() as root, folder.subfolder(root, "ab", create=True) as fd:
        draft = os.open("draft", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
        os.write(draft, IMAGE)
        folder.sync(draft)
        os.close(draft)
        os.rename("draft", name, src_dir_fd=fd, dst_dir_fd=fd)
        folder.sync(fd)


def put_by_path(path: Path, name: str) -> None:
    """The same as it should not be done."""
    (path / "ab").mkdir(exist_ok=True)
    draft = os.open(path / "ab/draft", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(draft, IMAGE)
    os.fsync(draft)
    os.close(draft)
    (path / "ab/draft").rename(path / "ab" / name)


def images(folder: Path) -> list[str]:
    """Every file below that neither the guard nor a swap has made."""
    return [at.name for at in folder.rglob("*") if at.is_file() and at.name not in {SENTINEL, PROBE}]


@pytest.mark.parametrize("swap", [by_a_folder, by_a_link, by_an_exchange])
def test_nothing_lands_in_the_folder_that_took_the_place(tmp_path: Path, swap: Swap) -> None:
    landed = refused = 0
    for when in range(1, 100):
        path = tmp_path / f"{when}" / "state" / "images"
        path.mkdir(parents=True)
        first = path
        with DataFolder(path, encrypted=True, facts=lambda _: FACTS) as folder:

            def act(path: Path = path) -> None:
                nonlocal first
                first = swap(path)

            with interposed(when, act) as state:
                try:
                    put(folder, "image")
                    acknowledged = True
                except VolumeOffline:
                    acknowledged = False
                    assert folder.condition.state == "offline"
        if not state.reached:
            assert images(path) == ["image"]
            break
        assert images(path) == []
        if acknowledged:  # swapped when the last check had already seen the path
            assert images(first) == ["image"]
        landed += images(first) == ["image"]
        refused += not acknowledged
    assert refused > 7
    assert landed > 1


def test_a_path_would_lead_into_it(tmp_path: Path) -> None:
    """The control: the same writes by path land in the wrong folder for some swap."""
    wrong = 0
    for when in range(1, 100):
        path = tmp_path / f"{when}" / "state" / "images"
        path.mkdir(parents=True)
        with DataFolder(path, encrypted=True, facts=lambda _: FACTS) as folder:

            def act(path: Path = path) -> None:
                by_a_folder(path)

            with interposed(when, act) as state:
                folder.check()
                try:
                    put_by_path(path, "image")
                except FileNotFoundError:
                    continue
        if not state.reached:
            break
        wrong += images(path) == ["image"]
    assert wrong > 0
