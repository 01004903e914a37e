"""What the README has people watch is there to be watched."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GPUS = {"appliance_gpu_ecc_uncorrected_errors"}  # whose names are put together


def test_every_metric_of_the_alerts_is_exported() -> None:
    watched = (ROOT / "README.md").read_text().partition("### What to watch")[2].partition("\n## ")[0]
    sources = "".join(file.read_text() for file in (ROOT / "appliance").rglob("*.py"))
    exported = GPUS | set(re.findall(r'"(appliance_[a-z_]+)"', sources))
    exported |= {f"{name}_total" for name in exported}  # a counter, as it is shown
    alerts = set(re.findall(r"appliance_[a-z_]+", watched))
    assert len(alerts) > 10
    assert alerts - exported == set()
