"""Which image another program means by the name that it wrote."""

import posixpath
import unicodedata
from collections.abc import Collection

from appliance.datasets.interchange import splits
from appliance.datasets.interchange.archive import MOST_PART
from appliance.errors import InvalidInput

_DEEPEST = 8  # parts of a path by which an image is looked for
_LONGEST = 1024  # characters: no image's path is longer, and to compose a long one takes its square
_SEVERAL = ""  # is no image's name

# By the part of the dataset that an image lies in ("any": whichever) and the end of its path.
_Ends = dict[tuple[splits.Split | None, str] | tuple[str, str], str]


class Names:
    """Images by their paths, as annotations call them.

    A name can only ever fail to match: it is compared, and never opened.
    """

    def __init__(self, images: Collection[str]) -> None:
        self._images = images
        self._exact = frozenset(images)
        self._normal: dict[str, str] | None = None
        self._ends: dict[int, _Ends] = {}

    def find(self, written: str, source: str, place: str) -> str | None:
        """The image that `written` in the file `source` means, None where it is not there.

        A path is relative to the file's folder, or else to one above it; else the longest end of it that an
        image's path has counts, at least the file's name, in the same part of the dataset where the file's
        path names one. Letters may be composed otherwise. Raises InvalidInput, `place` named, where several
        images are meant.
        """
        if len(written) > _LONGEST:
            return None
        folder = posixpath.dirname(source)
        direct = posixpath.join(folder, written)
        if direct in self._exact:
            return direct
        path = written.replace("\\", "/")
        while True:
            candidate = posixpath.normpath(posixpath.join(folder, path))
            if candidate in self._exact:
                return candidate
            if (found := self._by_normal_form(candidate)) is not None:
                return self._only(found, source, place)
            if not folder:
                break
            folder = posixpath.dirname(folder)
        parts = [part for part in _normal(path).split("/") if part not in {"", ".", ".."}]
        for count in range(min(len(parts), _DEEPEST), 0, -1):
            if (found := self._by_end("/".join(parts[-count:]), count, source)) is not None:
                return self._only(found, source, place)
        return None

    def _by_normal_form(self, path: str) -> str | None:
        if self._normal is None:
            self._normal = {}
            for image in self._images:
                form = _normal(image)
                self._normal[form] = _SEVERAL if form in self._normal else image
        return self._normal.get(_normal(path))

    def _by_end(self, end: str, count: int, source: str) -> str | None:
        if count not in self._ends:
            self._ends[count] = self._indexed(count)
        ends, split = self._ends[count], splits.of_path(source)
        if split is None:
            return ends.get(("any", end))
        found = ends.get((split, end))
        return ends.get((None, end)) if found is None else found

    def _indexed(self, count: int) -> _Ends:
        ends: _Ends = {}
        for image in self._images:
            parts = _normal(image).rsplit("/", count)
            if len(parts) < count:
                continue
            end = "/".join(parts[-count:])
            for key in ((splits.of_folders(image), end), ("any", end)):
                ends[key] = _SEVERAL if key in ends else image
        return ends

    @staticmethod
    def _only(found: str, source: str, place: str) -> str:
        if found == _SEVERAL:
            raise InvalidInput(
                f"{source}, {place}: the name fits several images: write the path from the file's folder"
            )
        return found


def _normal(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_left_by_systems(part: str) -> bool:
    """Whether a file or a folder of this name lies beside others unasked: an import passes it over."""
    return part == "__MACOSX" or part.startswith(".")


def flat(name: str) -> str:
    """A path as the name of one file, for trees whose folders have a meaning of their own; of a path that is
    too long for one the end, behind an underscore.
    """
    whole = name.replace("/", "_").encode()
    if len(whole) <= MOST_PART:
        return whole.decode()
    return "_" + whole[1 - MOST_PART :].decode(errors="ignore")
