"""kill -9 of the whole daemon during inserts: what was acknowledged is there, and nothing is half there."""

import base64
import http.client
import itertools
import threading
import time
import zlib
from collections.abc import Iterator

import pytest

from tests import images
from tests.running import CopyState, RunningAppliance

PHOTOS = "/similarity/photos/v2"
BATCH = 3
WRITERS = 2


class Writer(threading.Thread):
    """Inserts batch after batch until the daemon is gone; `acknowledged` are the batches it answered for."""

    def __init__(
        self, running: RunningAppliance, collection: str, name: str, acknowledged: list[str]
    ) -> None:
        super().__init__(daemon=True)
        self.running = running
        self.collection = collection
        self.prefix = name
        self.acknowledged = acknowledged
        self.wrong: list[object] = []

    def run(self) -> None:
        for number in itertools.count():
            batch = f"{self.prefix}-{number}"
            try:
                answer = self.running.post(
                    f"{PHOTOS}/insert", {"records": records(batch)}, collection_id=self.collection
                )
            except (OSError, http.client.HTTPException):
                return
            if answer.status != 200 or len(answer.document["answer_records"]) != BATCH:
                self.wrong.append(answer)
                return
            self.acknowledged.append(batch)


def records(batch: str) -> list[dict[str, object]]:
    return [
        {
            "_id": f"{batch}/{part}",
            "_base64": base64.b64encode(
                images.jpeg(32, seed=zlib.crc32(f"{batch}/{part}".encode()))
            ).decode(),
            "batch": batch,
            "part": part,
            "filling": "x" * 2000,
        }
        for part in range(BATCH)
    ]


def stored(running: RunningAppliance, collection: str) -> Iterator[dict[str, object]]:
    answer = running.post(f"{PHOTOS}/allRecords", {"fields_to_return": ["*"]}, collection_id=collection)
    assert answer.status == 200, answer.body[:300]
    yield from answer.document["answer_records"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.full)])
def test_every_acknowledged_record_is_there_after_a_kill(copy_state: CopyState, kills: int) -> None:
    state = copy_state()
    running = RunningAppliance(state, state.port)
    running.start()
    collection = running.add_collection()
    acknowledged: list[str] = []
    for kill in range(kills):
        before = len(acknowledged)
        writers = [Writer(running, collection, f"{kill}-{one}", acknowledged) for one in range(WRITERS)]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 30
        while len(acknowledged) < before + 3 + kill % 5:
            assert not any(writer.wrong for writer in writers), writers[0].wrong + writers[1].wrong
            assert time.monotonic() < deadline, "inserts do not get through"
            time.sleep(0.002 * (kill % 7))
        running.kill()
        for writer in writers:
            writer.join(30)
            assert not writer.is_alive()
        running.start()
        check(running, collection, acknowledged)
    running.stop()


def check(running: RunningAppliance, collection: str, acknowledged: list[str]) -> None:
    parts: dict[str, set[object]] = {}
    for record in stored(running, collection):
        batch = str(record["batch"])
        assert record == {
            "_id": f"{batch}/{record['part']}",
            "batch": batch,
            "part": record["part"],
            "filling": "x" * 2000,
        }
        parts.setdefault(batch, set()).add(record["part"])
    assert set(acknowledged) - set(parts) == set(), "acknowledged batches are gone"
    assert {batch for batch, found in parts.items() if found != set(range(BATCH))} == set(), (
        "half-written batches"
    )
    # Their vectors are there too: the newest find themselves, those that nobody was told of included.
    for batch in [*acknowledged[-3:], *(set(parts) - set(acknowledged))]:
        found = running.post(
            f"{PHOTOS}/visualKNN", {"query_record": {"_id": f"{batch}/1"}, "k": 1}, collection_id=collection
        )
        assert found.document["answer_records"][0]["_id"] == f"{batch}/1"
        assert found.document["answer_distances"][0] == pytest.approx(0, abs=1e-5)
