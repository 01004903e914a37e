"""`./dev e2e`: the guest's image, the archive, then the scenario. Exit code 77 where no guest can be had."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e import image, report

ROOT = Path(__file__).parents[2]


def main(words: list[str]) -> int:
    """Runs the checks; words of our own go first, the rest is pytest's."""
    began = time.monotonic()
    try:
        ready = image.ready()
    except image.Unavailable as reason:
        print(f"dev e2e: no guest: {reason}", file=sys.stderr)
        return image.UNAVAILABLE
    imaged = time.monotonic()
    archive = built_archive()
    archived = time.monotonic()
    keep = "--keep" in words
    scenario = report.Scenario(ready, archive, keep, began)
    for seconds, name in (
        (imaged - began, "the guest's image"),
        (archived - imaged, f"archive {archive.name}"),
    ):
        scenario.lines.append(f"{'ok':<7}{seconds:7.1f} s  {name}")
        print(scenario.lines[-1], flush=True)
    arguments = [
        "-o",
        "addopts=",
        "--strict-markers",
        "--strict-config",
        "-q",
        "--no-header",
        "--tb=short",
        "--exitfirst",
    ]
    chosen = [word for word in words if word != "--keep"]
    return int(pytest.main([*arguments, "-m", "e2e", "tests/e2e", *chosen], plugins=[scenario]))


def built_archive() -> Path:
    """The archive of what the working tree holds; its last line of output is the path."""
    done = subprocess.run(
        [ROOT / "dev", "wheelhouse"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return Path(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
