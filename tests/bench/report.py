"""Figures of a measurement, judged against their bounds and printed as a table."""

import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One measured number; `met` is None where it has no bound and is printed only."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.at_most is None and self.at_least is None:
            return None
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= self.value <= high

    def cells(self) -> list[str]:
        bounds = [f"<= {self.at_most:g}" if self.at_most is not None else ""]
        bounds += [f">= {self.at_least:g}" if self.at_least is not None else ""]
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        return [self.name, f"{self.value:.4g}", self.unit, " ".join(filter(None, bounds)), verdict, self.note]


@dataclass
class Report:
    """Collects figures in the order they are measured."""

    figures: list[Figure] = field(default_factory=list)

    def figure(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        note: str = "",
    ) -> None:
        """Add a figure. With a bound it is judged, without it is printed beside."""
        self.figures.append(Figure(name, float(value), unit, at_most, at_least, note))

    @property
    def missed(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.met is False]

    def table(self) -> str:
        """All figures as a Markdown table, columns aligned, and the load of the machine under it."""
        rows = [["figure", "value", "unit", "bound", "", "note"], *(one.cells() for one in self.figures)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in rows
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        load = " ".join(f"{one:.2f}" for one in os.getloadavg())
        lines.append(f"\n{os.cpu_count()} cores, load average {load}")
        return "\n".join(lines)
