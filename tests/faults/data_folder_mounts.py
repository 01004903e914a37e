"""What befalls a data folder by mounts, for real: run in a mount namespace of its own, which ends with it.

    unshare --mount python -m tests.faults.data_folder_mounts SCENARIO FOLDER

A tmpfs is mounted on FOLDER/state. Underneath lies a folder of the same name with the very same sentinel, so
that nothing but the mount tells them apart. A scenario that fails ends with a traceback.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from appliance.errors import NotFound, VolumeFull, VolumeOffline
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.volume import DataFolder, Space, Watch
from appliance.volume.anchor import SENTINEL
from tests.faults.ledger_writer import insert
from tests.faults.test_ledger_kill import inserted
from tests.storing import ACTOR, stand

OWN = {".volume", ".probe", ".ballast"}
MIB = 1 << 20


class Machine:
    """A data folder on a filesystem of its own; `beside` shows the same filesystem at another place."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.beside = folder / "beside"
        self.elsewhere = folder / "elsewhere"
        self.images = self.state / "images"
        for path in (self.images, self.beside, self.elsewhere):
            path.mkdir(parents=True)
        run("mount", "--make-rprivate", "/")
        underneath = os.open(self.images, os.O_RDONLY)
        tmpfs(self.state)
        run("mount", "--bind", self.state, self.beside)
        self.folder = DataFolder(self.images, encrypted=False)
        self.folder.open()
        with open(SENTINEL, "wb", opener=lambda name, flags: os.open(name, flags, dir_fd=underneath)) as file:
            file.write((self.images / SENTINEL).read_bytes())
        os.close(underneath)

    def put(self, name: str) -> None:
        with self.folder.writing() as fd:
            write(fd, name)

    def stored(self) -> set[str]:
        return names(self.beside / "images")

    def offline(self, reason: str) -> None:
        """That writing is refused for this reason."""
        with pytest.raises(VolumeOffline, match=reason):
            self.put("refused")
        assert self.folder.condition.state == "offline"

    def ready(self) -> None:
        assert self.folder.condition.state == "ready", self.folder.fault
        self.put("again")
        assert "again" in self.stored()


def run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True)


def tmpfs(folder: Path, size: str = "8m") -> None:
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)


def write(folder: int, name: str, content: bytes = b"an image") -> None:
    with open(name, "wb", opener=lambda name, flags: os.open(name, flags, 0o600, dir_fd=folder)) as file:
        file.write(content)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - OWN


def lazily_unmounted(machine: Machine) -> None:
    machine.put("first")
    run("umount", "--lazy", machine.state)
    assert (machine.images / SENTINEL).exists()
    machine.offline("another folder or filesystem")
    assert names(machine.images) == set()
    assert machine.folder.recheck().state == "offline"
    assert machine.stored() == {"first"}


def unmounted_within_a_write(machine: Machine) -> None:
    def put() -> None:
        with machine.folder.writing() as fd:
            run("umount", "--lazy", machine.state)
            write(fd, "late")

    with pytest.raises(VolumeOffline, match="another folder or filesystem"):
        put()
    assert names(machine.images) == set()
    assert machine.stored() == {"late"}


def mounted_again(machine: Machine) -> None:
    run("umount", "--lazy", machine.state)
    machine.offline("another folder or filesystem")
    run("mount", "--bind", machine.beside, machine.state)
    machine.offline("another folder or filesystem")  # nobody has looked yet
    machine.folder.recheck()
    machine.ready()
    # The detached mount is held no longer, so this is the mount that the path leads to.
    with machine.folder.writing() as fd:
        there = os.open(machine.images, os.O_RDONLY)
        assert mount_of(fd) == mount_of(there)
        assert not os.get_inheritable(fd)
        os.close(there)


def mount_of(fd: int) -> str:
    return next(line for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if "mnt_id" in line)


def another_volume_with_the_same_sentinel(machine: Machine) -> None:
    content = (machine.images / SENTINEL).read_bytes()
    run("umount", "--lazy", machine.state)
    tmpfs(machine.state)
    machine.images.mkdir()
    (machine.images / SENTINEL).write_bytes(content)
    machine.offline("another folder or filesystem")
    assert machine.folder.recheck().state == "offline"
    assert names(machine.images) == set()


def mounted_over(machine: Machine) -> None:
    for place in (machine.images, machine.state):
        tmpfs(place)
        machine.offline("No such file" if place == machine.state else "another folder")
        assert machine.folder.recheck().state == "offline"
        assert names(place) == set()
        run("umount", place)
        machine.folder.recheck()
        machine.ready()


def bound_to_itself(machine: Machine) -> None:
    run("mount", "--bind", machine.images, machine.images)
    machine.ready()
    machine.folder.recheck()
    machine.ready()


def mounted_over_a_subfolder(machine: Machine) -> None:
    with machine.folder.writing() as fd, machine.folder.subfolder(fd, "ab", create=True):
        pass
    tmpfs(machine.images / "ab")

    def put() -> None:
        with machine.folder.writing() as fd, machine.folder.subfolder(fd, "ab", create=True):
            pytest.fail("given out")

    with pytest.raises(VolumeOffline, match="mounted on"):
        put()
    assert machine.folder.condition.state == "offline"
    assert machine.folder.recheck().state == "offline"
    run("umount", machine.images / "ab")
    machine.folder.recheck()
    machine.ready()


def read_only(machine: Machine) -> None:
    for options in ("remount,ro", "remount,bind,ro"):
        run("mount", "-o", options, machine.state)
        with pytest.raises(VolumeOffline, match="read-only"):
            machine.folder.check()  # before anything is written
        machine.offline("read-only")
        assert machine.folder.recheck().state == "offline"
        run("mount", "-o", options.replace("ro", "rw"), machine.state)
        machine.folder.recheck()
        machine.ready()


def full(machine: Machine) -> None:
    space = Space(machine.folder, least_bytes=0, ballast_bytes=2 * MIB)
    assert space.restore_ballast()
    with pytest.raises(VolumeFull), machine.folder.writing() as fd:
        write(fd, "large", bytes(16 * MIB))
    assert machine.folder.recheck().state == "ready"
    assert not space.restore_ballast() or (machine.images / ".ballast").exists()
    assert space.before_deletion()
    machine.put("small")
    with machine.folder.writing() as fd:
        os.unlink("large", dir_fd=fd)
    assert space.restore_ballast()
    machine.ready()


def full_below_the_ledger(machine: Machine) -> None:
    """It refuses what finds no room, and no more than that: neither for good, nor what came before."""

    async def write_on() -> set[str]:
        acknowledged = set()
        async with Ledger(machine.state, Registry()) as ledger:
            for turn in range(3):
                fill(machine.state / "filler")
                for number in range(20):  # each larger than the room that the ledger keeps for itself
                    with pytest.raises(VolumeFull, match="its volume is full"):
                        await insert(ledger, f"{turn}-refused-{number}", "padding" * 1_000_000)
                (machine.state / "filler").unlink()
                await insert(ledger, f"{turn}", "padding" * 2000)
                acknowledged.add(f"{turn}")
                while not await ledger.empty_log():
                    pass
        return acknowledged

    async def read() -> set[str]:
        async with Ledger(machine.state, Registry()) as ledger:
            return await ledger.read(inserted)

    assert asyncio.run(write_on()) == asyncio.run(read()) == {"0", "1", "2"}


def full_below_the_store(machine: Machine) -> None:
    """The room that ledger and keyring keep is enough to erase a dataset, also where the ballast is spent."""
    state = machine.elsewhere
    tmpfs(state, "24m")
    filler = state / "filler"

    async def erase_on_a_full_volume() -> None:
        async with stand(state) as one:
            dataset = await one.datasets.add(ACTOR, await one.customer(), "doomed")
            image = await one.store.put(ACTOR, dataset, b"an image" * 1000)
            label = await one.annotations.labels.add(ACTOR, dataset, "category", "label")
            deletions: list[Callable[[], Awaitable[None]]] = [
                lambda: one.annotations.labels.delete(ACTOR, dataset.customer, label.id, "recognition"),
                lambda: one.datasets.erase(ACTOR, dataset),
            ]
            for delete in deletions:
                fill(filler)
                await delete()
                filler.unlink()
            with pytest.raises(NotFound):
                await one.store.get(dataset.customer, image.id)
        async with stand(state) as one:
            assert await one.datasets.list(dataset.customer) == []
            assert one.upkeep.findings == []

    asyncio.run(erase_on_a_full_volume())


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while True:
            opened.write(bytes(4096))


def watched(machine: Machine) -> None:
    """A change of mounts ends the watch's wait, which would else take an hour."""
    watch = Watch(machine.folder, seconds=3600)
    watch.arm()
    tmpfs(machine.elsewhere)
    assert watch.step()
    machine.ready()
    tmpfs(machine.images)
    assert watch.step()
    assert machine.folder.condition.state == "offline"
    run("umount", machine.images)
    assert watch.step()
    machine.ready()
    watch.stop()
    assert not watch.step()


def watched_by_its_thread(machine: Machine) -> None:
    async def live() -> None:
        looked = asyncio.Event()
        loop = asyncio.get_running_loop()
        recheck = machine.folder.recheck

        def tell(*, write: bool = True) -> object:
            try:
                return recheck(write=write)
            finally:
                loop.call_soon_threadsafe(looked.set)

        machine.folder.recheck = tell  # type: ignore[method-assign, assignment]
        async with Watch(machine.folder, seconds=3600) as watch:
            tmpfs(machine.images)
            await asyncio.wait_for(looked.wait(), 60)
            assert machine.folder.condition.state == "offline"
        assert not watch._thread.is_alive()

    asyncio.run(live())


def dying_disk(machine: Machine) -> None:
    """An ext4 whose device has no room behind it: what it promised to write, it cannot."""
    tmpfs(machine.elsewhere, "16m")
    disk, place = machine.elsewhere / "disk", machine.beside
    run("umount", machine.beside)
    with disk.open("wb") as file:
        file.truncate(256 * MIB)
    run("mkfs.ext4", "-q", "-E", "nodiscard", "-J", "size=4", disk)
    run("mount", "-o", "loop,nodiscard", disk, place)
    (place / "images").mkdir()
    with DataFolder(place / "images", encrypted=False) as folder:
        with folder.writing() as fd:
            write(fd, "large", os.urandom(32 * MIB))
            large = os.open("large", os.O_RDONLY, dir_fd=fd)
        with pytest.raises(VolumeOffline, match="a sync failed"):
            folder.sync(large)
        with pytest.raises(VolumeOffline, match="until a restart"):
            folder.sync(large)
        assert folder.recheck().state == "poisoned"
        os.close(large)


SCENARIOS: dict[str, Callable[[Machine], None]] = {
    scenario.__name__: scenario
    for scenario in (
        lazily_unmounted,
        unmounted_within_a_write,
        mounted_again,
        another_volume_with_the_same_sentinel,
        mounted_over,
        bound_to_itself,
        mounted_over_a_subfolder,
        read_only,
        full,
        full_below_the_ledger,
        full_below_the_store,
        watched,
        watched_by_its_thread,
        dying_disk,
    )
}
NEEDS_ROOT = {"dying_disk", "read_only"}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Machine(Path(sys.argv[2])))
