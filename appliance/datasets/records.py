"""What the other modules of datasets speak of: datasets, images, and the permit to see one."""

from dataclasses import dataclass
from typing import Literal, NewType
from uuid import UUID

from appliance.accounts.customers import CustomerId
from appliance.vault import Name

DatasetId = NewType("DatasetId", str)
ImageId = NewType("ImageId", str)
TaskId = NewType("TaskId", str)
LabelId = NewType("LabelId", str)
ObjectId = NewType("ObjectId", str)

Format = Literal["jpeg", "png", "webp"]
Variant = Literal["image", "thumbnail"]
# link: signed links that end; public: a stable address that cannot be guessed; restricted: with a token only.
Visibility = Literal["link", "public", "restricted"]
# The two families of tasks and labels; they never meet in one task.
Side = Literal["recognition", "detection"]
TaskKind = Literal["multi_class", "multi_label", "regression", "detection"]
LabelKind = Literal["category", "tag", "detection"]

MAX_NAME = 200

_TEST, _REAL, _VERIFICATION = 1, 2, 4  # of a facet, see 009_annotations.sql


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset, which is a workspace on the wire. Times are unix milliseconds, `bytes` as they were sent.

    `epoch` is part of every link to its images: one more, and all that were given out are dead.
    """

    number: int
    id: DatasetId
    customer: CustomerId
    name: str | None  # None: the customer's default one
    visibility: Visibility
    keep_metadata: bool
    retention_days: int | None
    epoch: int
    created_at: int
    images: int
    bytes: int

    @property
    def workspace(self) -> str:
        """What it is called on the wire: the default one has its customer's id, as the account says."""
        return self.customer if self.name is None else self.id


@dataclass(frozen=True, slots=True)
class Image:
    """An image as its row tells of it; `width` and `height` are pixels of the upright image."""

    key: int  # rises with every upload to its dataset
    id: ImageId
    dataset: DatasetId
    customer: CustomerId
    created_at: int
    format: Format
    width: int
    height: int
    size: int
    thumbnail: int  # bytes; they follow those of the image in the same file
    damaged: bool
    facet: int = 0

    @property
    def test(self) -> bool:
        """Whether it is kept from training, to judge by."""
        return bool(self.facet & _TEST)

    @property
    def real(self) -> bool:
        return bool(self.facet & _REAL)

    @property
    def verifications(self) -> int:
        """How many users have found its annotations right."""
        return self.facet // _VERIFICATION

    @property
    def name(self) -> Name:
        """Under which it is sealed."""
        return Name(UUID(self.customer), UUID(self.dataset), UUID(self.id))


def facet(*, test: bool, real: bool) -> int:
    """The facet of an image that nobody has verified."""
    return _TEST * test + _REAL * real


@dataclass(frozen=True, slots=True)
class Place:
    """In which dataset a row lies, and what that is called on the wire."""

    number: int
    dataset: DatasetId
    customer: CustomerId
    is_default: bool

    @property
    def workspace(self) -> str:
        return self.customer if self.is_default else self.dataset


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is to learn; `labels` and `negatives` (images) count what it learns from."""

    key: int
    id: TaskId
    place: Place
    kind: TaskKind
    created_at: int
    labels: int
    negatives: int
    name: str
    description: str | None


@dataclass(frozen=True, slots=True)
class Label:
    """What an image or an object can be called; a negative one is the `negative_for` of a tagging task."""

    key: int
    id: LabelId
    place: Place
    kind: LabelKind
    created_at: int
    negative_for: TaskId | None
    tasks: int
    images: int
    objects: int
    name: str
    description: str | None
    output_name: str | None
    color: str | None


@dataclass(frozen=True, slots=True)
class Given:
    """A label as an image or an object has it; `value` is that of a regression."""

    label: Label
    value: float | None


@dataclass(frozen=True, slots=True)
class Described:
    """An image, its place and what its customer wrote beside it."""

    image: Image
    place: Place
    meta_data: dict[str, object]


@dataclass(frozen=True, slots=True)
class Box:
    """xmin, ymin, xmax, ymax in pixels of the upright image: whole numbers stay whole."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True)
class Object:
    """Something on an image, and the labels that say more of it."""

    key: int
    id: ObjectId
    place: Place
    image: Described
    label: Label
    box: Box
    created_at: int
    labels: tuple[Given, ...]
    meta_data: dict[str, object]


@dataclass(frozen=True, slots=True)
class Verification:
    """A user of the customer's, by whatever name, has found the annotations of an image right."""

    id: str
    image: ImageId
    user: str | int
    created_at: int


@dataclass(frozen=True, slots=True)
class Point:
    """Something else about an image, or about the dataset as a whole: any JSON under a name."""

    key: int
    id: str
    place: Place
    image: ImageId | None
    name: str | None
    data: object
    created_at: int


@dataclass(frozen=True, slots=True)
class ReadPermit:
    """The right to see one image once, and why: what `Store.open` demands.

    Minted where that right is proven and nowhere else: by `links` from a genuine link, by `permits` from the
    customer's own token, and there from an access grant, for an operator.
    """

    customer: CustomerId
    dataset: DatasetId
    image: ImageId
    reason: Literal["link", "public", "token", "grant"]
