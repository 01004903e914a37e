"""A collection is in memory once, however many callers open it at the same moment."""

import asyncio
from pathlib import Path

from appliance.search.collections import OpenCollection
from tests.searching import ACTOR, BACKBONE, shelf


async def test_callers_that_open_while_it_loads_share_one_copy(tmp_path: Path) -> None:
    """A second copy would not see what was inserted through the first."""
    async with shelf(tmp_path) as opened:
        for turn in range(20):
            added = await opened.collections.add(ACTOR, opened.customer, f"{turn}", BACKBONE, 8)
            opening: list[asyncio.Task[OpenCollection]] = []
            async with asyncio.TaskGroup() as group:
                for _ in range(100):
                    opening.append(group.create_task(opened.collections.open(opened.customer, added.id)))
                    await asyncio.sleep(0)
            assert len({id(task.result()) for task in opening}) == 1
