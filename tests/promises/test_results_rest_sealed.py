"""The ledger has no word of a customer after a mixed load of results, webhooks and repeated calls.

One stands there by its nature: the customer's name, which operators list customers by.
"""

import base64
import json
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tests import images
from tests.hosts import Host
from tests.plaintext import Plaintext
from tests.serving import Reply, Served, Site, Tenant
from tests.waiting import eventually

REQUESTS, PHOTOS = "/account/v2/request", "/similarity/photos/v2"
LEDGER = ("ledger.db", "ledger.db-wal")


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


class Load:
    """Calls of one customer full of words, each of which is nobody else's."""

    def __init__(self, site: Site, tenant: Tenant, host: Host) -> None:
        self._site = site
        self._tenant = tenant
        self._host = host
        self.written = Plaintext()
        self.words: list[str] = []

    def word(self) -> str:
        self.words.append(secrets.token_hex(12))
        self.written.add_word(self.words[-1])
        return self.words[-1]

    def record(self, **fields: object) -> dict[str, object]:
        noise = images.encoded(images.noise(48, seed=secrets.randbelow(1 << 30)), "PNG")
        encoded = base64.b64encode(noise).decode()
        return {"_id": self.word(), "_base64": encoded, self.word(): self.word(), **fields}

    def post(self, path: str, document: object, **headers: str) -> Reply:
        body = json.dumps(document).encode()
        return self._site.call("POST", path, body, self._tenant.headers(**headers))

    def webhook(self) -> dict[str, object]:
        return {"endpoint": f"{self._host.address}/{self.word()}", "headers": {"X-Secret": self.word()}}

    def request(self, **fields: object) -> None:
        """One that is taken in twice under one key, and ends."""
        document, key = {"webhook": self.webhook(), **fields}, self.word()
        first, again = (self.post(REQUESTS, document, idempotency_key=key) for _ in range(2))
        assert (first.status, again.status, again.document["id"]) == (201, 200, first.document["id"])
        eventually(lambda: self.answered(first.document["id"])["finished"] is not None, "the request ends")
        for one in self.answered(first.document["id"])["response"].get("records", []):
            assert self.written.places(msgspec.json.encode(one)) != [], (
                "it answers nothing that is searched for"
            )
            self.written.add(msgspec.json.encode(one.get("_descriptor")))

    def answered(self, request: str) -> Any:
        return self._site.call("GET", f"{REQUESTS}/{request}", None, self._tenant.headers()).document

    def change(self, action: str, *records: dict[str, object]) -> None:
        key = self.word()
        first, again = (
            self.post(f"{PHOTOS}/{action}", {"records": records}, idempotency_key=key) for _ in range(2)
        )
        assert (first.status, again.status) == (200, 200), first.body
        assert again.headers["idempotent-replayed"] == "true"


def test_after_a_mixed_load_the_ledger_has_no_word_of_a_customer(tmp_path: Path, host: Host) -> None:
    name = secrets.token_hex(12)
    with Served(tmp_path) as served:
        tenant = served.tenant(name)
        with served.another(residency=host.residency) as (site, _):
            load = Load(site, tenant, host)
            host.answers = [204, 500, 204, 500]
            ask_for_results(load, served)
            change_records(load)
            for _ in range(4):
                host.told.get(timeout=30)
            assert rows(tmp_path) == {"results": 4, "remembered": 4}
            eventually(lambda: log_is_searched(load, tmp_path), "the log is searched")
        assert found(tmp_path, load.written) == {}
    assert found(tmp_path, load.written) == {}
    named = Plaintext()
    named.add_word(name)
    assert set(found(tmp_path, named)) == {"ledger.db"}


def log_is_searched(load: Load, folder: Path) -> bool:
    """Whether the ledger's log held something, none of it plain; a moment after a deletion it is cut."""
    load.change("upsert", load.record())
    log = (folder / "ledger.db-wal").read_bytes()
    assert load.written.places(log) == []
    return len(log) > 0


def ask_for_results(load: Load, served: Served) -> None:
    """One of each: what is seen, a vector, what fails whole, and a record that is refused."""
    kind = {"type": "custom-recognition", "task_id": served.bundle.task}
    load.request(**kind, records=[load.record(), load.record()])
    load.request(type="descriptor", records=[load.record()])
    load.request(**kind | {"task_id": load.word()}, records=[load.record()], note=load.word())
    load.request(**kind, records=[load.record(_base64=base64.b64encode(b"no image").decode())])


def change_records(load: Load) -> None:
    kept = load.record()
    load.change("insert", kept, load.record(), load.record(_base64="?"))
    load.change("upsert", load.record())
    load.change("update", {"_id": kept["_id"], "note": load.word()}, {"_id": load.word(), "x": load.word()})
    load.change("delete", {"_id": kept["_id"], "why": load.word()})


def rows(folder: Path) -> dict[str, int]:
    with closing(apsw.Connection(str(folder / "ledger.db"), flags=apsw.SQLITE_OPEN_READONLY)) as ledger:
        results = ledger.execute("SELECT count(*) FROM requests WHERE response IS NOT NULL").get
        remembered = ledger.execute("SELECT count(*) FROM search_replies").get
        assert ledger.execute("SELECT count(*) FROM requests WHERE handle IS NOT NULL").get == results
    return {"results": results, "remembered": remembered}


def found(folder: Path, plaintext: Plaintext) -> dict[str, int]:
    """In which files of the ledger how many pieces are found."""
    files = [folder / name for name in LEDGER if (folder / name).exists()]
    counts = {path.name: len(plaintext.places(path.read_bytes())) for path in files}
    return {name: count for name, count in counts.items() if count}
