"""One customer floods the device, another asks for a tenth of what it can do: who waits, and who is refused.

Counted in answers, not in seconds: what else the machine does changes nothing.
"""

import asyncio
import tempfile  # noqa: TID251 - the model is made into a folder of its own; no image is written
from collections import Counter
from pathlib import Path

import numpy as np
import uvloop

from appliance.config import Recognition
from appliance.errors import Overloaded
from appliance.metrics import Registry
from appliance.recognition.bundles import Bundle
from appliance.recognition.engine import Engine
from tests.bench.report import Report
from tests.unit.recognition.small_models import SIZE, network

ANSWERS, TENTH, BATCH, QUEUE = 4000, 10, 8, 64
OUTPUTS = ("logits",)
FLOOD, LITTLE = "flood", "little"


def run(report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        seen = uvloop.run(_flooded(network(Path(folder))))
    report.figure("asked by who floods", seen.asked[FLOOD], "images", note=f"{2 * QUEUE} at a time")
    report.figure("  of these refused", seen.refused[FLOOD], "images")
    report.figure("asked by who asks little", seen.asked[LITTLE], "images", at_least=ANSWERS // TENTH - 1)
    report.figure("  of these refused", seen.refused[LITTLE], "images", at_most=0)
    report.figure("  whole batches before its own, at most", seen.most_before // BATCH, "", at_most=2)


class _Flooded:
    """Both customers on one engine until ANSWERS were given."""

    def __init__(self, engine: Engine, bundle: Bundle) -> None:
        self._engine = engine
        self._bundle = bundle
        self._pixels = np.random.default_rng(1).integers(0, 250, (SIZE, SIZE, 3), np.uint8)
        self._answers = Counter[str]()
        self._begun = 0  # of those who ask little
        self.asked, self.refused = Counter[str](), Counter[str]()
        self.most_before = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(2 * QUEUE):
                group.create_task(self._flood(group))

    async def _flood(self, group: asyncio.TaskGroup) -> None:
        while self._answers.total() < ANSWERS:
            if not await self._ask(FLOOD):
                await asyncio.sleep(0)
            elif self._answers.total() // TENTH > self._begun:
                self._begun += 1
                group.create_task(self._little())

    async def _little(self) -> None:
        # What the device has answered by now; some of those who asked have not been woken yet.
        waiting = self._engine._devices[0].room.of(FLOOD)
        before = self.asked[FLOOD] - self.refused[FLOOD] - waiting
        if await self._ask(LITTLE):
            self.most_before = max(self.most_before, self._answers[FLOOD] - before)

    async def _ask(self, customer: str) -> bool:
        self.asked[customer] += 1
        try:
            await self._engine.infer(self._bundle, self._pixels, OUTPUTS, customer=customer)
        except Overloaded:
            self.refused[customer] += 1
            return False
        self._answers[customer] += 1
        return True


async def _flooded(bundle: Bundle) -> _Flooded:
    async with Engine(Recognition(max_batch=BATCH, queue=QUEUE), Registry()) as engine:
        await engine.load(bundle)
        flooded = _Flooded(engine, bundle)
        await flooded.run()
        return flooded
