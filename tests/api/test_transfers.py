"""Ready vectors into a collection and whole collections out of it, over HTTP."""

import io
import json
import uuid
import zipfile
from collections.abc import Iterable

import numpy as np
import pytest

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from tests.searching import Vectors, unit
from tests.serving import DIM, Reply, Served, Tenant
from tests.shop import Shop, code, record

NPY, LINES, ZIP = "application/x-npy", "application/x-ndjson", "application/zip"
VECTORS = unit(np.random.default_rng(11), 30, DIM)


def saved(vectors: Vectors) -> bytes:
    file = io.BytesIO()
    np.save(file, vectors)
    return file.getvalue()


def multipart(parts: Iterable[tuple[str, bytes]]) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class Transfer:
    """The import and export of a shop's collection."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.path = f"/appliance/v1/collections/{shop.collection}"

    def take(self, body: bytes, media: str, query: str = "", *, pin: str | None = None) -> Reply:
        named = self.shop.served.bundle.pin if pin is None else pin
        path = f"{self.path}/import?backbone={named}{query}"
        return self.shop.served.site.call("POST", path, body, self.shop.tenant.headers(content_type=media))

    def give(self, query: str) -> Reply:
        headers = self.shop.tenant.headers()
        return self.shop.served.site.call("GET", f"{self.path}/export?{query}", None, headers)


@pytest.fixture
def transfer(shop: Shop) -> Transfer:
    return Transfer(shop)


def test_an_array_is_found_by_images_and_ids(transfer: Transfer) -> None:
    shop = transfer.shop
    shop.insert(record("seen", 128))
    (vector,) = shop.served.run(_vectors(shop, ["seen"]))
    answer = transfer.take(saved(np.stack([vector * 3, *VECTORS])), NPY, "&prefix=row-")
    assert (answer.status, answer.document) == (
        200,
        {"inserted": 31, "replaced": 0, "kept": 0, "refused": 0, "reasons": []},
    )
    found = shop.post("visualKNN", {"query_record": record("q", 128), "k": 2})
    assert {one["_id"] for one in found["answer_records"]} == {"seen", "row-0"}
    assert found["answer_distances"] == [0.0, 0.0]
    assert code(shop.post("visualKNN", {"query_record": {"_id": "row-30"}})) == 200
    events = [row.event for row in shop.served.audited(shop.tenant)]
    assert Event.SEARCH_IMPORT in events


async def _vectors(shop: Shop, ids: list[str]) -> list[Vectors]:
    opened = await shop.served.parts.collections.open(shop.tenant.id, shop.collection)  # type: ignore[arg-type]
    return [one for one in await opened.vectors(ids) if one is not None]


def test_lines_are_stored_or_named(transfer: Transfer) -> None:
    lines = [
        json.dumps({"_id": f"r{n}", "_vector": vector.tolist(), "n": n}) for n, vector in enumerate(VECTORS)
    ]
    lines[3] = json.dumps({"_id": "r3", "_vector": [0] * DIM})
    answer = transfer.take("\n".join(lines).encode(), LINES)
    assert (answer.document["inserted"], answer.document["refused"]) == (29, 1)
    (reason,) = answer.document["reasons"]
    assert (reason["line"], "zero" in reason["reason"]) == (4, True)
    assert transfer.take("\n".join(lines).encode(), LINES).document["kept"] == 29
    replaced = transfer.take("\n".join(lines).encode(), LINES, "&on_conflict=replace")
    assert replaced.document["replaced"] == 29
    found = transfer.shop.post("get", {"records": [{"_id": "r7"}], "fields_to_return": ["*"]})
    assert found["answer_records"] == [{"_id": "r7", "n": 7}]


@pytest.mark.parametrize("form", ["npy", "ndjson"])
def test_what_is_exported_is_imported_and_exported_the_same(
    transfer: Transfer, served: Served, tenant: Tenant, form: str
) -> None:
    named = "".join(json.dumps({"_id": f"r{n}", "n": [n, "ü"]}) + "\n" for n in range(30)).encode()
    body, media = multipart([("records", named), ("vectors", saved(VECTORS * 2))])
    assert transfer.take(body, media).document["inserted"] == 30
    given = transfer.give(f"format={form}")
    assert given.status == 200
    assert given.headers["content-type"] == (ZIP if form == "npy" else LINES)
    assert given.headers["x-backbone"] == served.bundle.pin
    assert given.headers["cache-control"] == "private, no-store"
    other = Transfer(Shop(served, tenant, served.run(served.collection(tenant.id, str(uuid.uuid4())))))
    if form == "npy":
        archive = zipfile.ZipFile(io.BytesIO(given.body))
        pairs = [(name.partition("-")[0], archive.read(name)) for name in archive.namelist()]
        assert np.load(io.BytesIO(pairs[1][1])).shape == (30, DIM)
        again = other.take(*multipart(pairs))
    else:
        again = other.take(given.body, LINES)
    assert again.document["inserted"] == 30
    assert other.give(f"format={form}").body == given.body
    assert Event.SEARCH_EXPORT in [row.event for row in served.audited(tenant)]


def test_vectors_of_another_model_are_refused(transfer: Transfer) -> None:
    body = saved(VECTORS)
    for pin, status in (("colours@2", 409), ("", 400)):
        answer = transfer.take(body, NPY, pin=pin)
        assert answer.status == status
        assert "model" in answer.document["detail"]
    assert transfer.take(saved(VECTORS[:, :8]), NPY).status == 400
    assert transfer.shop.stored() == []


@pytest.mark.parametrize(
    ("body", "media", "query", "refused"),
    [
        (b"", NPY, "", (400, "no array")),
        (saved(VECTORS)[:-5], NPY, "", (400, "after 29 of its 30 rows; 29 records")),
        (b"{}", "application/json", "", (415, "Content-Type")),
        (b"{}", LINES, "&on_conflict=merge", (400, "on_conflict")),
        (b"nothing", "multipart/form-data; boundary=x", "", (400, "malformed")),
    ],
)
def test_what_cannot_be_read_says_why(
    transfer: Transfer, body: bytes, media: str, query: str, refused: tuple[int, str]
) -> None:
    answer = transfer.take(body, media, query)
    assert (answer.status, answer.headers["content-type"]) == (refused[0], "application/problem+json")
    assert refused[1] in answer.document["detail"]


@pytest.mark.parametrize("query", ["", "format=csv", "format=npy&skip_damaged=2"])
def test_an_export_says_what_it_expects(transfer: Transfer, query: str) -> None:
    assert transfer.give(query).status == 400


def test_an_operator_imports_and_sees_no_records(transfer: Transfer, served: Served, tenant: Tenant) -> None:
    path = f"{transfer.path}/import?backbone={served.bundle.pin}"
    taken = served.site.operate("POST", path, body=saved(VECTORS), content_type=NPY)
    assert taken.document["inserted"] == 30
    export = f"{transfer.path}/export?format=ndjson"
    assert served.site.operate("GET", export).status == 403
    signed = {"authorization": f"Token {served.token(tenant, Scope.SEARCH_READ)}"}
    assert len(served.site.operate("GET", export, headers=signed).body.splitlines()) == 30
