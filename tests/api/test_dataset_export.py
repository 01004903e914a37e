"""Datasets as a stream out of the store, in the formats of other programs."""

import csv
import http.client
import logging
import os
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.accounts.audit import Actor
from appliance.accounts.rights import Scope
from appliance.datasets.interchange.annotated import Annotated
from appliance.datasets.interchange.table import Csv
from appliance.datasets.records import Dataset, ReadPermit
from appliance.datasets.store import Opened, Store
from tests import images
from tests.datasets import agreed, boxes, folders, give, new_dataset, receive, tar, untar
from tests.serving import SECONDS, Reply, Served, Tenant
from tests.storing import OPERATOR
from tests.waiting import eventually


@pytest.fixture(scope="module")
def owner(served: Served) -> Tenant:
    return agreed(served, "a customer who takes its data along")


def filled(served: Served, owner: Tenant, archive: bytes) -> str:
    dataset = new_dataset(served, owner, str(uuid.uuid4()))
    answer = receive(served, owner, dataset, archive)
    assert (answer.status, answer.document["refused"]) == (200, []), answer.body
    return dataset


def exported(served: Served, owner: Tenant, dataset: str, format_name: str) -> bytes:
    answer = give(served, owner, dataset, format_name)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["content-disposition"] == f'attachment; filename="{dataset}-{format_name}.tar"'
    return answer.body


@pytest.mark.parametrize(
    ("format_name", "files"),
    [
        ("imagefolder", folders()),
        ("coco", folders()),
        ("csv", folders()),
        ("coco", boxes()),
        ("yolo", boxes()),
        ("csv", boxes()),
    ],
)
def test_export_equals_import(
    served: Served, owner: Tenant, format_name: str, files: dict[str, bytes]
) -> None:
    first = exported(served, owner, filled(served, owner, tar(files)), format_name)
    again = exported(served, owner, filled(served, owner, first), format_name)
    assert again == first
    pictures = {content for name, content in untar(first).items() if name.endswith(("png", "jpg"))}
    assert pictures == {content for name, content in files.items() if name.endswith(("png", "jpg"))}


def test_twice_the_same_bytes(served: Served, owner: Tenant) -> None:
    dataset = filled(served, owner, tar(folders()))
    first = exported(served, owner, dataset, "coco")
    assert exported(served, owner, dataset, "coco") == first


def test_what_came_by_another_way_is_called_by_its_id(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, "uploads")
    path = f"/recognition/v2/training-image?workspace={dataset}"
    uploaded = images.plain("by its id")
    answer = served.site.call("POST", path, uploaded, owner.headers(content_type="image/png"))
    files = untar(exported(served, owner, dataset, "csv"))
    assert files[f"{answer.document['id']}.png"] == uploaded


def test_a_name_says_as_what_the_image_was_stored(served: Served, owner: Tenant) -> None:
    picture = images.encoded(images.noise(), "BMP")
    dataset = filled(served, owner, tar({"a/x.bmp": picture}))
    first = exported(served, owner, dataset, "imagefolder")
    [(name, content)] = untar(first).items()
    assert (name, content[:4]) == ("a/x.bmp.png", b"\x89PNG")
    assert exported(served, owner, filled(served, owner, first), "imagefolder") == first


def test_an_empty_dataset_is_an_empty_archive(served: Served, owner: Tenant) -> None:
    assert untar(exported(served, owner, new_dataset(served, owner, "nothing"), "imagefolder")) == {}


def test_what_a_format_cannot_say_is_refused_before_the_first_byte(served: Served, owner: Tenant) -> None:
    for files, format_name, instead in ((boxes(), "imagefolder", "coco"), (folders(), "yolo", "coco")):
        answer = give(served, owner, filled(served, owner, tar(files)), format_name)
        assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
        assert instead in answer.document["detail"]
    for format_name in ("", "auto", "voc"):
        assert give(served, owner, owner.id, format_name).status == 400


def test_images_of_a_restricted_dataset_leave_sealed_alone(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, "restricted", visibility="restricted")
    assert receive(served, owner, dataset, tar(folders())).status == 200
    answer = give(served, owner, dataset, "coco")
    assert answer.status == 403
    assert "visibility" in answer.document["detail"]


def test_an_export_is_the_customers_own_act(served: Served, owner: Tenant) -> None:
    """Over the operator socket too it takes the customer's token, and that one's scope."""
    dataset = filled(served, owner, tar(folders()))
    exported(served, owner, dataset, "coco")
    acts = [one for one in served.audited(owner) if one.subject == dataset]
    [entry] = [one for one in acts if one.event == "dataset.export"]
    assert (entry.actor.kind, entry.details) == ("token", {"images": 5})
    path = f"/appliance/v1/datasets/{dataset}/export?format=coco"
    assert operated(served, path).status == 403
    assert operated(served, path, served.token(owner, Scope.DATASETS_WRITE)).status == 403
    assert operated(served, path, served.token(owner, Scope.DATASETS_READ)).status == 200
    assert operated(served, path, "nonsense").status == 401
    assert operated(served, "/appliance/v1/status", owner.token).status == 403
    stranger = agreed(served, str(uuid.uuid4()))
    assert operated(served, path, stranger.token).status == 404


async def revoked(served: Served, owner: Tenant, _: Dataset, token: str) -> None:
    await served.parts.tokens.revoke(Actor("token", token), owner.id, token)


async def suspended(served: Served, owner: Tenant, _: Dataset, __: str) -> None:
    await served.parts.customers.suspend(OPERATOR, owner.id)


async def restricted(served: Served, _: Tenant, dataset: Dataset, __: str) -> None:
    assert served.parts.images is not None
    await served.parts.images.datasets.change(OPERATOR, dataset, visibility="restricted")


@pytest.mark.parametrize("ended", [revoked, suspended, restricted])
def test_an_export_ends_with_the_right_to_it(
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    ended: Callable[[Served, Tenant, Dataset, str], Awaitable[None]],
) -> None:
    """Also in the middle: somebody who has stolen a token reads as slowly as it takes."""
    tenant = agreed(served, str(uuid.uuid4()))
    name = filled(served, tenant, tar(folders()))
    assert served.parts.images is not None
    dataset = served.run(served.parts.images.datasets.get(tenant.id, name))
    [one] = served.run(served.parts.tokens.list(tenant.id))
    given, opened = list[str](), Store.open

    async def once(store: Store, permit: ReadPermit, *variant: Any) -> Opened:
        found = await opened(store, permit, *variant)
        if not given:
            await ended(served, tenant, dataset, one.id)
        given.append(permit.image)
        return found

    monkeypatch.setattr(Store, "open", once)
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        give(served, tenant, name, "coco")
    assert len(given) == 1


def operated(served: Served, path: str, token: str | None = None) -> Reply:
    headers = {} if token is None else {"authorization": f"Token {token}"}
    return served.site.operate("GET", path, headers=headers)


def flipped(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-20, os.SEEK_END)
        opened.write(b"damage")


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def led_elsewhere(file: Path) -> None:
    """Opening it fails in the kernel, as where a disk refuses to read it."""
    file.unlink()
    file.symlink_to("/dev/null")


def large() -> dict[str, bytes]:
    """Three images that go out in several pieces."""
    return {f"a/{number}.png": images.encoded(images.noise(400, number), "PNG") for number in range(3)}


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(flipped, "damaged"), (cut, "damaged"), (Path.unlink, "damaged"), (led_elsewhere, "unreadable")],
)
@pytest.mark.parametrize("files", [folders(), large()], ids=["small", "large"])
def test_what_turns_out_to_be_damaged_is_left_out_and_named(
    served: Served, owner: Tenant, files: dict[str, bytes], harm: Callable[[Path], None], reason: str
) -> None:
    """Nobody knew of it when the export began. What is in it is whole, and comes in again."""
    dataset = filled(served, owner, tar(files))
    whole = untar(exported(served, owner, dataset, "csv"))
    harm(next((served.parts.config.state / "images" / uuid.UUID(dataset).hex).iterdir()))
    archive = exported(served, owner, dataset, "csv")
    found = untar(archive)
    assert list(found)[-1] == "LEFT_OUT.csv"
    [(name, said)] = csv.reader(found.pop("LEFT_OUT.csv").decode().splitlines()[1:])
    assert said == reason
    assert found == {path: content for path, content in whole.items() if path != name}
    report = receive(served, owner, new_dataset(served, owner, str(uuid.uuid4())), archive).document
    assert (report["images"], report["ignored"]) == (len(files) - 1, 1)


def test_images_known_to_be_damaged_are_told_of_and_left_out_on_demand(served: Served, owner: Tenant) -> None:
    dataset = filled(served, owner, tar(folders()))
    flipped(next((served.parts.config.state / "images" / uuid.UUID(dataset).hex).iterdir()))
    found = untar(exported(served, owner, dataset, "imagefolder"))
    answer = give(served, owner, dataset, "imagefolder")
    assert answer.status == 409
    assert "1 images" in answer.document["detail"]
    assert "skip_damaged=true" in answer.document["detail"]
    assert untar(give(served, owner, dataset, "imagefolder", "&skip_damaged=true").body) == found


def test_an_image_that_is_deleted_meanwhile_is_left_out_and_named(served: Served, owner: Tenant) -> None:
    """The first of many images are on their way to a client that takes nothing when the last one goes."""
    files = {f"a/{number}.png": images.encoded(images.noise(700, number), "PNG") for number in range(8)}
    last = files.pop("a/7.png")
    dataset = filled(served, owner, tar(files))
    assert receive(served, owner, dataset, tar({"a/7.png": last})).status == 200
    slow = http.client.HTTPConnection(served.site.host, served.site.port, timeout=SECONDS)
    path = f"/appliance/v1/datasets/{dataset}/export?format=imagefolder"
    slow.request("GET", path, headers={"Authorization": f"Token {owner.token}"})
    answer = slow.getresponse()
    assert answer.status == 200
    listing = f"/recognition/v2/training-image?workspace={dataset}&page_size=100"
    doomed = served.site.call("GET", listing, headers=owner.headers()).document["results"][-1]["id"]
    gone = served.site.call("DELETE", f"/recognition/v2/training-image/{doomed}", headers=owner.headers())
    assert gone.status == 204
    found = untar(answer.read())
    slow.close()
    assert found.pop("LEFT_OUT.csv") == b"image,reason\na/7.png,deleted\n"
    assert found == files


def test_a_client_that_leaves_gives_everything_back(served: Served, owner: Tenant) -> None:
    dataset = filled(served, owner, tar({"a/x.png": images.encoded(images.noise(900), "PNG")}))
    before = open_files()
    for _ in range(3):
        with socket.create_connection((served.site.host, served.site.port), timeout=SECONDS) as leaving:
            leaving.sendall(
                f"GET /appliance/v1/datasets/{dataset}/export?format=coco HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: Token {owner.token}\r\n\r\n".encode()
            )
            assert leaving.recv(12) == b"HTTP/1.1 200"
    eventually(lambda: open_files() <= before, "no file is open any more")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("names", [("a/x.png", "a/x.png/b.png"), ("a/x.png/b.png", "a/x.png")])
@pytest.mark.parametrize("format_name", ["imagefolder", "coco", "csv"])
def test_what_two_imports_brought_and_no_folder_holds_can_be_exported(
    served: Served, owner: Tenant, names: tuple[str, str], format_name: str
) -> None:
    dataset = new_dataset(served, owner, str(uuid.uuid4()))
    for name in names:
        answer = receive(served, owner, dataset, tar({name: images.plain(name)}))
        assert (answer.status, answer.document["images"]) == (200, 1)
    first = exported(served, owner, dataset, format_name)
    assert {"a/x-2.png", "a/x.png/b.png"} <= untar(first).keys()
    again = exported(served, owner, filled(served, owner, first), format_name)
    assert again == first


A, NFC, NFD = "a" * 251, "\u00e9", "e\u0301"
HOSTILE: tuple[dict[str, str], ...] = (
    {
        f"{NFD}.jpg/x.jpg": "PNG",
        f"{A}.jpg/x.jpg": "PNG",
        f"c/{A}.bmp": "BMP",
        "/".join(["d" * 200] * 5 + ["e" * 13, "y.bmp"]): "BMP",
        "a/b.png": "PNG",
        "images/train/a_b.png": "PNG",
        "images/train/a_b-2.png/q.png": "PNG",
        "annotations.csv/x.png": "PNG",
        "instances_train.json/x.png": "PNG",
        "data.yaml/images/train/x.png": "PNG",
        f"{NFC}/b.png": "PNG",
        "same.png": "PNG",
    },
    {f"{NFC}.jpg": "JPEG", f"{A}.jpg": "JPEG", "a_b.png": "PNG", f"{NFD}_b.png": "PNG", "same.jpg": "JPEG"},
)


def test_no_name_that_an_import_took_stops_an_export(served: Served, owner: Tenant) -> None:
    dataset, seed = new_dataset(served, owner, str(uuid.uuid4())), 0
    for names in HOSTILE:
        files = {"about.csv": f"image,test\n{next(iter(names))},false\n".encode()}
        for name, kind in names.items():
            seed += 1
            files[name] = images.encoded(images.noise(16, seed), kind)
        answer = receive(served, owner, dataset, tar(files), "?format=csv")
        assert (answer.status, answer.document["images"]) == (200, len(names)), answer.body
    for format_name in ("csv", "coco", "imagefolder", "yolo"):
        first = exported(served, owner, dataset, format_name)
        assert sum(name.endswith(("png", "jpg")) for name in untar(first)) == seed
        assert exported(served, owner, filled(served, owner, first), format_name) == first


def test_a_client_that_leaves_ends_the_plan_of_its_export(
    served: Served, owner: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "appliance.access")
    dataset = filled(served, owner, tar(folders()))
    begun, go, placed = threading.Event(), threading.Event(), list[str]()

    def slow(_: Csv, annotated: Annotated) -> str:
        placed.append(annotated.name)
        begun.set()
        assert go.wait(SECONDS)
        return annotated.name

    monkeypatch.setattr(Csv, "place", slow)
    with socket.create_connection((served.site.host, served.site.port), timeout=SECONDS) as leaving:
        leaving.sendall(
            f"GET /appliance/v1/datasets/{dataset}/export?format=csv HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Token {owner.token}\r\n\r\n".encode()
        )
        assert begun.wait(SECONDS)
    try:
        eventually(lambda: " 499 " in caplog.text, "it is noticed")
    finally:
        go.set()
    exported(served, owner, dataset, "csv")
    assert len(placed) == 1 + len(folders())
