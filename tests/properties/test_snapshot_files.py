"""The format of snapshots: what is written is read, batch by batch, whatever ids and metadata are."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts.customers import CustomerId
from appliance.search.copying import Stored
from appliance.search.numbering import LABELS
from appliance.search.seals import ContainerId, Seals
from appliance.search.snapshot_files import Manifest, SnapshotFolder, encode
from appliance.vault import Keyring

DIM = 3
WORDS = st.tuples(st.binary(min_size=1, max_size=40), st.binary(max_size=3000))
BATCH = st.lists(WORDS, min_size=1, max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnapshotFolder]:
    state = tmp_path_factory.mktemp("snapshots")
    keyring = Keyring.create(state / "keyring", bytes(range(32)))
    customer, container = uuid4(), uuid4()
    keyring.add(customer, container, "collection")
    seals = Seals(keyring, CustomerId(str(customer)), ContainerId(str(container)))
    yield SnapshotFolder(state / "snapshots", seals)
    keyring.wipe()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batches=st.lists(BATCH, max_size=6), first=st.integers(0, LABELS - 1000))
def test_what_is_written_is_read(
    folder: SnapshotFolder, batches: list[list[tuple[bytes, bytes]]], first: int
) -> None:
    rng = np.random.default_rng(first)
    written: list[Stored] = []
    for words in batches:
        vectors = rng.standard_normal((len(words), DIM)).astype(np.float32)
        written.append(Stored(np.arange(first, first + len(words)), vectors, words))
        first += len(words)
    records = sum(len(one.words) for one in written)
    manifest, snapshot = Manifest("backbone@1", DIM, records, first, 1), UUID(int=records)
    file = folder.writing(snapshot)
    folder.begin(file, manifest, 0)
    for one in written:
        file.write(encode(one))
    file.publish()
    file.close()
    (listed,) = folder.saved()
    assert (listed.id, listed.size, listed.manifest) == (snapshot, file.size, manifest)
    reading = folder.opened(snapshot)
    for one in written:
        read = reading.batch()
        assert read is not None
        assert read.words == one.words
        assert np.array_equal(read.labels, one.labels)
        assert np.array_equal(read.vectors, one.vectors)
    assert reading.batch() is None
    reading.close()
    folder.remove(snapshot)
