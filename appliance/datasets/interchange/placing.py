"""Paths for the images of an export: of any names that imports have brought, what one tree can hold."""

import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from appliance.datasets.interchange.archive import MOST_NAME, MOST_PART
from appliance.datasets.interchange.formats import LEFT_OUT
from appliance.datasets.interchange.names import flat

_MOST_FOLDERS = MOST_NAME - MOST_PART - 1  # bytes of the way to a file: its own name always fits behind it
_ROOM = 16  # bytes of a file's name for a number and the ending


def fitting(name: str, endings: tuple[str, ...], describes: Callable[[str], bool]) -> str:
    """The name with one of these endings, the first where it has none, and no longer than a tree can have.

    A file's name is cut before its ending; of folders that are too long together the end becomes part of the
    file's name. A folder that is called like a file that describes images gets an underscore.
    """
    if not name.lower().endswith(endings):
        name += endings[0]
    *folders, file = name.split("/")
    for index, folder in enumerate(folders):
        if describes("/".join(folders[: index + 1])) or (index, folder) == (0, LEFT_OUT):
            folders[index] = flat(f"{folder}_")
    if len(file.encode()) > MOST_PART:
        file = "".join(_cut(file))
    name = "/".join([*folders, file])
    return flat(name) if len("/".join(folders).encode()) > _MOST_FOLDERS else name


def settled(wanted: Sequence[str], files_of: Callable[[str], Iterable[str]]) -> Iterator[str]:
    """These paths in their order; one gets a number where a file of it (`files_of` a path) is another's, or
    has the name of a folder, however the letters are composed.

    Takes time in proportion to the paths, whatever they are: of those that differ in nothing but the number
    each goes on where the one before ended.
    """
    # Hashes: each path may have dozens of folders.
    folders = {folder for path in wanted for file in files_of(path) for folder in _folders(file)}
    taken = set[int]()
    numbers: dict[int, int] = {}
    for path in wanted:
        free, files = path, set(map(_key, files_of(path)))
        if not (files.isdisjoint(taken) and files.isdisjoint(folders)):
            stem, ending = _cut(path)
            known = _key(stem)
            number = numbers.get(known, 1)
            while not (files.isdisjoint(taken) and files.isdisjoint(folders)):
                number += 1
                free = f"{stem}-{number}{ending}"
                files = set(map(_key, files_of(free)))
            numbers[known] = number
        taken |= files
        yield free


def _cut(path: str) -> tuple[str, str]:
    """What a number may follow, and the ending."""
    folders, slash, file = path.rpartition("/")
    stem, ending = posixpath.splitext(file)
    return f"{folders}{slash}{stem.encode()[: MOST_PART - _ROOM].decode(errors='ignore')}", ending


def _folders(path: str) -> Iterator[int]:
    parts = unicodedata.normalize("NFC", path).split("/")
    return map(hash, accumulate(parts[:-1], "{}/{}".format))


def _key(path: str) -> int:
    return hash(unicodedata.normalize("NFC", path))
