"""Customers of the appliance in the guest: single calls, and load that remembers what was acknowledged."""

import base64
import http.client
import itertools
import json
import ssl
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tests import images
from tests.running import Answer

PHOTOS = "/similarity/photos/v2"
TRAINING = "/recognition/v2/training-image"
SECONDS = 120.0
IDS_PER_CALL = 500
Record = dict[str, Any]


@dataclass(frozen=True)
class Client:
    """A customer's program on https://localhost:PORT, trusting what `context` trusts."""

    port: int
    context: ssl.SSLContext
    token: str = ""
    collection: str = ""

    def connection(self) -> http.client.HTTPSConnection:
        """A connection of one's own, not yet open."""
        return http.client.HTTPSConnection("localhost", self.port, timeout=SECONDS, context=self.context)

    def headers(self) -> dict[str, str]:
        """What every JSON request carries."""
        return {
            "authorization": f"Token {self.token}",
            "collection-id": self.collection,
            "content-type": "application/json",
        }

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own."""
        connection = self.connection()
        try:
            connection.request(method, path, body, self.headers() | headers)
            return _answer(connection)
        finally:
            connection.close()

    def post(self, path: str, document: object) -> Answer:
        """POST JSON."""
        return self.call("POST", path, json.dumps(document).encode())

    def fetch(self, link: str) -> bytes:
        """What a link to an image gives, which needs no token."""
        connection = self.connection()
        try:
            connection.request("GET", "/" + link.split("/", 3)[3])  # what comes before is the public URL
            answer = _answer(connection)
        finally:
            connection.close()
        assert answer.status == 200, answer.body[:500]
        return answer.body

    def ready(self) -> bool:
        """Whether /readyz says so; False also while nothing answers."""
        try:
            return self.call("GET", "/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def wait_ready(self, seconds: float = 240.0) -> float:
        """Returns how long it took until /readyz said so; fails when it never does."""
        began = time.monotonic()
        while not self.ready():
            assert time.monotonic() - began < seconds, f"not ready after {seconds:.0f} s"
            time.sleep(0.3)
        return time.monotonic() - began

    def stored(self, ids: Sequence[str]) -> dict[str, Record]:
        """Those of `ids` that the collection holds, with all their fields."""
        found: dict[str, Record] = {}
        for start in range(0, len(ids), IDS_PER_CALL):
            records = [{"_id": one} for one in ids[start : start + IDS_PER_CALL]]
            answer = self.post(f"{PHOTOS}/get", {"records": records, "fields_to_return": ["*"]})
            assert answer.status in {200, 404}, answer.body[:500]
            found |= {record["_id"]: record for record in answer.document["answer_records"]}
        return found

    def assert_stored(self, acknowledged: Mapping[str, Record]) -> None:
        """Every acknowledged record is there as it was sent, and the newest finds itself by its vector."""
        assert acknowledged, "nothing was acknowledged, so nothing would be proved"
        assert self.stored(list(acknowledged)) == acknowledged
        newest = list(acknowledged)[-1]
        found = self.post(f"{PHOTOS}/visualKNN", {"query_record": {"_id": newest}, "k": 1})
        assert found.document["answer_records"][0]["_id"] == newest

    def authorised(self, token: str, collection: str) -> "Client":
        """The same connection for a customer."""
        return replace(self, token=token, collection=collection)


def _answer(connection: http.client.HTTPConnection) -> Answer:
    answer = connection.getresponse()
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


@dataclass
class Load:
    """Clients that insert photo after photo while the block lasts, each on a connection that it keeps.

    A request may be acknowledged, refused with 503 or 507, or lose its connection, and is not sent again;
    anything else is in `wrong`.
    """

    client: Client
    name: str
    writers: int = 2
    acknowledged: dict[str, Record] = field(default_factory=dict)
    outcomes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._ending = threading.Event()
        names = [f"{self.name}-{number}" for number in range(self.writers)]
        self._threads = [threading.Thread(target=self._write, args=(name,), daemon=True) for name in names]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(2 * SECONDS)
            assert not thread.is_alive(), "a client hangs"

    def wait(self, more: int, seconds: float = SECONDS) -> None:
        """Until so many more photos were acknowledged."""
        enough = len(self.acknowledged) + more
        deadline = time.monotonic() + seconds
        while len(self.acknowledged) < enough:
            assert not self.wrong, self.wrong[:3]
            assert time.monotonic() < deadline, f"inserts do not get through: {Counter(self.outcomes)}"
            time.sleep(0.02)

    def _write(self, name: str) -> None:
        connection = self.client.connection()
        for number in itertools.count():
            if self._ending.is_set():
                break
            record = {"_id": f"{name}-{number}", "writer": name, "number": number, "filling": "x" * 500}
            outcome = self._insert(connection, record)
            self.outcomes.append(outcome)
            if outcome != "acknowledged":
                self._ending.wait(0.2)
        connection.close()

    def _insert(self, connection: http.client.HTTPSConnection, record: Record) -> str:
        picture = images.jpeg(48, seed=zlib.crc32(record["_id"].encode()))
        body = {"records": [record | {"_base64": base64.b64encode(picture).decode()}]}
        try:
            connection.request("POST", f"{PHOTOS}/insert", json.dumps(body), self.client.headers())
            answer = _answer(connection)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__
        if answer.status in {503, 507}:
            return str(answer.status)
        if answer.status != 200 or len(answer.document.get("answer_records", ())) != 1:
            self.wrong.append(f"{answer.status} {answer.body[:500]!r}")
            return "wrong"
        self.acknowledged[record["_id"]] = record
        return "acknowledged"


class Uploads(Load):
    """Clients that upload training images instead; `acknowledged` has the picture of each, by its id."""

    def _insert(self, connection: http.client.HTTPSConnection, record: Record) -> str:
        picture = images.encoded(images.noise(48, seed=zlib.crc32(record["_id"].encode())), "PNG")
        body = {"base64": base64.b64encode(picture).decode()}
        try:
            connection.request("POST", TRAINING, json.dumps(body), self.client.headers())
            answer = _answer(connection)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__
        if answer.status == 503:
            return "503"
        if answer.status != 201:
            self.wrong.append(f"{answer.status} {answer.body[:500]!r}")
            return "wrong"
        self.acknowledged[answer.document["id"]] = {"picture": picture}
        return "acknowledged"

    def wait_refused(self, seconds: float = SECONDS) -> None:
        """Until each client was refused with 503 for one upload that it began after this call."""
        began = len(self.outcomes)
        deadline = time.monotonic() + seconds
        while self.outcomes[began + self.writers :].count("503") < self.writers:
            assert time.monotonic() < deadline, f"uploads are not refused: {Counter(self.outcomes[began:])}"
            time.sleep(0.02)

    def assert_whole(self) -> None:
        """Every acknowledged image is served by its link, as it was uploaded."""
        assert self.acknowledged, "nothing was acknowledged, so nothing would be proved"
        assert not self.wrong, self.wrong[:3]
        for image, kept in self.acknowledged.items():
            shown = self.client.call("GET", f"{TRAINING}/{image}")
            assert shown.status == 200, shown.body[:500]
            assert self.client.fetch(shown.document["img_path"]) == kept["picture"]
