"""Frames of vectors in the ledger: few, sealed each for its row, and never with a vector that was removed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import apsw
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.accounts.customers import CustomerId
from appliance.errors import NotFound, SealBroken
from appliance.ledger.migrations import migrate, shipped
from appliance.search import frames
from appliance.search.frames import Frame
from appliance.search.numbering import key_of, span
from appliance.search.seals import ContainerId, Seals
from appliance.vault import Keyring
from tests.searching import unit

DIM = 4
MOST = 16  # vectors in a frame
NUMBER = 7

steps = st.lists(
    st.one_of(st.integers(1, 40), st.lists(st.integers(0, 400), min_size=1, max_size=30)),
    min_size=1,
    max_size=25,
)
"""How many to add, or the labels to remove."""


class Cabinet:
    """The frames of one collection, and what must be in them."""

    def __init__(self, keyring: Keyring, database: apsw.Connection) -> None:
        customer, collection = uuid4(), uuid4()
        keyring.add(customer, collection, "collection")
        self.seals = Seals(keyring, CustomerId(str(customer)), ContainerId(str(collection)))
        self.connection = database
        self.model: dict[int, np.ndarray] = {}
        self.next = 0
        self.rng = np.random.default_rng(1)
        database.execute("DELETE FROM frames")

    def add(self, count: int) -> None:
        rows = unit(self.rng, count, DIM)
        labels = np.arange(self.next, self.next + count)
        frames.add(self.connection, self.seals, NUMBER, labels, rows)
        self.model |= dict(zip(labels.tolist(), rows, strict=True))
        self.next += count

    def remove(self, labels: list[int]) -> None:
        frames.remove(self.connection, self.seals, NUMBER, DIM, {n for n in labels if n in self.model})
        for label in labels:
            self.model.pop(label, None)

    def loaded(self) -> list[tuple[int, Frame]]:
        found = frames.load(self.connection, self.seals, NUMBER, DIM, -1, 1 << 20)
        return [(first, frame) for first, frame in found if frame is not None]

    def check(self) -> None:
        """Every vector is in one frame, within the frame's labels, and nothing else is in any."""
        seen: list[int] = []
        for first, frame in self.loaded():
            labels = frame.labels.tolist()
            assert 0 < len(labels) <= MOST
            assert first <= labels[0]
            assert not seen or seen[-1] < first
            for label, row in zip(labels, frame.rows, strict=True):
                np.testing.assert_array_equal(row, self.model[label])
            seen += labels
        assert seen == sorted(self.model)
        counts = self.connection.execute("SELECT count FROM frames ORDER BY key")
        assert [row[0] for row in counts] == [len(frame.labels) for _, frame in self.loaded()]


@pytest.fixture
def cabinets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Cabinet]]:
    monkeypatch.setattr(frames, "FRAME_BYTES", MOST * 4 * (1 + DIM))
    keyring = Keyring.create(tmp_path / "keyring", bytes(range(32)))
    database = apsw.Connection(":memory:")
    migrate(database, shipped())
    yield lambda: Cabinet(keyring, database)
    keyring.wipe()


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=steps)
def test_frames_hold_what_was_added_and_not_removed(
    cabinets: Callable[[], Cabinet], steps: list[int | list[int]]
) -> None:
    cabinet = cabinets()
    for step in steps:
        if isinstance(step, int):
            cabinet.add(step)
        else:
            cabinet.remove(step)
        cabinet.check()


def test_single_inserts_leave_as_few_frames_as_large_ones(cabinets: Callable[[], Cabinet]) -> None:
    cabinet = cabinets()
    for count in range(1, 200):
        cabinet.add(1)
        assert len(cabinet.loaded()) <= 2 * count / MOST + 5  # full ones, and some that are young
    cabinet.check()


def test_a_vector_is_sealed_anew_a_few_times_alone(
    cabinets: Callable[[], Cabinet], monkeypatch: pytest.MonkeyPatch
) -> None:
    cabinet, written = cabinets(), list[int]()
    seal = cabinet.seals.seal_frame

    def counted(key: int, content: bytes) -> bytes:
        written.append(len(content))
        return seal(key, content)

    monkeypatch.setattr(cabinet.seals, "seal_frame", counted)
    for _ in range(400):
        cabinet.add(1)
    assert sum(written) / (4 * (1 + DIM)) <= 400 * (1 + np.log2(MOST))


def test_frames_that_have_become_small_are_joined(cabinets: Callable[[], Cabinet]) -> None:
    cabinet = cabinets()
    cabinet.add(20 * MOST)
    assert len(cabinet.loaded()) == 20
    cabinet.remove([label for label in cabinet.model if label % 8])
    cabinet.check()
    assert len(cabinet.loaded()) <= 6


def test_a_frame_opens_in_its_own_row_of_its_own_collection_alone(cabinets: Callable[[], Cabinet]) -> None:
    cabinet, other = cabinets(), cabinets()
    cabinet.add(3 * MOST)
    key = key_of(NUMBER, MOST)
    content = cabinet.connection.execute("SELECT content FROM frames WHERE key = ?", (key,)).get
    assert len(cabinet.seals.open_frame(key, content)) == MOST * 4 * (1 + DIM)
    for seals, place in (
        (cabinet.seals, key_of(NUMBER, 0)),
        (cabinet.seals, key_of(NUMBER + 1, MOST)),
        (other.seals, key),
    ):
        with pytest.raises(SealBroken):
            seals.open_frame(place, content)
    cabinet.connection.execute("UPDATE frames SET content = ? WHERE key = ?", (content, key_of(NUMBER, 0)))
    found = frames.load(cabinet.connection, cabinet.seals, NUMBER, DIM, -1, 100)
    assert [frame is None for _, frame in found] == [True, False, False]


def test_a_frame_that_does_not_open_is_joined_with_none(cabinets: Callable[[], Cabinet]) -> None:
    cabinet = cabinets()
    cabinet.add(2)
    cabinet.connection.execute("UPDATE frames SET content = zeroblob(length(content))")
    cabinet.model.clear()
    for _ in range(5):
        cabinet.add(2)
    found = frames.load(cabinet.connection, cabinet.seals, NUMBER, DIM, -1, 100)
    assert [first for first, frame in found if frame is None] == [0]
    cabinet.connection.execute("DELETE FROM frames WHERE key = ?", (key_of(NUMBER, 0),))
    cabinet.check()


def test_nothing_opens_once_the_key_is_destroyed(tmp_path: Path) -> None:
    keyring = Keyring.create(tmp_path / "keyring", bytes(range(32)))
    customer, collection = uuid4(), uuid4()
    keyring.add(customer, collection, "collection")
    seals = Seals(keyring, CustomerId(str(customer)), ContainerId(str(collection)))
    key = span(NUMBER)[0]
    handle = seals.handle(b"id")
    name, frame = seals.seal_name("shoes"), seals.seal_frame(key, b"vectors")
    words = seals.seal_words(key, handle, b"id", b"{}")
    assert seals.open_words(key, handle, words) == (b"id", b"{}")
    assert seals.open_name(name) == "shoes"
    keyring.destroy(customer, collection)
    keyring.add(customer, collection, "collection")  # of the same ids, and yet another key
    for act in (
        lambda: seals.open_name(name),
        lambda: seals.open_words(key, handle, words),
        lambda: seals.open_frame(key, frame),
    ):
        with pytest.raises(SealBroken):
            act()
    assert seals.handle(b"id") != handle
    keyring.destroy(customer, collection)
    with pytest.raises(NotFound):
        seals.handle(b"id")
