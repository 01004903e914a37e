"""What a verb answers: a document for programs and the same as text for people, or a refusal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import ApplianceError

REFUSED, USAGE, UNAVAILABLE, CONFIG = 1, 2, 69, 78

Document = dict[str, Any]


class UsageInvalid(Exception):
    """The words do not make a command."""


class Refused(ApplianceError):
    """A verb was refused; `error` is a stable word for programs."""

    def __init__(self, error: str, reason: str, exit_code: int = REFUSED) -> None:
        super().__init__(reason)
        self.error = error
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Output:
    """What a verb answers: a document for programs and the same as text for people."""

    document: Document
    text: str


def table(rows: Sequence[Document], *columns: str) -> str:
    """Aligned columns under their names; lists are joined, absent values a dash."""
    lines = [list(columns)] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else str(value)
