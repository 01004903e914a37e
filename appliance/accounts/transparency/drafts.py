"""What a crash leaves of the log's files: drafts of `write_atomically`, cut anywhere, until the next start.

A draft holds the start of what a file of the log has, or was to have. Whatever else has such a name was put
there by somebody.
"""

import re
from pathlib import Path

from appliance.accounts.transparency.checkpoints import MAX_BYTES, LogKey, parse_own
from appliance.errors import InvalidInput

_NAME = re.compile(r"\.([^/]+)\.[0-9a-f]{12}\.draft")


class Drafts:
    """The drafts that lie in the folder of a log as this is made; of each is asked whether it is one."""

    def __init__(self, folder: Path) -> None:
        self._of: dict[str, list[Path]] = {}
        for path in folder.rglob(".*.draft"):
            if target := file_of(str(path.relative_to(folder))):
                self._of.setdefault(target, []).append(path)
        self._strange = {path for paths in self._of.values() for path in paths}

    def compare(self, path: str, content: bytes) -> None:
        """With a file of this content, which need not be there yet: a draft of it holds the start of that."""
        for draft in self._of.get(path, ()):
            if content.startswith(_start(draft, len(content))):
                self._strange.discard(draft)

    def compare_checkpoint(self, path: str, key: LogKey) -> None:
        """With what `key` signs. A checkpoint is written at once: there is nothing of it, or all."""
        for draft in self._of.get(path, ()):
            note = _start(draft, MAX_BYTES)
            try:
                if note:
                    parse_own(note, key.public)
            except InvalidInput:
                continue
            self._strange.discard(draft)

    def strange(self, path: Path) -> bool:
        """Whether it is none. What came after this was made is a daemon's, which is at work."""
        return path in self._strange


def file_of(name: str) -> str | None:
    """Which file a draft was to be, None for what is no draft; both as paths within the folder of the log."""
    folder, slash, last = name.rpartition("/")
    found = _NAME.fullmatch(last)
    return None if found is None else f"{folder}{slash}{found[1]}"


def _start(draft: Path, most: int) -> bytes:
    """A byte more than the most that it may be; nothing of one that is gone meanwhile."""
    try:
        with draft.open("rb") as opened:
            return opened.read(most + 1)
    except OSError:
        return b""
