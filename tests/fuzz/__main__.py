"""`./dev fuzz`: hostile bytes for the decoder, a million by default, in one process for every core.

HEIC aside, whose library is fuzzed by its own project and locked in here (see `target`).

Atheris (libFuzzer for Python) changes images of every format and keeps what reaches new lines of ours. An
input is a finding when it raises anything but a refusal, takes longer than 2 s, or swells the process over
the memory of a decoder. What was found lies in .cache/fuzz; the exit code is 1 then.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.corpus import seeds

FOLDER = Path(__file__).parents[2] / ".cache" / "fuzz"
SECONDS = 2
MEMORY_MIB = 1024
LARGEST = 1 << 16
STATISTIC = re.compile(r"stat::(\w+):\s+(\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs in all (default: a million)")
    parser.add_argument("--seconds", type=int, default=0, help="at most so long (default: no limit)")
    arguments = parser.parse_args()
    corpus, found = FOLDER / "corpus", FOLDER / "findings"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds():
        if len(data) <= LARGEST:
            (corpus / name).write_bytes(data)
    cores = len(os.sched_getaffinity(0))
    began = time.monotonic()
    # Files: a pipe that nobody reads would stop the process that writes to it.
    logs = [FOLDER / f"log-{core}" for core in range(cores)]
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.fuzz.target", f"-runs={arguments.runs // cores}"),
                *(f"-max_total_time={arguments.seconds}", f"-timeout={SECONDS}", f"-seed={core + 1}"),
                *(f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={LARGEST}", f"-artifact_prefix={found}/"),
                *("-print_final_stats=1", str(corpus)),
            ],
            stderr=log.open("wb"),
        )
        for core, log in enumerate(logs)
    ]
    for process in running:
        process.wait()
    said = [log.read_text(errors="replace") for log in logs]
    seconds = time.monotonic() - began
    totals = [{name: int(value) for name, value in STATISTIC.findall(text)} for text in said]
    inputs = sum(one.get("number_of_executed_units", 0) for one in totals)
    slowest = max(one.get("slowest_unit_time_sec", 0) for one in totals)
    peak = max(one.get("peak_rss_mb", 0) for one in totals)
    print(f"{inputs:,} inputs in {seconds:.0f} s ({inputs / seconds:,.0f} a second on {cores} cores)")
    print(f"slowest {slowest} s (limit {SECONDS}), peak memory {peak} MiB (limit {MEMORY_MIB})")
    failed = [text for process, text in zip(running, said, strict=True) if process.returncode != 0]
    for text in failed:
        print(text[-3000:])
    print(f"findings: {len(failed)}" + (f", in {found}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
