"""Lists of images by what they are and have: every filter against a model, counts kept by every change."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts.customers import CustomerId
from appliance.datasets import gallery, rows
from appliance.datasets.filters import Filter, planned
from appliance.datasets.pages import Cut, cut
from appliance.datasets.records import Image, facet
from appliance.errors import InvalidInput, NotFound
from appliance.ledger import Connection
from appliance.ledger.migrations import migrate, shipped

CUSTOMER = CustomerId("customer")
LABELS, BOXES, IMAGES, SIZE = 3, 2, 12, 3


@dataclass
class Model:
    """What an image should be."""

    labels: dict[int, float | None] = field(default_factory=dict)
    boxes: list[int] = field(default_factory=list)
    test: bool = False
    real: bool = False
    users: set[bytes] = field(default_factory=set)


class Rows:
    """A ledger in memory with one dataset, its labels, and a second dataset beside it."""

    def __init__(self) -> None:
        self.connection = Connection(":memory:")
        for pragma in ("foreign_keys", "recursive_triggers"):
            self.connection.execute(f"PRAGMA {pragma} = 1").fetchall()
        migrate(self.connection, shipped())
        run = self.connection.execute
        run("INSERT INTO customers (id, name, created_at) VALUES (?, 'Alice', 0)", (CUSTOMER,))
        for name in ("one", "other"):
            run(
                "INSERT INTO datasets (id, customer, name, visibility, keep_metadata, created_at)"
                " VALUES (?, ?, x'00', 'link', 0, 0)",
                (name, CUSTOMER),
            )
        self.labels = [self._label(f"label {number}", "tag") for number in range(LABELS)]
        self.boxes = [self._label(f"box {number}", "detection") for number in range(BOXES)]
        self.model: dict[int, Model] = {}
        self._add(2, "foreign")

    def _label(self, name: str, kind: str) -> int:
        key = rows.next_key(self.connection, 1)
        self.connection.execute(
            "INSERT INTO labels (key, id, dataset, kind, words, created_at) VALUES (?, ?, 1, ?, x'00', 0)",
            (key, name, kind),
        )
        return key

    def _add(self, dataset: int, name: str, *, test: bool = False, real: bool = False) -> int:
        image = Image(
            *(0, name, "one", CUSTOMER, 0, "jpeg", 9, 9, 1, 0, False),  # type: ignore[arg-type]
            facet=facet(test=test, real=real),
        )
        return rows.add_image(self.connection, dataset, image, os.urandom(32), None, rests_from=0)

    def add(self, *, test: bool, real: bool) -> None:
        key = self._add(1, os.urandom(4).hex(), test=test, real=real)
        self.model[key] = Model(test=test, real=real)

    def put_on(self, image: int, label: int, value: float | None) -> None:
        gallery.put_on(self.connection, image, self.labels[label], value)
        had = self.model[image].labels
        had[label] = had.get(label) if value is None else value

    def take_off(self, image: int, label: int) -> None:
        gallery._take_off(self.connection, image, self.labels[label])
        self.model[image].labels.pop(label, None)

    def draw(self, image: int, box: int) -> None:
        self.connection.execute(
            "INSERT INTO objects (key, id, dataset, image, label, words, created_at)"
            " VALUES (?, hex(randomblob(9)), 1, ?, ?, x'', 0)",
            (rows.next_key(self.connection, 1), image, self.boxes[box]),
        )
        self.model[image].boxes.append(box)

    def undraw(self, image: int, box: int) -> None:
        if box in self.model[image].boxes:
            self.connection.execute(
                "DELETE FROM objects"
                " WHERE key = (SELECT max(key) FROM objects WHERE image = ? AND label = ?)",
                (image, self.boxes[box]),
            )
            self.model[image].boxes.remove(box)

    def redraw(self, image: int, box: int, other: int) -> None:
        if box in self.model[image].boxes:
            self.connection.execute(
                "UPDATE objects SET label = ?"
                " WHERE key = (SELECT max(key) FROM objects WHERE image = ? AND label = ?)",
                (self.boxes[other], image, self.boxes[box]),
            )
            self.model[image].boxes.remove(box)
            self.model[image].boxes.append(other)

    def flag(self, image: int, *, test: bool, real: bool) -> None:
        self.connection.execute(
            "UPDATE images SET facet = facet & ~3 | ? WHERE key = ?", (facet(test=test, real=real), image)
        )
        self.model[image].test, self.model[image].real = test, real

    def verify(self, image: int, user: int) -> None:
        self.connection.execute(
            "INSERT OR IGNORE INTO verifications (id, image, user, words, created_at)"
            " VALUES (hex(randomblob(9)), ?, ?, x'00', 0)",
            (image, bytes([user]) * 32),
        )
        self.model[image].users.add(bytes([user]))

    def unverify(self, image: int, user: int) -> None:
        self.connection.execute(
            "DELETE FROM verifications WHERE image = ? AND user = ?", (image, bytes([user]) * 32)
        )
        self.model[image].users.discard(bytes([user]))

    def delete(self, image: int, *, wholly: bool) -> None:
        found = rows.described(self.connection, [image])[image][0]
        assert rows.begin_deleting(self.connection, found, 0)
        if wholly:
            rows.finish_deleting(self.connection, [found], 0)
        del self.model[image]

    def expected(self, wanted: Filter) -> list[int]:
        return [key for key, image in sorted(self.model.items()) if _admits(wanted, image)]

    def listed(self, wanted: Filter, size: int, *, by_number: bool) -> tuple[list[int], int]:
        """All pages one after the other, and the count that each of them gives."""
        found, number, after, counts = list[int](), 1, None, set[int]()
        while True:
            cutting = Cut(number, size, None if by_number else after)
            walk = planned(self.connection, CUSTOMER, 1, wanted)
            keys = walk.keys(self.connection, cutting)
            page = cut(keys, keys, cutting, walk.count(self.connection))
            found += page.rows
            counts.add(page.count)
            number, after = number + 1, page.after
            if after is None:
                [count] = counts
                return found, count

    def counted_anew(self) -> None:
        """The kept counts are those of the rows."""
        run = self.connection.execute
        assert (
            run("SELECT dataset, facet, images FROM dataset_counts ORDER BY 1, 2").fetchall()
            == run(
                "SELECT dataset, facet, count(*) FROM images WHERE facet >= 0 GROUP BY 1, 2 ORDER BY 1, 2"
            ).fetchall()
        )
        assert (
            run("SELECT label, facet, images FROM label_counts ORDER BY 1, 2").fetchall()
            == run("SELECT label, facet, count(*) FROM image_labels GROUP BY 1, 2 ORDER BY 1, 2").fetchall()
        )
        assert (
            run("SELECT images, objects FROM datasets").fetchall()
            == run(
                "SELECT (SELECT count(*) FROM images WHERE dataset = number AND deleted_at IS NULL),"
                " (SELECT count(*) FROM objects WHERE dataset = number) FROM datasets"
            ).fetchall()
        )
        assert (
            run("SELECT objects FROM labels").fetchall()
            == run("SELECT (SELECT count(*) FROM objects WHERE label = labels.key) FROM labels").fetchall()
        )
        assert run("PRAGMA foreign_key_check").fetchall() == []


def _admits(wanted: Filter, image: Model) -> bool:
    def having(label: str) -> bool:
        return int(label.split()[1]) in image.labels

    def within(label: str, low: float | None, high: float | None) -> bool:
        value = image.labels.get(int(label.split()[1]))
        if low is None and high is None:
            return having(label)
        return value is not None and (low is None or value >= low) and (high is None or value <= high)

    return (
        all(having(label) for label in wanted.labels)
        and not any(having(label) for label in wanted.without)
        and all(int(box.split()[1]) in image.boxes for box in wanted.objects)
        and all(within(label, low, high) for label, (low, high) in wanted.values.items())
        and wanted.test in {None, image.test}
        and wanted.real in {None, image.real}
        and wanted.verified in {None, len(image.users)}
    )


NUMBERS = st.one_of(st.none(), st.integers(-2, 2))
FLAGS = st.one_of(st.none(), st.booleans())
NAMES = st.lists(st.integers(0, LABELS - 1).map("label {}".format), max_size=2, unique=True)
FILTERS = st.builds(
    Filter,
    labels=NAMES,
    without=NAMES,
    objects=st.lists(st.integers(0, BOXES - 1).map("box {}".format), max_size=2, unique=True),
    values=st.dictionaries(
        st.integers(0, LABELS - 1).map("label {}".format), st.tuples(NUMBERS, NUMBERS), max_size=1
    ),
    test=FLAGS,
    real=FLAGS,
    verified=st.one_of(st.none(), st.integers(0, 2)),
)
Act = Callable[[Rows, int], None]
ACTS: st.SearchStrategy[Act] = st.one_of(
    st.builds(
        lambda label, value: lambda one, image: one.put_on(image, label, value),
        st.integers(0, LABELS - 1),
        NUMBERS,
    ),
    st.builds(lambda label: lambda one, image: one.take_off(image, label), st.integers(0, LABELS - 1)),
    st.builds(lambda box: lambda one, image: one.draw(image, box), st.integers(0, BOXES - 1)),
    st.builds(lambda box: lambda one, image: one.undraw(image, box), st.integers(0, BOXES - 1)),
    st.builds(
        lambda box, other: lambda one, image: one.redraw(image, box, other),
        st.integers(0, BOXES - 1),
        st.integers(0, BOXES - 1),
    ),
    st.builds(
        lambda test, real: lambda one, image: one.flag(image, test=test, real=real),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(lambda user: lambda one, image: one.verify(image, user), st.integers(0, 2)),
    st.builds(lambda user: lambda one, image: one.unverify(image, user), st.integers(0, 2)),
    st.builds(lambda wholly: lambda one, image: one.delete(image, wholly=wholly), st.booleans()),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    flags=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=IMAGES),
    acts=st.lists(st.tuples(st.integers(0, IMAGES), ACTS), max_size=40),
    filters=st.lists(FILTERS, min_size=1, max_size=8),
)
def test_lists_and_counts_follow_every_change(
    flags: list[tuple[bool, bool]], acts: list[tuple[int, Act]], filters: list[Filter]
) -> None:
    one = Rows()
    for test, real in flags:
        one.add(test=test, real=real)
    for number, act in acts:
        if one.model:
            act(one, sorted(one.model)[number % len(one.model)])
    one.counted_anew()
    for wanted in [Filter(), *filters]:
        expected = one.expected(wanted)
        assert one.listed(wanted, SIZE, by_number=False) == (expected, len(expected))
        assert one.listed(wanted, SIZE, by_number=True) == (expected, len(expected))


def test_erasing_everything_leaves_no_count() -> None:
    one = Rows()
    for _ in range(3):
        one.add(test=False, real=True)
    for image in [*one.model]:
        one.put_on(image, 0, 1.5)
        one.draw(image, 1)
        one.verify(image, 1)
    one.connection.execute("DELETE FROM images")
    one.connection.execute("DELETE FROM labels")
    one.connection.execute("DELETE FROM datasets")
    for table in ("dataset_counts", "label_counts", "image_labels", "objects", "verifications"):
        assert one.connection.execute(f"SELECT count(*) FROM {table}").get == 0


def test_what_is_kept_is_not_counted() -> None:
    one = Rows()
    one.add(test=False, real=False)
    known = [
        Filter(),
        Filter(test=True),
        Filter(labels=["label 0"]),
        Filter(objects=["box 0"], real=False, verified=0),
        Filter(without=["label 1"], test=False),
    ]
    walked = [
        Filter(labels=["label 0", "label 1"]),
        Filter(labels=["label 0"], without=["label 1"]),
        Filter(values={"label 0": (1, None)}),
        Filter(without=["label 0", "label 1"]),
    ]
    for wanted in known:
        assert planned(one.connection, CUSTOMER, 1, wanted).known is not None
    for wanted in walked:
        assert planned(one.connection, CUSTOMER, 1, wanted).known is None


def test_labels_of_others_are_not_found_and_too_many_are_refused() -> None:
    one = Rows()
    for wanted in (Filter(labels=["x"]), Filter(labels=["box 0"]), Filter(objects=["label 0"])):
        with pytest.raises(NotFound):
            planned(one.connection, CUSTOMER, 1, wanted)
    with pytest.raises(NotFound):
        planned(one.connection, CustomerId("Bob"), 1, Filter(labels=["label 0"]))
    with pytest.raises(InvalidInput, match="another workspace"):
        planned(one.connection, CUSTOMER, 2, Filter(labels=["label 0"]))
    many = [one._label(f"more {number}", "tag") for number in range(11)]
    with pytest.raises(InvalidInput, match="at most 10"):
        planned(one.connection, CUSTOMER, 1, Filter(labels=[f"more {number}" for number in range(len(many))]))


def test_every_walk_goes_along_an_index() -> None:
    """No list sorts what it finds or reads all images."""
    one = Rows()
    one.add(test=False, real=False)
    one.add(test=True, real=False)
    for image in [*one.model]:
        one.put_on(image, 0, 1)
        one.put_on(image, 1, 1)
    plans: list[str] = []
    for wanted in (
        Filter(),
        Filter(labels=["label 0"]),
        Filter(labels=["label 0", "label 1"], without=["label 2"], values={"label 0": (0, 2)}),
        Filter(without=["label 0", "label 2"]),
    ):
        walk = planned(one.connection, CUSTOMER, 1, wanted)
        statement, values = walk._ranges(0)
        plan = one.connection.execute(f"EXPLAIN QUERY PLAN {statement} ORDER BY 1 LIMIT 21", values)
        plans += [str(row[3]) for row in plan]
    assert all("SCAN" not in step and "TEMP B-TREE" not in step for step in plans), plans
    assert any("images_by_facet" in step for step in plans)


def test_a_row_of_counts_can_not_go_below_zero() -> None:
    one = Rows()
    one.add(test=False, real=False)
    with pytest.raises(apsw.ConstraintError):
        one.connection.execute("UPDATE dataset_counts SET images = -1")
