"""What a run did, is doing, or why it did nothing: counts, and the ids behind the first of each."""

import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import msgspec

NAMED = 100


class State(StrEnum):
    """Of a run; the first three may still go on."""

    WAITING = "waiting"
    RUNNING = "running"
    NEEDS_CONFIRMATION = "needs_confirmation"
    DONE = "done"
    UNCHANGED = "unchanged"
    FAILED = "failed"


class Report(msgspec.Struct):
    """`items` of the feed, `bytes` of it as they came; `left` have still to be seen to, `missing` are records
    whose items the feed has no more.

    Of records `added`, `changed`, `gone`, and of items that `failed`, the first NAMED are named.
    """

    bytes: int = 0
    items: int = 0
    unchanged: int = 0
    left: int = 0
    missing: int = 0
    added: int = 0
    changed: int = 0
    gone: int = 0
    failed: int = 0
    added_ids: list[str] = []
    changed_ids: list[str] = []
    gone_ids: list[str] = []
    failures: list[tuple[str, str]] = []
    reason: str = ""
    """Why it failed, or what is to be confirmed."""

    def copy(self) -> Self:
        return copy.deepcopy(self)

    def again(self) -> Self:
        """For a run that goes on: what it has done counts, what it has read it reads again."""
        return type(self)(
            added=self.added,
            changed=self.changed,
            gone=self.gone,
            added_ids=list(self.added_ids),
            changed_ids=list(self.changed_ids),
            gone_ids=list(self.gone_ids),
        )

    def add(self, identity: str) -> None:
        self.added += 1
        _name(self.added_ids, identity)

    def change(self, identity: str) -> None:
        self.changed += 1
        _name(self.changed_ids, identity)

    def lose(self, identity: str) -> None:
        self.gone += 1
        _name(self.gone_ids, identity)

    def fail(self, identity: str, reason: str) -> None:
        self.failed += 1
        if len(self.failures) < NAMED:
            self.failures.append((identity, reason))


@dataclass(frozen=True, slots=True)
class Run:
    """One run; times are unix milliseconds. `asked`: by somebody, not by the schedule.

    `may_go` is how many items were confirmed to be gone.
    """

    id: str
    state: State
    asked: bool
    may_go: int
    began_at: int
    ended_at: int | None
    report: Report


def _name(ids: list[str], identity: str) -> None:
    if len(ids) < NAMED:
        ids.append(identity)
