"""A backup or a restore that is killed at any of its steps leaves what is whole, or is told from a whole one.

A child is ended at its n-th change of a file or folder, for n from the first to the last, in steps that leave
a few dozen kills; the full run takes every one.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.backup.receiving import Received, receive
from appliance.backup.restoration import check_empty, check_whole
from appliance.errors import StorageFailed
from appliance.vault import Keyring
from tests.backing import Shelf, proven, put_back, silent, source
from tests.storing import ACTOR, ROOT, stand

CHANGES = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "write", "open", "link")
IMAGES = 3
KILLED = 9
STEPS = [pytest.param(11, id="some"), pytest.param(1, id="all", marks=pytest.mark.full)]


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Runs `act` in a child that ends at its change of this number; whether there was one."""
    child = os.fork()
    if child == 0:
        left = number
        code = 1
        try:

            def counted(change: Callable[..., object]) -> Callable[..., object]:
                def wrapped(*words: object, **named: object) -> object:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os._exit(KILLED)
                    return change(*words, **named)

                return wrapped

            for name in CHANGES:
                setattr(os, name, counted(getattr(os, name)))
            act()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, KILLED}
    return code == KILLED


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A backup as it is sent."""
    state = tmp_path_factory.mktemp("state")

    async def made() -> list[bytes]:
        async with stand(state) as opened:
            dataset = await opened.datasets.add(ACTOR, await opened.customer(), "Summer")
            for number in range(IMAGES):
                await opened.store.put(ACTOR, dataset, f"{number} ".encode() * 3000)
            (state / "bundles" / "model@1").mkdir(parents=True)
            (state / "bundles" / "model@1" / "bundle.toml").write_bytes(b"")
            async with source(opened) as backups:
                making = await backups.begin(ACTOR)
                pieces = [piece async for piece in making.pieces()]
                making.close()
                return pieces

    return asyncio.run(made())


def received(pieces: list[bytes], shelf: Shelf) -> Received:
    async def arriving() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return asyncio.run(receive(arriving(), shelf.backups, shelf.keyrings, keep_days=30, progress=silent))


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_backup_is_whole_or_is_none(recorded: list[bytes], tmp_path: Path, step: int) -> None:
    number, whole = 1, 0
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        shelf = Shelf.under(folder)
        killed = killed_at(number, lambda: received(recorded, shelf))  # noqa: B023 - it runs at once
        for keyring in shelf.keyrings.glob("keyring-*"):
            Keyring.open(keyring, ROOT).wipe()
        named = [path for path in shelf.backups.iterdir() if not path.name.startswith(".")]
        if named:
            (keyring,) = shelf.keyrings.glob("keyring-*")
            assert proven(named[0], keyring).images == IMAGES
            whole += killed
        else:
            assert killed
            received(recorded, shelf)
        names = [path.name for path in (*shelf.backups.iterdir(), *shelf.keyrings.iterdir())]
        assert len(names) == 3 or (killed and named)
        if not killed:
            break
        number += step
    assert number > 50
    assert whole <= 10  # it gets its name at the very end


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_restore_is_whole_or_nothing_starts_on_it(
    recorded: list[bytes], tmp_path: Path, step: int
) -> None:
    shelf = Shelf.under(tmp_path)
    made = received(recorded, shelf)
    number, refused = 1, 0
    while True:
        state = tmp_path / f"state {number}"
        state.mkdir()
        killed = killed_at(
            number,
            lambda: asyncio.run(put_back(made.folder, made.keyring, state)),  # noqa: B023 - it runs at once
        )
        assert killed or number > 50
        if (state / ".restore").exists():
            refused += 1
            with pytest.raises(StorageFailed, match="was interrupted"):
                check_whole(state)
        if (state / ".restore").exists() or not any(state.iterdir()):
            check_empty(state)
            asyncio.run(put_back(made.folder, made.keyring, state))
        assert {path.name for path in state.iterdir()} == {"images", "bundles", "keyring", "ledger.db"}
        asyncio.run(sound(state))
        if not killed:
            break
        number += step
    assert refused > 3


async def sound(state: Path) -> None:
    async with stand(state) as opened:
        assert opened.upkeep.findings == []
        (dataset,) = await opened.datasets.list(await opened.customer())
        for image in await opened.store.list(dataset):
            opened.files.open(image.name, opened.datasets.keys(dataset)).close()
        assert dataset.images == IMAGES
