"""Whether the machine is what was declared, while the appliance runs: no image is stored while it is not."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from appliance.accounts.audit import Actor, Event, record
from appliance.background import end_tasks
from appliance.errors import ResidencyBroken, StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.residency import Facts, Finding

_ACTOR = Actor("system", "residency")


class Compliance:
    """The last judgement of the machine. Findings that production would not start with are audited, each
    under its key, once when they begin and once when they end.

    A start ends what a run before had found: production starts with no finding.
    """

    def __init__(
        self, verify: Callable[[Facts], list[Finding]], ledger: Ledger, clock: Callable[[], float]
    ) -> None:
        self._verify = verify
        self._ledger = ledger
        self._clock = clock
        self._changed = asyncio.Event()
        self._recorded: set[str] = set()
        self._findings: tuple[Finding, ...] = ()
        self._facts: Facts | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._record_changes(), name="compliance")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(self._task)

    @property
    def facts(self) -> Facts | None:
        """As last judged, None before."""
        return self._facts

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of the last judgement, what is only told among them."""
        return self._findings

    def judge(self, facts: Facts) -> list[Finding]:
        """Judge what the machine says now; what is found holds until the next judgement."""
        found = self._verify(facts)
        self._facts, self._findings = facts, tuple(found)
        if self._broken().keys() != self._recorded:
            self._changed.set()
        return found

    def require(self) -> None:
        """Raises ResidencyBroken, with every finding, unless images may be stored."""
        if broken := self._broken():
            reasons = "; ".join(f"{key}: {reason}" for key, reason in broken.items())
            refused = "no image is stored until this is put right"
            raise ResidencyBroken(f"{refused}: {reasons}", told=f"{refused}: {', '.join(broken)}")

    async def record(self) -> None:
        """Write what has begun or ended since the last row. A ledger that takes no write says so itself; the
        next judgement tries again.
        """
        broken, now = self._broken(), int(self._clock() * 1000)
        began, ended = sorted(broken.keys() - self._recorded), sorted(self._recorded - broken.keys())

        def act(connection: Connection) -> None:
            for key in began:
                details: dict[str, object] = {"reason": broken[key]}
                record(connection, now, _ACTOR, Event.RESIDENCY_BREAK, None, key, details)
            for key in ended:
                record(connection, now, _ACTOR, Event.RESIDENCY_RESTORE, None, key)

        if began or ended:
            with contextlib.suppress(StorageFailed, VolumeFull):
                await self._ledger.write(act)
                self._recorded = set(broken)

    async def _record_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.record()

    def _broken(self) -> dict[str, str]:
        reasons: dict[str, str] = {}
        for finding in self._findings:
            if finding.severity == "refuse":
                before = reasons.get(finding.key)
                reasons[finding.key] = finding.message if before is None else f"{before}, {finding.message}"
        return reasons
