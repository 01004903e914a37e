"""Run in the guest: prints a line for everything that an installation could touch.

Path, type and mode, owner, time of change, size and checksum of each file in the folders of the server's
configuration and state; mounts, users of device mapper, and the first MiB of each disk given as an argument.
"""

import hashlib
import os
import stat
import sys

FOLDERS = ("/etc", "/opt", "/srv", "/usr/local", "/var/lib", "/root")
# What a server at rest rewrites by itself, and what a run of Ansible leaves for its own use.
ITSELF = (
    "/var/lib/systemd/timers",
    "/var/lib/systemd/timesync",
    "/var/lib/systemd/random-seed",
    "/root/.ansible",
)


def described(path: str) -> str:
    found = os.lstat(path)
    parts = [path, oct(found.st_mode), str(found.st_uid), str(found.st_gid)]
    if stat.S_ISLNK(found.st_mode):
        parts.append(os.readlink(path))  # noqa: PTH115
    elif stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:  # noqa: PTH123 - a path may be anything here
            parts += [str(found.st_mtime_ns), str(found.st_size), hashlib.sha256(file.read()).hexdigest()]
    elif path != "/root":  # where .ansible comes and goes
        parts.append(str(found.st_mtime_ns))
    return " ".join(parts)


def main(disks: list[str]) -> None:
    for top in FOLDERS:
        for folder, folders, names in os.walk(top):
            folders[:] = sorted(name for name in folders if f"{folder}/{name}" not in ITSELF)
            for path in [folder, *(f"{folder}/{name}" for name in sorted(names))]:
                if path not in ITSELF:
                    print(described(path))
    for name in ("/proc/self/mounts", "/proc/swaps"):
        with open(name, encoding="utf-8") as file:  # noqa: PTH123
            print(name, file.read())
    print(sorted(os.listdir("/dev/mapper")))  # noqa: PTH208
    for disk in disks:
        with open(disk, "rb") as device:  # noqa: PTH123
            print(disk, hashlib.sha256(device.read(1 << 20)).hexdigest())


main(sys.argv[1:])
