"""What all formats of datasets have in common: images by their names, and what is said about them."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from appliance.datasets.records import Box


class Size(NamedTuple):
    """Pixels of the upright image."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Region:
    """Something on an image: a box in pixels of the upright image under a detection label's name."""

    label: str
    box: Box


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


class Format(Protocol):
    """A way to lay out a dataset in a tree of files. Paths are relative, with forward slashes."""

    def describes(self, path: str) -> bool:
        """Whether a file says something about images, and is none itself."""

    def read(self, files: Mapping[str, bytes], sizes: Mapping[str, Size]) -> Iterator[Annotated]:
        """What `files` say about the images of `sizes`, each at most once; images they are silent about are
        left out. Raises InvalidInput naming file, place in it and image.
        """

    def check(self, annotated: Iterable[Annotated]) -> None:
        """Raises InvalidInput, saying which format to take instead, for what this one cannot express."""

    def place(self, annotated: Annotated) -> str:
        """The path of an image in the tree that is written."""

    def write(
        self, annotated: Iterable[Annotated], labels: Collection[str], regions: Collection[str]
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The files that describe these images, each with its content in pieces; `labels` and `regions` are
        the names of all labels of the dataset in their order, those of no image as well.
        """
