"""How exposed the service is, as systemd scores its unit with a rendered residency drop-in."""

import tempfile  # noqa: TID251 - unit files only
from pathlib import Path

from tests import units
from tests.bench.report import Report


def run(report: Report) -> None:
    version = units.analyze("--version").stdout.split()[1]
    for variant, bound in units.BOUNDS.items():
        with tempfile.TemporaryDirectory() as folder:
            score, _ = units.exposure(units.tree(Path(folder), variant))
        report.figure(f"exposure of the unit, {variant}", score, "", at_most=bound, note=f"systemd {version}")
