"""kill -9 at every step of an erasure, of a customer or of all that an agreement allowed to be stored.

It has not begun, or the next start ends it.
"""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from appliance.accounts.certificates import verified
from tests import storing
from tests.erasing import Held, everything, fill
from tests.storing import read

EVERY = 9
"""Of the steps, in the short sweep."""


class Prepared:
    """A state with two customers, of whom one is to be erased, and the process that erases copies of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / "prepared"
        self._state.mkdir()
        self.doomed, self.kept = asyncio.run(self._fill())
        (self._state / "doomed").write_text(json.dumps([self.doomed.id, self.doomed.name]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.erasure_writer"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    async def _fill(self) -> tuple[Held, Held]:
        async with everything(self._state) as parts:
            return await fill(parts, records=300, images=2), await fill(parts)

    def copy(self, name: str) -> Path:
        copied = self.folder / name
        shutil.copytree(self._state, copied)
        return copied

    def run(self, state: Path, step: int, what: str = "customer") -> list[Any]:
        """What a child says that dies at this step, its end last."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(state), f"{what} {step}"]).encode() + b"\n")
        self.process.stdin.flush()
        said = []
        for line in self.process.stdout:
            said.append(json.loads(line))
            if said[-1][0] == "ended":
                return said
        raise AssertionError(said)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    made = Prepared(tmp_path_factory.mktemp("erasures"))
    with made.process:
        yield made
        made.process.kill()


def steps(prepared: Prepared) -> int:
    state = prepared.copy("whole")
    (said, count), (ended, code) = prepared.run(state, 0)
    assert (said, ended, code) == ("steps", "ended", 0)
    asyncio.run(check(state, prepared, begun=True))
    return cast("int", count)


async def check(state: Path, prepared: Prepared, *, begun: bool | None) -> bool:
    """What a restart finds, and comes to; whether the erasure had begun."""
    doomed, kept = prepared.doomed, prepared.kept
    async with everything(state) as parts:
        has_begun = doomed.name not in await parts.names()
        assert begun in {None, has_begun}
        await asyncio.gather(*parts.erasure._tasks.values())
        keys = {customer for customer, _, _ in parts.stand.keyring.containers()}
        certificates = await parts.certificates.list(doomed.id)
        if has_begun:
            assert await parts.rows(doomed.id) == {}
            assert UUID(doomed.id) not in keys
            assert [one.kind for one in certificates].count("customer") == 1
            assert sorted(one.kind for one in certificates) == [
                "collection",
                "customer",
                "dataset",
                "dataset",
            ]
            proof = verified(parts.certificates.envelope(certificates[-1]), parts.certificates.public_key)
            assert proof.counts["records"] == 300
            (state / "doomed").unlink()
            left = storing.everything(state)
            assert [word for word in doomed.words if word.encode() in left] == []
            assert {path.name for path in (state / "images").glob("*") if len(path.name) == 32} == {
                UUID(dataset.id).hex for dataset in await parts.stand.datasets.list(kept.id)
            }
        else:
            assert certificates == []
            assert parts.tokens.verify(doomed.token).customer == doomed.id
        for held in [kept] if has_begun else [kept, doomed]:
            images = [
                await read(parts.stand, image)
                for dataset in await parts.stand.datasets.list(held.id)
                for image in await parts.stand.store.list(dataset)
            ]
            assert sorted(images) == sorted(held.images)
            opened = await parts.collections.open(held.id, held.collection)
            assert opened.count == (300 if held is doomed else 20)
        return has_begun


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", [EVERY, pytest.param(1, marks=pytest.mark.full)])
def test_a_kill_at_any_step_leaves_all_or_nothing(prepared: Prepared, every: int) -> None:
    count = steps(prepared)
    begun = []
    for step in [1, 2, 3, *range(6, count + 1, every)]:
        state = prepared.copy(f"step-{every}-{step}")
        *_, (_, code) = prepared.run(state, step)
        # Cuts of the log by itself are steps as well, and not always as many.
        assert code == -9 or (code == 0 and step > count - 8), step
        begun.append(asyncio.run(check(state, prepared, begun=None)))
        shutil.rmtree(state)
    shutil.rmtree(prepared.folder / "whole")
    assert not begun[0]
    assert all(begun[3:])


async def check_agreed(state: Path, prepared: Prepared) -> bool:
    """Whether the agreement is revoked: then nothing of what it allowed is left, else nothing has gone."""
    doomed = prepared.doomed
    async with everything(state) as parts:
        one = parts.stand
        (agreement,) = await one.agreements.list(doomed.id)
        await asyncio.gather(*one.datasets._erasing)
        datasets = await one.datasets.list(doomed.id)
        certified = [erased.kind for erased in await parts.certificates.list(doomed.id)]
        folders = {path.name for path in (state / "images").glob("*") if len(path.name) == 32}
        if agreement.state == "revoked":
            assert (datasets, certified) == ([], ["dataset", "dataset"])
            assert folders == {UUID(dataset.id).hex for dataset in await one.datasets.list(prepared.kept.id)}
        else:
            images = [
                await read(one, image) for dataset in datasets for image in await one.store.list(dataset)
            ]
            assert sorted(images) == sorted(doomed.images)
            assert certified == []
        return agreement.state == "revoked"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.full)])
def test_a_revocation_that_erases_leaves_all_or_nothing(prepared: Prepared, every: int) -> None:
    state = prepared.copy("agreed")
    (_, count), (_, code) = prepared.run(state, 0, "agreement")
    assert code == 0
    assert asyncio.run(check_agreed(state, prepared))
    begun = []
    for step in range(1, count + 1, every):
        state = prepared.copy(f"agreed-{every}-{step}")
        *_, (_, code) = prepared.run(state, step, "agreement")
        assert code == -9 or (code == 0 and step > count - 8), step
        begun.append(asyncio.run(check_agreed(state, prepared)))
        shutil.rmtree(state)
    shutil.rmtree(prepared.folder / "agreed")
    assert not begun[0]
    assert all(begun[2:])
