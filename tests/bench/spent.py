"""What processes spend and hold: CPU time in nanoseconds, and resident memory."""

import time
from collections.abc import Iterable
from pathlib import Path

from appliance import process

_SCHEDULED = 2  # CPUCLOCK_SCHED of the kernel: what the scheduler gave, not ticks


def cpu_milliseconds(processes: Iterable[int]) -> float:
    """CPU time so far of processes with all their threads, those that have ended included.

    The kernel's clock of another process, see clock_getcpuclockid(3): /proc/PID/stat counts in hundredths of
    a second.
    """
    return sum(time.clock_gettime_ns((~pid << 3) | _SCHEDULED) for pid in processes) / 1e6


def resident_mib(processes: Iterable[int]) -> float:
    """Resident memory, shared pages counted in each process."""
    return sum(_field(Path(f"/proc/{pid}/status"), "VmRSS:") for pid in processes) / 1024


def give_back() -> None:
    """Let go of what this process has freed: now, and from now on as the daemon does."""
    process.give_memory_back()
    process.trim_memory()


def _field(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))
