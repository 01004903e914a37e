"""What a rule over the audit log is, and what it finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from appliance.accounts.transparency.leaves import Recorded
from appliance.ledger import Connection


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a rule has found: `findings` are what must not be, `remarks` what a person should know."""

    findings: Iterable[str] = ()
    remarks: Iterable[str] = ()


class Rule(Protocol):
    """A rule over what the entries say, or over rows of the ledger beside them."""

    def see(self, entry: Recorded) -> str | None:
        """Called with each entry, in their order; what in this one must not be."""

    def judge(self, connection: Connection) -> Judgement:
        """Called in the end, with the ledger at the same moment, and used up before that is closed."""
