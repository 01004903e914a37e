"""How long entries wait for the checkpoint that covers them, and what it tells when they wait for longer.

Where an older checkpoint is put back, and the newer tiles are taken away, the entries behind it look as if
they had just come. What they are tells otherwise: a daemon signs its own within a minute, and what a kill
leaves is of its last one.
"""

from appliance.accounts.audit import Event
from appliance.accounts.transparency.judgement import Judgement
from appliance.accounts.transparency.leaves import Recorded
from appliance.ledger import Connection

EVERY_SECONDS = 60.0
"""So long an entry may wait for the checkpoint that covers it."""

_STEP_MS = int(EVERY_SECONDS * 1000)
_STEPS = 3
# Of a daemon alone: a single command without one signs nothing, however long nobody starts any.
_BY_DAEMON = (
    "SELECT seq, time FROM audit WHERE seq > ? AND (actor_kind = 'token' OR event = 'daemon.start')"
    " ORDER BY seq"
)

Waited = tuple[int, int, int]
"""The first and the last entry that waited for too long, and how many minutes at least."""


class _Waiting:
    """Entries of daemons that are under no checkpoint, and how long they were at work meanwhile.

    Each step of the time counts as a minute at most. So a leap of the clock, the time that the appliance was
    off, and a start that was killed before it signed are not too long, all three together.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._last = self._latest = self._passed = 0

    def add(self, seq: int, time: int) -> None:
        if self._first is None:
            self._first, self._latest = seq, time
        self._passed += min(max(time - self._latest, 0), _STEP_MS)
        self._latest = max(time, self._latest)
        self._last = seq

    def too_long(self) -> Waited | None:
        if self._first is None or self._passed <= _STEPS * _STEP_MS:
            return None
        return self._first, self._last, self._passed // 60_000


def waited(connection: Connection, signed: int) -> Waited | None:
    """Which entries behind those that are `signed` have waited for longer than a daemon has them wait."""
    waiting = _Waiting()
    for seq, time in connection.execute(_BY_DAEMON, (signed,)):
        waiting.add(seq, time)
    return waiting.too_long()


class Overdue:
    """That entries of a daemon are under a checkpoint, save for the last ones; and that they were at each
    start, as far as that has noted it, which signs over what was not.
    """

    def __init__(self, signed: int | None) -> None:
        """`signed` entries are under a checkpoint; None where there is none, which is found elsewhere."""
        self._signed = signed
        self._waiting = _Waiting()
        self._noted: list[str] = []

    def see(self, entry: Recorded) -> None:
        if entry.event == Event.AUDIT_OVERDUE:
            self._noted.append(f"entry {entry.seq}: {entry.details.get('count')} entries had waited")
        by_daemon = entry.actor.kind == "token" or entry.event == Event.DAEMON_START
        if by_daemon and self._signed is not None and entry.seq > self._signed:
            self._waiting.add(entry.seq, entry.time)

    def judge(self, connection: Connection) -> Judgement:  # noqa: ARG002 - the entries tell it
        remarks = [
            f"{told} for their checkpoint for too long: an older one had been put back, none could be made,"
            " or the clock was set ahead again and again"
            for told in self._noted
        ]
        if (found := self._waiting.too_long()) is None:
            return Judgement(remarks=remarks)
        first, last, minutes = found
        overdue = (
            f"entries {first} to {last} are under no checkpoint, and the daemon was at work for {minutes}"
            " minutes or more meanwhile: an older one was put back, or it cannot make one, which `status`"
            " tells, or its clock was set ahead again and again"
        )
        return Judgement([overdue], remarks)
