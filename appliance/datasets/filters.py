"""Lists of a dataset's images by what they are and have: which index is walked, and what is counted how.

An image's facet (test, real, number of verifications) is part of the index of every label, so a list is
walked as a merge of few ranges, one for each facet that is wanted and occurs; a page costs the same wherever
it lies. Counts of all images and of one label are kept for each facet. Only what combines several labels, or
asks for values, is counted by walking the rarest of its labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from appliance.accounts.customers import CustomerId
from appliance.datasets import ids
from appliance.datasets.pages import Cut
from appliance.datasets.records import Side
from appliance.errors import InvalidInput
from appliance.ledger import Connection

MAX_CONDITIONS = 10

Range = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Filter:
    """What is asked of images; what is left out matters not. `labels` are recognition labels that an image
    has, all of them, `without` such as it has none of, `objects` detection labels of objects on it, `values`
    bounds (inclusive) of a label's value.
    """

    labels: Sequence[str] = ()
    without: Sequence[str] = ()
    objects: Sequence[str] = ()
    values: Mapping[str, Range] = field(default_factory=dict)
    test: bool | None = None
    real: bool | None = None
    verified: int | None = None

    def admits(self, facet: int) -> bool:
        """Whether images of this facet are asked for."""
        return (
            self.test in {None, bool(facet & 1)}
            and self.real in {None, bool(facet & 2)}
            and self.verified in {None, facet // 4}
        )


@dataclass(frozen=True, slots=True)
class Walk:
    """A filter as it is carried out: `label` is the one whose index is walked, None for all images."""

    dataset: int
    label: int | None
    facets: Sequence[int]
    conditions: str
    values: Sequence[object]
    known: int | None  # how many images there are, where that is kept

    def keys(self, connection: Connection, wanted: Cut) -> list[int]:
        """The keys of the wanted page in ascending order, and one more if there is one."""
        if not self.facets:
            return []
        statement, values = self._ranges(wanted.floor(self.dataset))
        found = connection.execute(
            f"{statement} ORDER BY 1 LIMIT ? OFFSET ?", (*values, wanted.size + 1, wanted.offset)
        )
        return [key for (key,) in found]

    def count(self, connection: Connection) -> int:
        """How many images there are in all."""
        if self.known is not None:
            return self.known
        if not self.facets:
            return 0
        statement, values = self._ranges((self.dataset << 32) - 1)
        return int(connection.execute(f"SELECT count(*) FROM ({statement})", values).get)  # noqa: S608

    def _ranges(self, floor: int) -> tuple[str, list[object]]:
        if self.label is None:
            one = (
                f"SELECT key FROM images AS one WHERE dataset = ? AND facet = ? AND key > ?{self.conditions}"  # noqa: S608
            )
            fixed = self.dataset
        else:
            one = (
                "SELECT image FROM image_labels AS one"  # noqa: S608
                f" WHERE label = ? AND facet = ? AND image > ?{self.conditions}"
            )
            fixed = self.label
        values: list[object] = []
        for facet in self.facets:
            values += [fixed, facet, floor, *self.values]
        return " UNION ALL ".join([one] * len(self.facets)), values


def planned(connection: Connection, customer: CustomerId, dataset: int, wanted: Filter) -> Walk:
    """How the images of a dataset that are asked for are found.

    Raises NotFound for a label that is none of the customer's, InvalidInput for one of another dataset or
    more than 10 conditions on labels.
    """
    having = {_label(connection, customer, dataset, label, "recognition") for label in wanted.labels}
    having |= {_label(connection, customer, dataset, label, "detection") for label in wanted.objects}
    without = {_label(connection, customer, dataset, label, "recognition") for label in wanted.without}
    ranges = {
        _label(connection, customer, dataset, label, "recognition"): bounds
        for label, bounds in wanted.values.items()
    }
    having |= ranges.keys()
    if len(having) + len(without) > MAX_CONDITIONS:
        raise InvalidInput(f"at most {MAX_CONDITIONS} labels in one filter")
    counts = {label: _counts(connection, "label", label, wanted) for label in having}
    label = min(counts, key=lambda one: sum(counts[one].values()), default=None)
    facets = counts[label] if label is not None else _counts(connection, "dataset", dataset, wanted)
    conditions, values = _conditions(label, having, without, ranges)
    known = sum(facets.values()) if not conditions else None
    if label is None and len(without) == 1:
        [one] = without
        known = sum(facets.values()) - sum(_counts(connection, "label", one, wanted).values())
    return Walk(dataset, label, sorted(facets), conditions, values, known)


def _label(connection: Connection, customer: CustomerId, dataset: int, label: str, side: Side) -> int:
    key = ids.label(connection, customer, label, side)
    ids.check_together(dataset, key, "label", "list")
    return key


def _counts(connection: Connection, what: str, key: int, wanted: Filter) -> dict[int, int]:
    """How many images there are of each facet that is asked for."""
    found = connection.execute(f"SELECT facet, images FROM {what}_counts WHERE {what} = ?", (key,))  # noqa: S608
    return {facet: images for facet, images in found if wanted.admits(facet)}


def _conditions(
    walked: int | None, having: set[int], without: set[int], ranges: Mapping[int, Range]
) -> tuple[str, list[object]]:
    """What each image of the walk is to fulfil beside it, and the values for the question marks."""
    image = "one.key" if walked is None else "one.image"
    conditions, values = "", list[object]()
    for label in sorted(having):
        within, bounds = _within(ranges.get(label, (None, None)), "one" if label == walked else "other")
        if label == walked:
            conditions += within
            values += bounds
        else:
            conditions += (
                " AND EXISTS (SELECT 1 FROM image_labels AS other"  # noqa: S608
                f" WHERE other.image = {image} AND other.label = ?{within})"
            )
            values += [label, *bounds]
    for label in sorted(without):
        conditions += (
            " AND NOT EXISTS (SELECT 1 FROM image_labels AS other"  # noqa: S608
            f" WHERE other.image = {image} AND other.label = ?)"
        )
        values.append(label)
    return conditions, values


def _within(bounds: Range, row: str) -> tuple[str, list[object]]:
    low, high = bounds
    conditions, values = "", list[object]()
    if low is not None:
        conditions += f" AND {row}.value >= ?"
        values.append(low)
    if high is not None:
        conditions += f" AND {row}.value <= ?"
        values.append(high)
    return conditions, values
