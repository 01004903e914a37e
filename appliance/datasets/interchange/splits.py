"""The parts of a dataset, by the words that people call folders and files by."""

import re
from typing import Literal

Split = Literal["train", "val", "test"]

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z])")


def named(folder: str) -> Split | None:
    """The part that a folder of this very name holds."""
    return _SPLITS.get(folder.lower())


def of_path(path: str) -> Split | None:
    """The part that a path speaks of: in the name of the file (`instances_test2017.json`), else in that of
    the nearest folder that does.
    """
    for part in reversed(path.lower().split("/")):
        if (found := _WORD.search(part)) is not None:
            return _SPLITS[found[1]]
    return None


def of_folders(path: str) -> Split | None:
    """The part that the folders of a file speak of."""
    return of_path(path.rpartition("/")[0])
