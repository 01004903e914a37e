"""The few calls of the wire format that the demo makes, on the standard library alone."""

import base64
import http.client
import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demo.photos import Photo
from demo.state import DemoState

RECORDS_PER_CALL = 10  # the wire format's limit for records with images
BYTES_PER_CALL = 24 << 20  # base64 adds a third; well below the 64 MiB of a body
IDS_PER_CALL = 1000
PHOTOS = "/similarity/photos/v2"


class Refused(Exception):
    """The daemon answered with an error, or does not answer any more."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Client:
    """Calls to the daemon on 127.0.0.1:`port` with the demo's token and collection."""

    def __init__(self, port: int, state: DemoState) -> None:
        self.port = port
        self._headers = {
            "Authorization": f"Token {state.token}",
            "collection-id": state.collection,
            "Content-Type": "application/json",
        }

    def ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def call(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """POST a document and return the answer's; raises Refused for a lost connection or no JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", PHOTOS + path, json.dumps(document), self._headers)
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as failure:
            raise Refused(f"{PHOTOS}{path}: {failure}") from failure
        finally:
            connection.close()
        if not isinstance(answer, dict):
            raise Refused(f"{PHOTOS}{path}: not an object")
        return answer

    def present(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that the collection holds."""
        found: set[str] = set()
        for start in range(0, len(ids), IDS_PER_CALL):
            records = [{"_id": one} for one in ids[start : start + IDS_PER_CALL]]
            answer = self.call("/get", {"records": records, "fields_to_return": ["_id"]})
            found |= {record["_id"] for record in answer.get("answer_records", [])}
        return found

    @staticmethod
    def batches(photos: Sequence[Photo]) -> Iterator[list[tuple[Photo, bytes]]]:
        """Photos with their bytes, as many at a time as one call takes; unreadable ones are empty."""
        batch: list[tuple[Photo, bytes]] = []
        size = 0
        for photo in photos:
            try:
                encoded = photo.read()
            except OSError:
                encoded = b""  # refused by the daemon like any other broken file, and named with the rest
            if batch and (len(batch) == RECORDS_PER_CALL or size + len(encoded) > BYTES_PER_CALL):
                yield batch
                batch, size = [], 0
            batch.append((photo, encoded))
            size += len(encoded)
        if batch:
            yield batch

    def insert(self, batch: Sequence[tuple[Photo, bytes]]) -> list[tuple[str, str]]:
        """Insert one batch; returns (`_id`, reason) of each photo that was refused."""
        records = [
            {**photo.metadata, "_id": photo.id, "_base64": base64.b64encode(encoded).decode()}
            for photo, encoded in batch
        ]
        answer = self.call("/insert", {"records": records})
        if "answer_records" not in answer:
            text = _text(answer.get("status"))
            return [(photo.id, text) for photo, _ in batch]
        return [(record["_id"], _text(record.get("_reason"))) for record in answer["skipped_records"]]

    def similar(self, photo_id: str, k: int) -> list[tuple[str, float]]:
        """The `k` nearest photos to a stored one, nearest first, with their distances."""
        answer = self.call("/visualKNN", {"query_record": {"_id": photo_id}, "k": k})
        if "answer_records" not in answer:
            raise Refused(f"{PHOTOS}/visualKNN: {_text(answer.get('status'))}")
        ids = [record["_id"] for record in answer["answer_records"]]
        return list(zip(ids, answer["answer_distances"], strict=True))

    @staticmethod
    def operator_addresses(path: Path) -> list[str]:
        """Where the operator's probes and metrics answer, as the daemon's status on its Unix socket says."""
        connection = _UnixConnection(path)
        try:
            connection.request("GET", "/appliance/v1/status")
            status = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as failure:
            raise Refused(f"{path}: {failure}") from failure
        finally:
            connection.close()
        return [str(address) for address in status["listeners"]["operator"]]


def _text(status: Any) -> str:
    """The sentence inside a status, however deep the wire format wraps it."""
    if isinstance(status, dict):
        return _text(status.get("status") or status.get("text") or status)
    return str(status)
