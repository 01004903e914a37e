"""Whether a backup is as its manifest says, file by file; no key is needed for that."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from appliance.backup.contents import MANIFEST, File, Manifest

_PIECE = 1 << 20


def compare(folder: Path, name: str | None = None) -> list[str]:
    """Every file that is changed, missing, or none of the backup's; `name` is what the backup is called.

    Raises BackupInvalid for a manifest that cannot be one.
    """
    problems, present = [], 0
    for entry in Manifest(folder, name).entries():
        if isinstance(entry, File):
            problem = differs(folder, entry)
            present += (folder / entry.path).is_file()
            if problem is not None:
                problems.append(problem)
    return problems + surplus(folder, present, name)


def differs(folder: Path, entry: File) -> str | None:
    """What is wrong with one file, None when it is what was made. It is read from the disk."""
    path = folder / entry.path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: {error.strerror}"
    try:
        if (size := os.fstat(fd).st_size) != entry.size:
            return f"{path}: changed: it has {size} bytes instead of {entry.size}"
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what the cache holds says nothing of the medium
        running = hashlib.sha256()
        while data := os.read(fd, _PIECE):
            running.update(data)
    except OSError as error:
        return f"{path}: {error.strerror}"
    finally:
        os.close(fd)
    return None if running.digest() == entry.digest else f"{path}: changed"


def surplus(folder: Path, present: int, name: str | None = None) -> list[str]:
    """The files that no line of the manifest speaks of; `present` of those that it speaks of are there."""
    if sum(1 for _ in _everything(folder)) == present:
        return []
    known = {entry.path for entry in Manifest(folder, name).entries() if isinstance(entry, File)}
    return [f"{folder / path}: not of this backup" for path in _everything(folder) if path not in known]


def _everything(folder: Path) -> Iterator[str]:
    """Whatever is no folder, the manifest left out."""
    for top, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        for name in sorted(names + links):
            path = str((Path(top) / name).relative_to(folder))
            if path != MANIFEST:
                yield path
