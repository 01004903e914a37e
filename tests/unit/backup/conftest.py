"""A store to back up, and where its backups lie."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.backing import Shelf
from tests.storing import Stand, stand


@pytest.fixture
async def open_stand(tmp_path: Path) -> AsyncIterator[Stand]:
    state = tmp_path / "state"
    await asyncio.to_thread(state.mkdir)
    async with stand(state) as opened:
        yield opened


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf.under(tmp_path)
