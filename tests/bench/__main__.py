"""python -m tests.bench [NAME]...: run the measurements and print their table; 1 where a bound is missed."""

import argparse
import importlib
import sys
from pathlib import Path

import appliance  # noqa: F401 -- before numpy, which takes from it that BLAS has one thread, as in the daemon
from tests.bench.report import Report

# What measurements are made of.
PARTS = {"graphs", "large", "load", "report", "sight", "spent", "stages", "stand", "under_load", "vaults"}
PEERS = {"recognition": "peers.comparison", "search": "peers.search"}
LARGE = {"search": "nearest.million"}


def main() -> int:
    names = sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in PARTS | {"__main__"}
    )
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=", ".join(names))
    parser.add_argument("--peers", action="store_true", help=f"beside others instead: {', '.join(PEERS)}")
    parser.add_argument("--large", action="store_true", help=f"of a million instead: {', '.join(LARGE)}")
    given = parser.parse_args()
    if unknown := set(given.name) - set(names):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    kinds = [kind for kind, asked in ((PEERS, given.peers), (LARGE, given.large)) if asked]
    for kind in kinds:
        if without := set(given.name) - set(kind):
            parser.error(f"{', '.join(sorted(without))}: not of this kind; there is {', '.join(kind)}")
    wanted = [kind[name] for kind in kinds for name in given.name or kind] if kinds else given.name or names
    missed = 0
    for name in wanted:
        report = Report()
        print(f"measuring {name}", file=sys.stderr, flush=True)
        try:
            importlib.import_module(f"tests.bench.{name}").run(report)
        finally:  # what was measured until then is told, also of one that is interrupted
            print(f"\n### {name}\n\n{report.table()}\n", flush=True)
        missed += len(report.missed)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
