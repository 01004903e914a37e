"""Datasets and the links to their images, over HTTP: what a browser, a program and a stranger get."""

import base64
import http.client
import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from PIL import Image as Picture

from appliance.accounts.agreements import Kind
from appliance.accounts.audit import Event
from appliance.accounts.customers import CustomerId
from appliance.accounts.rights import Scope
from appliance.datasets.records import Dataset, Image, Variant
from tests import images
from tests.serving import ACTOR, NOW, Reply, Served, Tenant

PHOTO = images.encoded(Picture.fromarray(np.full((300, 400, 3), 90, np.uint8)), "JPEG", comment=b"a secret")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("stored")) as served:
        yield served


class Album:
    """A tenant with an agreement, a dataset and one image in it."""

    def __init__(self, served: Served, **settings: Any) -> None:
        self.served = served
        self.tenant: Tenant = served.tenant(str(uuid.uuid4()))
        self.customer = CustomerId(self.tenant.id)
        self.dataset: Dataset = served.run(self._dataset(settings))
        self.image: Image = served.run(served.images.store.put(ACTOR, self.dataset, PHOTO))

    async def _dataset(self, settings: dict[str, Any]) -> Dataset:
        await self.served.parts.agreements.sign(ACTOR, self.customer, Kind.TRAINING_DATA)
        return await self.served.images.datasets.add(ACTOR, self.customer, "cats", **settings)

    def link(self, variant: Variant = "image", seconds: int = 3600) -> str:
        dataset = self.served.run(self.served.images.datasets.get(self.customer, self.dataset.id))
        return "/" + self.served.images.links.address(dataset, self.image, variant, seconds)

    def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        return self.served.site.call(method, path, None, {k.replace("_", "-"): v for k, v in headers.items()})

    def manage(self, method: str, path: str, document: object = None) -> Reply:
        body = None if document is None else json.dumps(document).encode()
        headers = {"Authorization": f"Token {self.tenant.token}", "Content-Type": "application/json"}
        return self.served.site.call(method, f"/appliance/v1{path}", body, headers)


@pytest.fixture
def album(served: Served) -> Album:
    return Album(served)


def test_a_link_gives_the_image_without_a_token(album: Album) -> None:
    reply = album.get(album.link())
    assert reply.status == 200
    assert Picture.open(io.BytesIO(reply.body)).size == (400, 300)
    assert b"a secret" not in reply.body
    assert reply.headers["content-type"] == "image/jpeg"
    assert reply.headers["cache-control"] == "private, no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["content-length"] == str(len(reply.body)) == str(album.image.size)
    assert album.get("/localhost" + album.link()).body == reply.body


def test_its_thumbnail_has_a_link_of_its_own(album: Album) -> None:
    reply = album.get(album.link("thumbnail"))
    assert reply.status == 200
    assert max(Picture.open(io.BytesIO(reply.body)).size) == 256
    assert reply.headers["etag"] != album.get(album.link()).headers["etag"]


def test_head_tells_all_and_sends_nothing(album: Album) -> None:
    whole, head = album.get(album.link()), album.get(album.link(), "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    assert head.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=100-", 100, None), ("bytes=-7", -7, None)],
)
def test_a_range_is_that_part(album: Album, header: str, start: int, stop: int | None) -> None:
    whole = album.get(album.link()).body
    reply = album.get(album.link(), Range=header)
    assert reply.status == 206
    assert reply.body == whole[start:stop]
    first = start % len(whole)
    assert reply.headers["content-range"] == f"bytes {first}-{first + len(reply.body) - 1}/{len(whole)}"


def test_a_range_beyond_the_end_is_cut_or_refused(album: Album) -> None:
    size = album.image.size
    assert len(album.get(album.link(), Range=f"bytes=5-{size + 100}").body) == size - 5
    for header in (f"bytes={size}-", "bytes=-0"):
        reply = album.get(album.link(), Range=header)
        assert reply.status == 416
        assert reply.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    "header", ["bytes=5-2", "bytes=0-1,5-6", "lines=1-2", "bytes=", "bytes=a-b", "bytes=-"]
)
def test_what_is_no_single_range_gets_the_whole(album: Album, header: str) -> None:
    assert album.get(album.link(), Range=header).status == 200


def test_what_is_known_is_not_sent_again(album: Album) -> None:
    tag = album.get(album.link()).headers["etag"]
    for known in (f'"x", {tag}', f"W/{tag}", "*"):
        assert album.get(album.link(), If_None_Match=known).status == 304
    assert album.get(album.link(), Range="bytes=0-9", If_Range=tag).status == 206
    assert album.get(album.link(), Range="bytes=0-9", If_Range='"another"').status == 200


def test_an_hour_later_the_link_is_dead(album: Album) -> None:
    link = album.link()
    try:
        album.served.clock = NOW + 3599
        assert album.get(link).status == 200
        album.served.clock = NOW + 3600
        assert album.get(link).status == 403
    finally:
        album.served.clock = NOW


def test_what_is_no_link_is_refused_alike(album: Album) -> None:
    other = Album(album.served)
    forged = album.link()[:-1] + ("A" if album.link()[-1] != "A" else "B")
    texts = {
        album.get(path).document["detail"]
        for path in (
            forged,
            album.link().replace(album.image.id, other.image.id),
            album.link().replace(album.image.id, str(uuid.uuid4())),
            album.link() + "&x=1",
        )
    }
    assert len(texts) == 1
    assert album.get("/files/x.jpg?sig=" + "A" * 43).status == 404
    assert album.get(album.link(), "POST").status == 405


def test_a_public_dataset_has_stable_links_until_they_are_ended(album: Album) -> None:
    before = album.link()
    changed = album.manage("PATCH", f"/datasets/{album.dataset.id}", {"visibility": "public"})
    assert changed.document["visibility"] == "public"
    link = album.link()
    assert "exp=" not in link
    assert album.get(link).status == 200
    assert album.get(before).status == 403
    album.manage("PATCH", f"/datasets/{album.dataset.id}", {"end_links": True})
    assert album.get(link).status == 403
    assert album.get(album.link()).status == 200


def test_a_restricted_image_is_served_sealed_and_its_key_apart(served: Served) -> None:
    album = Album(served, visibility="restricted")
    path, token = f"/files/{album.image.id}.jpg", f"Token {album.tenant.token}"
    assert album.get(path).status == 401
    stranger = Album(served).tenant.token
    assert album.get(path, Authorization=f"Token {stranger}").status == 404
    assert album.get(path, Authorization="Token xapp_wrong").status == 401
    blind = served.token(album.tenant, Scope.INFER)
    assert album.get(path, Authorization=f"Token {blind}").status == 403
    reply = album.get(path, Authorization=token)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/octet-stream"
    assert b"\xff\xd8" not in reply.body[:64]
    key = album.manage("GET", f"/images/{album.image.id}/key").document
    opened = opened_by(key, reply.body)
    assert len(opened) == key["size"] + key["thumbnail_size"]
    assert Picture.open(io.BytesIO(opened[: key["size"]])).size == (400, 300)
    part = album.get(path, Authorization=token, Range="bytes=0-63")
    assert part.body == reply.body[:64]
    assert served.site.call("GET", f"/appliance/v1/images/{album.image.id}/key").status == 401


def opened_by(key: dict[str, Any], sealed: bytes) -> bytes:
    cipher = AESGCM(base64.b64decode(key["key"]))
    base, size = int.from_bytes(base64.b64decode(key["base_nonce"])), 16384 + 16
    chunks = [sealed[at : at + size] for at in range(120, len(sealed), size)]
    return b"".join(
        cipher.decrypt((base ^ number).to_bytes(12), chunk, None) for number, chunk in enumerate(chunks)
    )


def test_a_link_dies_with_its_image_and_with_its_dataset(album: Album) -> None:
    link = album.link()
    second = album.served.run(album.served.images.store.put(ACTOR, album.dataset, PHOTO + b"\0"))
    album.served.run(album.served.images.store.delete(ACTOR, album.image))
    assert album.get(link).status == 403
    album.image = second
    link = album.link()
    assert album.get(link).status == 200
    assert album.manage("DELETE", f"/datasets/{album.dataset.id}").status == 204
    assert album.get(link).status == 403
    assert album.manage("GET", f"/datasets/{album.dataset.id}").status == 404


def test_what_is_stored_outlives_its_agreement_and_can_be_deleted_without_one(album: Album) -> None:
    served, link = album.served, album.link()
    (agreement,) = served.run(served.parts.agreements.list(album.customer))
    assert album.manage("DELETE", f"/agreements/{agreement.id}").status == 204
    assert album.get(link).status == 200
    assert album.get(album.link("thumbnail")).status == 200
    path, headers = f"/recognition/v2/training-image/{album.image.id}", album.tenant.headers()
    assert served.site.call("DELETE", path, headers=headers).status == 204
    assert album.get(link).status == 403
    assert album.manage("DELETE", f"/datasets/{album.dataset.id}").status == 204


def test_a_damaged_image_is_an_answer_and_no_picture(album: Album) -> None:
    state = album.served.parts.config.state
    file = state / "images" / uuid.UUID(album.dataset.id).hex / uuid.UUID(album.image.id).hex
    spoil(file)
    reply = album.get(album.link())
    assert reply.status == 503
    assert album.image.id in reply.document["detail"]


def spoil(file: Path, place: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_datasets_are_made_listed_changed_and_erased(album: Album) -> None:
    made = album.manage(
        "POST", "/datasets", {"name": "dogs", "retention_days": 30, "visibility": "restricted"}
    )
    assert made.status == 201
    assert made.document["retention_days"] == 30
    listed = album.manage("GET", "/datasets").document["datasets"]
    assert [one["name"] for one in listed] == ["cats", "dogs", "Default"]
    assert [one["images"] for one in listed] == [1, 0, 0]
    default = next(one for one in listed if one["is_default"])
    assert default["id"] == album.tenant.id
    assert album.manage("GET", "/datasets/Default").document == default
    assert album.manage("POST", "/datasets", {"name": "dogs"}).status == 409
    for wrong in ({}, {"name": ""}, {"name": "x", "visibility": "open"}, {"name": "x", "retention_days": 0}):
        assert album.manage("POST", "/datasets", wrong).status == 400
    mine = f"/datasets/{made.document['id']}"
    assert album.manage("PATCH", mine, {}).status == 400
    assert album.manage("PATCH", mine, {"visibility": "link"}).document["retention_days"] == 30
    assert album.manage("PATCH", mine, {"retention_days": 7}).document["retention_days"] == 7
    assert album.manage("PATCH", mine, {"retention_days": None}).document["retention_days"] is None
    assert album.manage("DELETE", f"/datasets/{made.document['id']}").status == 204
    stranger = Album(album.served)
    for method, document in (("GET", None), ("PATCH", {"visibility": "public"}), ("DELETE", None)):
        assert stranger.manage(method, f"/datasets/{album.dataset.id}", document).status == 404
    events = [entry.event for entry in album.served.audited(album.tenant)]
    assert events.count(Event.DATASET_ADD) == 3
    assert events.count(Event.DATASET_ERASE) == 1


def test_many_ask_at_once(album: Album) -> None:
    from concurrent.futures import ThreadPoolExecutor

    link = album.link()
    with ThreadPoolExecutor(16) as threads:
        bodies = set(threads.map(lambda _: album.get(link).body, range(200)))
    assert len(bodies) == 1


def test_an_image_that_turns_out_damaged_while_it_is_sent_breaks_off(album: Album) -> None:
    """What came before is right, and the caller sees that it is not all: a whole length was announced."""
    large = images.encoded(images.noise(700), "PNG")
    album.image = album.served.run(album.served.images.store.put(ACTOR, album.dataset, large))
    state = album.served.parts.config.state
    file = state / "images" / uuid.UUID(album.dataset.id).hex / uuid.UUID(album.image.id).hex
    spoil(file, -len(large) // 3)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        album.get(album.link())
    assert album.get(album.link(), Range="bytes=0-99").body == large[:100]
