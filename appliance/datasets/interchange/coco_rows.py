"""A COCO file that is read as it comes, and what is kept of it: rows of some fifty bytes each.

Masks, which are most of such a file, and fields that mean nothing here are read and not kept. What a row may
hold is checked here; what rows say of one another is for whoever reads them.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

import msgspec
import numpy as np

from appliance.datasets.interchange.json_parts import Part, Parts

Id = int | str  # COCO's are whole numbers; scripts number by file name

_BOM = b"\xef\xbb\xbf"
_PIECE = 256 << 10  # what is made of it is a dozen times as large
_NO_MASK = {b"", b"null", b"[]", b"{}", b"[[]]"}
_EXACT = 1 << 63
_INDEX = re.compile(r"(?<=`\$\.)(images|annotations|categories)\[(\d+)(?=\])")
_BYTE = re.compile(r"(?<=\(byte )\d+(?=\)$)")


class More(msgspec.Struct, omit_defaults=True):
    """What is under the key `appliance` of an image or an annotation."""

    labels: dict[str, float | None] = {}
    meta_data: dict[str, Any] = {}


class AllLabels(msgspec.Struct):
    """What is under the key `appliance` of the document."""

    labels: list[str] | msgspec.UnsetType = msgspec.UNSET


class Image(msgspec.Struct, array_like=True, gc=False):
    id: Id
    file_name: str
    width: float | None
    height: float | None
    appliance: More | None


class Category(msgspec.Struct, array_like=True, gc=False):
    id: Id
    name: str
    supercategory: str | None


class Annotation(msgspec.Struct, array_like=True, gc=False):
    id: Id
    image_id: Id
    category_id: Id | None
    bbox: list[float] | None
    masked: bool
    appliance: More | None


class ImageObject(msgspec.Struct, omit_defaults=True, gc=False):
    """An image as it stands in a file; so below."""

    id: Id
    file_name: str
    width: float | None = None
    height: float | None = None
    appliance: More | None = None


class CategoryObject(msgspec.Struct):
    id: Id
    name: str
    supercategory: str | None = ""


class AnnotationObject(msgspec.Struct, omit_defaults=True, gc=False):
    id: Id
    image_id: Id
    category_id: Id | None = None
    bbox: list[float] | None = None
    area: float | None = None
    iscrowd: int | None = None
    segmentation: msgspec.Raw = msgspec.Raw()
    appliance: More | None = None


class _Document(msgspec.Struct):
    images: list[ImageObject] | msgspec.UnsetType | None = msgspec.UNSET
    annotations: list[AnnotationObject] | msgspec.UnsetType = msgspec.UNSET
    categories: list[CategoryObject] | msgspec.UnsetType = msgspec.UNSET
    appliance: AllLabels | msgspec.UnsetType = msgspec.UNSET


_DECODER = msgspec.json.Decoder(_Document)

Row = TypeVar("Row")


class Rows(Generic[Row]):
    """Rows of one kind, to be gone through in their order; `size` is how many bytes they take."""

    def __init__(self, kind: type[Row]) -> None:
        self._decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
        self._batches: list[bytes] = []
        self.count = 0
        self.size = 0

    def add(self, rows: list[tuple[Any, ...]]) -> None:
        """Some more rows, as tuples of their fields."""
        batch = msgspec.json.encode(rows)
        self._batches.append(batch)
        self.count += len(rows)
        self.size += len(batch)

    def __iter__(self) -> Iterator[Row]:
        for batch in self._batches:
            yield from self._decoder.decode(batch)


class _Ids:
    """Many ids, eight bytes each: whole numbers as they are, others as hashes of 64 bits."""

    def __init__(self) -> None:
        self._known = array("q")

    def add(self, ids: list[Id]) -> None:
        self._known.extend(
            [one if isinstance(one, int) and -_EXACT <= one < _EXACT else hash(repr(one)) for one in ids]
        )

    def first_again(self) -> int | None:
        """How many ids come before the first that has come before."""
        known = np.frombuffer(self._known, np.int64)
        order = np.argsort(known, kind="stable")
        again = order[1:][known[order[1:]] == known[order[:-1]]]
        return int(again.min()) if again.size else None


class Document:
    """A COCO file. It is given in pieces, and can be read when it is ended.

    `refusal` is why it is none; a file of another kind has no `images`. `again` is the place among the
    annotations of the first whose id has come before. `used` are the categories of annotations, `boxed` of
    those that have a box.
    """

    def __init__(self) -> None:
        self.refusal: str | None = None
        self.images: Rows[Image] | None = None
        self.categories = Rows(Category)
        self.labels: list[str] = []
        self.again: int | None = None
        self._forget_annotations()
        self._parts = Parts()
        self._head: bytes | None = b""
        self._is_object: bool | None = None

    def _forget_annotations(self) -> None:
        self.annotations = Rows(Annotation)
        self.used, self.boxed = set[Id | None](), set[Id | None]()
        self._ids = _Ids()

    @classmethod
    def of(cls, content: bytes) -> Self:
        """A file that is here as a whole."""
        document = cls()
        document.add(content)
        return document.end()

    @property
    def size(self) -> int:
        """How many bytes are kept, about."""
        ids = 8 * self.annotations.count
        return self.categories.size + self.annotations.size + ids + (self.images.size if self.images else 0)

    def add(self, piece: bytes) -> None:
        """Take the next bytes of the file, any number of them."""
        if self._head is not None:
            self._head += piece
            if len(self._head) < len(_BOM):
                return
            piece, self._head = self._head.removeprefix(_BOM), None
        self._go_on(piece)

    def end(self) -> Self:
        """The file is all there."""
        if self._head is not None:  # shorter than a mark
            self._go_on(self._head)
        if self._is_object:
            self._read(lambda: [self._parts.close()])
            self.again = self._ids.first_again()
        return self

    def _go_on(self, text: bytes) -> None:
        if self._is_object is None and (start := text.lstrip()):
            self._is_object = start.startswith(b"{")
        for at in range(0, len(text), _PIECE):
            if self._is_object is False:
                return
            piece = text[at : at + _PIECE]
            self._read(lambda piece=piece: self._parts.feed(piece))  # type: ignore[misc]

    def _read(self, cut: Callable[[], Iterable[Part]]) -> None:
        """Keep what parts say, up to the first that cannot be read."""
        if self.refusal is not None:
            return
        try:
            for part in cut():
                self._keep(part)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.refusal = _reason(error)
            self._parts = Parts()

    def _keep(self, part: Part) -> None:
        try:
            document = _DECODER.decode(part.text)
        except msgspec.MsgspecError as error:
            raise ValueError(self._placed(str(error), part)) from None
        goes_on = _name(part)
        if document.images is not msgspec.UNSET:
            self._keep_images(document.images, anew=goes_on != "images")
        if document.categories is not msgspec.UNSET:
            self._keep_categories(document.categories, anew=goes_on != "categories")
        if document.annotations is not msgspec.UNSET:
            self._keep_annotations(document.annotations, anew=goes_on != "annotations")
        if document.appliance is not msgspec.UNSET:
            self._keep_labels(document.appliance.labels, anew=goes_on != "appliance")

    # Each of them may begin `anew`: of members of one name the last counts.

    def _keep_images(self, images: list[ImageObject] | None, *, anew: bool) -> None:
        if anew:
            self.images = None if images is None else Rows(Image)
        if self.images is not None and images:
            rows = [(one.id, one.file_name, one.width, one.height, one.appliance) for one in images]
            self.images.add(rows)

    def _keep_categories(self, categories: list[CategoryObject], *, anew: bool) -> None:
        if anew:
            self.categories = Rows(Category)
        self.categories.add([(one.id, one.name, one.supercategory) for one in categories])

    def _keep_annotations(self, annotations: list[AnnotationObject], *, anew: bool) -> None:
        if anew:
            self._forget_annotations()
        self._ids.add([one.id for one in annotations])
        self.used.update([one.category_id for one in annotations])
        self.boxed.update([one.category_id for one in annotations if one.bbox])
        rows = []
        for one in annotations:
            masked = bytes(one.segmentation) not in _NO_MASK
            rows.append((one.id, one.image_id, one.category_id, one.bbox, masked, one.appliance))
        self.annotations.add(rows)

    def _keep_labels(self, labels: list[str] | msgspec.UnsetType, *, anew: bool) -> None:
        if labels is not msgspec.UNSET:
            self.labels = labels
        elif anew:
            self.labels = []

    def _placed(self, message: str, part: Part) -> str:
        """What a decoder says of a part, with places in the whole."""
        kept = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        name = _name(part)
        before = None if name is None else kept.get(name)
        count = 0 if before is None else before.count

        def counted(found: re.Match[str]) -> str:
            return f"{found[1]}[{int(found[2]) + (count if found[1] == name else 0)}"

        message = _INDEX.sub(counted, message)
        return _BYTE.sub(lambda found: str(int(found[0]) + part.offset), message)


def _name(part: Part) -> str | None:
    """Of the member that goes on in a part."""
    return None if part.goes_on is None else msgspec.json.decode(part.goes_on, type=str)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its brackets are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "its text is not UTF-8"
    return str(error)
