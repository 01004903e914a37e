"""What all formats of datasets have in common: images by their names, and what is said about them."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from appliance.datasets.records import Box


def _nothing() -> Mapping[str, Any]:
    return _NOTHING


_NOTHING: Mapping[str, Any] = MappingProxyType({})  # one for all boxes


# Kinds of what is left out on reading.
ABSENT = "images that are not there"
FOREIGN = "files of another kind"


class Size(NamedTuple):
    """Pixels of the upright image."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Region:
    """Something on an image: a box in pixels of the upright image under a detection label's name, and what
    else is said about it, as about an image.
    """

    label: str
    box: Box
    labels: Mapping[str, float | None] = field(default_factory=_nothing)
    meta_data: Mapping[str, object] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True)
class Annotated:
    """An image under the path that it has in its dataset, and all that is said about it.

    `name` is relative, with forward slashes. `labels` are names of recognition labels with their values, None
    for those that have none.
    """

    name: str
    size: Size
    labels: Mapping[str, float | None] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    test: bool = False
    meta_data: Mapping[str, object] = field(default_factory=dict)


class Declared(NamedTuple):
    """Names of labels in the order in which files declare them, those that no image has as well."""

    labels: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()


class Incoming(Protocol):
    """A file that comes in pieces, as a format keeps it; `size` is how many bytes it keeps."""

    @property
    def size(self) -> int: ...

    def add(self, piece: bytes) -> None:
        """Take the next bytes, any number of them."""

    def end(self) -> Any:
        """The file as `Format.read` takes it, when all of it came."""


class Whole(Incoming):
    """A file that is kept as it is: `end` gives its bytes."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def size(self) -> int:
        return self._size

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)

    def end(self) -> bytes:
        whole = b"".join(self._pieces)
        self._pieces.clear()
        return whole


class Format(Protocol):
    """A way to lay out a dataset in a tree of files. Paths are relative, with forward slashes.

    Reading takes time in proportion to what is read, and holds it in memory; nothing here waits for anything.
    Files are given as bytes, or as `begin` has kept them.
    """

    def describes(self, path: str) -> bool:
        """Whether a file says something about images, and is none itself."""

    def begin(self, path: str) -> Incoming:  # noqa: ARG002 - most formats keep all files alike
        """What keeps the file of this path, which `describes` images, while it comes."""
        return Whole()

    def declared(self, files: Mapping[str, Any]) -> Declared:  # noqa: ARG002 - most formats declare none
        """The labels to make first, so that they are written in the same order again. Raises InvalidInput."""
        return Declared()

    def read(
        self, files: Mapping[str, Any], sizes: Mapping[str, Size], left_out: Counter[str] | None = None
    ) -> Iterable[Annotated]:
        """What `files` say about the images of `sizes`, in their order, each at most once; images they are
        silent about are left out. It can be gone through again. Raises InvalidInput naming file, place in it
        and image.

        What is said of other images, and what a dataset cannot keep, is counted in `left_out` by its kind.
        """

    def check(self, annotated: Iterable[Annotated]) -> None:
        """Raises InvalidInput, saying which format to take instead, for what this one cannot express."""

    def place(self, annotated: Annotated) -> str:
        """The path of an image in the tree that is written, where one that has it as its name stays."""

    def files_of(self, path: str) -> tuple[str, ...]:
        """All paths that an image which is placed at `path` needs for itself: that one, and those of the
        files that are, or would be taken for, descriptions of it alone.
        """
        return (path,)

    def write(
        self, annotated: Iterable[Annotated], labels: Collection[str], regions: Collection[str]
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The files that describe these images, each with its content in pieces; `labels` and `regions` are
        the names of all labels of the dataset in their order, those of no image as well.

        The images are asked for once, and a content is read to its end before the next file.
        """
