"""Datasets of other programs, as a stream into the store."""

import hashlib
import json
import socket
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.datasets import labels
from appliance.datasets.interchange import importing
from tests import images
from tests.datasets import TAR, agreed, boxes, folders, give, new_dataset, receive, tar
from tests.serving import SECONDS, Served, Site, Tenant
from tests.waiting import eventually


@pytest.fixture(scope="module")
def owner(served: Served) -> Tenant:
    return agreed(served, "a customer with datasets of its own")


def took_in(served: Served, owner: Tenant, dataset: str, archive: bytes, query: str = "") -> Any:
    answer = receive(served, owner, dataset, archive, query)
    assert answer.status == 200, answer.body
    return answer.document


def listed(served: Served, owner: Tenant, dataset: str, path: str) -> list[Any]:
    answer = served.site.call("GET", f"{path}?workspace={dataset}&page_size=100", headers=owner.headers())
    found: list[Any] = answer.document["results"]
    return found


def test_folders_become_labels_and_a_task(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, "folders")
    report = took_in(served, owner, dataset, tar(folders()), "?task=fruit")
    assert report == {
        "format": "imagefolder",
        "images": 5,
        "present": 0,
        "labels": 5,
        "objects": 0,
        "ignored": 0,
        "left_out": {},
        "refused": [],
        "refused_count": 0,
    }
    labels = listed(served, owner, dataset, "/recognition/v2/label")
    assert {(one["name"], one["type"]) for one in labels} == {("apple", "category"), ("pear", "category")}
    [task] = listed(served, owner, dataset, "/recognition/v2/task")
    assert (task["name"], task["type"], task["labels_count"]) == ("fruit", "multi_class", 2)
    stored = listed(served, owner, dataset, "/recognition/v2/training-image")
    assert sum(one["test_image"] for one in stored) == 2

    again = took_in(served, owner, dataset, tar(folders()), "?task=fruit")
    assert again == report | {"images": 0, "present": 5, "labels": 0}
    assert len(listed(served, owner, dataset, "/recognition/v2/task")) == 1
    events = [str(entry.event) for entry in served.audited(owner)]
    assert events.count("image.add") == 5
    assert events.count("dataset.import") == 4


@pytest.mark.parametrize("turned", [False, True], ids=["annotations first", "annotations last"])
def test_boxes_in_any_order_of_members(served: Served, owner: Tenant, *, turned: bool) -> None:
    dataset = new_dataset(served, owner, f"boxes {turned}")
    members = sorted(boxes().items(), reverse=turned)
    report = took_in(served, owner, dataset, tar(members), "?format=coco&task=garden")
    assert (report["images"], report["objects"], report["labels"]) == (3, 4, 0)
    labels = listed(served, owner, dataset, "/detection/v2/label")
    assert [one["name"] for one in labels] == ["worm", "leaf", "unused"]
    objects = listed(served, owner, dataset, "/detection/v2/object")
    found = sorted((one["detection_label"]["name"], one["data"]) for one in objects)
    assert found == [
        ("leaf", [10, 20, 40, 60.5]),
        ("worm", [0, 0, 640, 480]),
        ("worm", [0, 0, 640, 480]),
        ("worm", [1.25, 2, 4.25, 6]),
    ]
    assert [one["name"] for one in listed(served, owner, dataset, "/detection/v2/task")] == ["garden"]
    again = took_in(served, owner, dataset, tar(members), "?format=coco&task=garden")
    assert (again["images"], again["present"], again["objects"]) == (0, 3, 0)
    assert len(listed(served, owner, dataset, "/detection/v2/object")) == 4


def test_one_image_under_two_names_has_the_labels_of_both(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, "twins")
    same = images.plain("twins")
    report = took_in(served, owner, dataset, tar({"red/a.png": same, "round/b.png": same}))
    assert (report["images"], report["present"], report["labels"]) == (1, 1, 2)
    [image] = listed(served, owner, dataset, "/recognition/v2/training-image")
    document = ask(served, owner, "GET", f"/recognition/v2/training-image/{image['id']}")
    assert {(one["name"], one["type"]) for one in document["labels"]} == {("red", "tag"), ("round", "tag")}


def ask(served: Served, owner: Tenant, method: str, path: str, document: object = None) -> Any:
    body = None if document is None else json.dumps(document).encode()
    answer = served.site.call(method, path, body, owner.headers())
    assert answer.status < 300, answer.body
    return answer.document if answer.body else None


def test_a_bad_image_is_named_and_stops_nothing(
    served: Served, owner: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "MOST_IMAGE", 1 << 20)
    dataset = new_dataset(served, owner, "bad ones")
    files = {
        "a/broken.jpg": b"not an image",
        "a/cut.jpg": images.truncated(),
        "a/fine.png": images.plain("fine"),
        "a/large.png": b"x" * ((1 << 20) + 1),
        "a/nothing.png": b"",
    }
    report = took_in(served, owner, dataset, tar(files))
    assert (report["images"], report["labels"], report["refused_count"]) == (1, 1, 4)
    refused = {one["name"]: one["reason"] for one in report["refused"]}
    assert refused.keys() == files.keys() - {"a/fine.png"}
    assert "not an image" in refused["a/broken.jpg"]
    assert "at most 1 MiB" in refused["a/large.png"]
    assert "holds no image of this name" in refused["a/nothing.png"]


def test_a_name_is_one_image(served: Served, owner: Tenant) -> None:
    """What is composed otherwise is the same name; what was uploaded without one gets one."""
    dataset = new_dataset(served, owner, "names")
    uploaded = images.plain("uploaded")
    path = f"/recognition/v2/training-image?workspace={dataset}"
    assert served.site.call("POST", path, uploaded, owner.headers(content_type="image/png")).status == 201
    first = tar({"a/k\u016f\u0148.png": images.plain("first"), "a/up.png": uploaded})
    assert took_in(served, owner, dataset, first)["present"] == 1
    report = took_in(served, owner, dataset, tar({"a/ku\u030an\u030c.png": images.plain("second")}))
    assert (report["images"], report["refused_count"]) == (0, 1)
    assert "another image of the dataset has this name" in report["refused"][0]["reason"]
    report = took_in(served, owner, dataset, tar({"a/up.png": images.plain("third")}))
    assert report["refused_count"] == 1


def test_what_is_neither_image_nor_annotation_is_counted(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, "litter")
    litter = ("README.md", ".DS_Store", "a/Thumbs.db", "__MACOSX/a/._x.png", "a/._x.png", "LICENSE")
    files = dict.fromkeys(litter, b"x") | {"a/x.png": images.plain("amid litter")}
    report = took_in(served, owner, dataset, tar(files))
    assert (report["images"], report["ignored"], report["refused_count"]) == (1, 6, 0)


def test_annotations_that_cannot_be_read_are_put_right_and_sent_again(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, "put right")
    files = boxes()
    [annotations] = [name for name in files if name.endswith("json")]
    broken = files | {annotations: files[annotations].replace(b"[10, 20, 30, 40.5]", b"[10, 20, 3000, 40]")}
    answer = receive(served, owner, dataset, tar(broken))
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
    assert annotations in answer.document["detail"]
    assert len(listed(served, owner, dataset, "/recognition/v2/training-image")) == 3
    assert listed(served, owner, dataset, "/detection/v2/object") == []
    report = took_in(served, owner, dataset, tar(files))
    assert (report["images"], report["present"], report["objects"]) == (0, 3, 4)


def test_what_is_held_is_not_sent_again(served: Served, owner: Tenant) -> None:
    """As the command line goes on: an empty file for each image whose digest is held."""
    dataset = new_dataset(served, owner, "go on")
    files = folders()
    some = dict(list(files.items())[:2])
    assert took_in(served, owner, dataset, tar(some))["images"] == 2
    answer = served.site.call("GET", f"/appliance/v1/datasets/{dataset}/held", headers=owner.headers())
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain")
    expected = {
        hashlib.sha256(f"{len(content)} {name}".encode()).hexdigest() for name, content in some.items()
    }
    assert set(answer.body.decode().split()) == expected
    report = took_in(served, owner, dataset, tar(files | dict.fromkeys(some, b"")))
    assert (report["images"], report["present"], report["labels"], report["refused"]) == (3, 2, 3, [])


def test_annotations_alone_speak_of_what_is_held(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, "later")
    assert took_in(served, owner, dataset, tar({"x.png": images.plain("later")}))["images"] == 1
    report = took_in(served, owner, dataset, tar({"labels.csv": b"image,label\nx.png,late\n"}))
    assert (report["format"], report["labels"], report["images"]) == ("csv", 1, 0)


def test_an_empty_archive_does_nothing(served: Served, owner: Tenant) -> None:
    report = took_in(served, owner, new_dataset(served, owner, "empty"), tar({}))
    assert (report["format"], report["images"], report["ignored"]) == (None, 0, 0)


def test_values_and_metadata_come_along(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, "values")
    rows = b'image,label,value,test,meta_data\nx.png,weight,1.5,true,"{""shelf"": 7}"\n'
    took_in(served, owner, dataset, tar({"x.png": images.plain("heavy"), "rows.csv": rows}))
    [image] = listed(served, owner, dataset, "/recognition/v2/training-image")
    document = ask(served, owner, "GET", f"/recognition/v2/training-image/{image['id']}")
    assert (document["meta_data"], document["test_image"]) == ({"shelf": 7}, True)
    assert [(one["name"], one["value"]) for one in document["labels"]] == [("weight", 1.5)]
    more = b'image,meta_data\nx.png,"{""room"": 2}"\n'
    took_in(served, owner, dataset, tar({"rows.csv": more}))
    document = ask(served, owner, "GET", f"/recognition/v2/training-image/{image['id']}")
    assert document["meta_data"] == {"shelf": 7, "room": 2}


REFUSED = {
    "text": (b"hello " * 1000, "", 400, "no tar archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(2000), "", 400, "send the tar plain"),
    "nothing": (b"", "", 400, "empty"),
    "traversal": (tar({"../x.png": b"x"}), "", 400, "leads out"),
    "absolute": (tar({"/x.png": b"x"}), "", 400, "absolute"),
    "cut": (tar(folders())[:5000], "", 400, "breaks off"),
    "another format": (tar({}), "?format=voc", 400, "imagefolder, coco, yolo, csv"),
    "a task without a name": (tar({}), "?task=", 400, "name"),
}


@pytest.mark.parametrize(("archive", "query", "status", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_as_a_whole(  # noqa: PLR0917
    served: Served, owner: Tenant, archive: bytes, query: str, status: int, why: str
) -> None:
    answer = receive(served, owner, owner.id, archive, query)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert why in answer.document["detail"]


def test_too_many_bytes_of_annotations(
    served: Served, owner: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "MOST_ANNOTATIONS", 1 << 20)
    for files in (
        {f"{name}.json": b" " * 600_000 for name in "ab"},
        {f"{'x' * 240}/{'y' * 240}/{'z' * 230}{number}.json": b"" for number in range(1500)},
    ):
        answer = receive(served, owner, owner.id, tar(files))
        assert answer.status == 413
        assert "1 MiB together" in answer.document["detail"]


def test_labels_that_do_not_fit_are_refused_before_one_is_made(
    served: Served, owner: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = new_dataset(served, owner, "narrow")
    took_in(served, owner, dataset, tar({"first/a.png": images.plain("first")}))
    monkeypatch.setattr(labels, "MAX_LABELS", 3)
    more = {f"{name}/{name}.png": images.plain(name) for name in ("second", "third", "fourth")}
    answer = receive(served, owner, dataset, tar(more))
    assert (answer.status, answer.document["detail"]) == (412, "a dataset has at most 3 labels")
    assert [one["name"] for one in listed(served, owner, dataset, "/recognition/v2/label")] == ["first"]
    del more["fourth/fourth.png"]
    assert took_in(served, owner, dataset, tar(more))["labels"] == 2


def test_without_an_agreement_nothing_is_read(served: Served) -> None:
    stranger = served.tenant("a customer who agreed to nothing")
    answer = receive(served, stranger, stranger.id, b"hello " * 1000)
    assert answer.status == 403
    assert "agreement" in answer.document["detail"]


def test_a_tar_is_called_one(served: Served, owner: Tenant) -> None:
    path = f"/appliance/v1/datasets/{owner.id}/import"
    for content_type in ("application/json", "application/gzip", "multipart/form-data"):
        answer = served.site.call("POST", path, tar({}), owner.headers(content_type=content_type))
        assert answer.status == 415
        assert "application/x-tar" in answer.document["detail"]


@contextmanager
def sending(
    site: Site, owner: Tenant, dataset: str, head: str = "Transfer-Encoding: chunked"
) -> Iterator[socket.socket]:
    """A connection on which an import has begun; chunks are up to the test."""
    with socket.create_connection((site.host, site.port), timeout=SECONDS) as connection:
        connection.sendall(
            f"POST /appliance/v1/datasets/{dataset}/import HTTP/1.1\r\nHost: x\r\n{head}\r\n"
            f"Authorization: Token {owner.token}\r\nContent-Type: application/x-tar\r\n\r\n".encode()
        )
        yield connection


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(65536).split(b" ", 2)[1])


def header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf()


def test_an_image_of_ten_gigabytes_is_refused_before_it_comes(served: Served, owner: Tenant) -> None:
    with sending(served.site, owner, owner.id) as connection:
        connection.sendall(chunk(header("a/x.png", 10 << 30)))
        assert status_of(connection) == 413


def test_one_import_of_a_customer_at_a_time(served: Served, owner: Tenant) -> None:
    with sending(served.site, owner, owner.id) as connection:
        connection.sendall(chunk(tar(folders())[:3000]))
        eventually(lambda: receive(served, owner, owner.id, tar({})).status == 429, "the first is under way")
    eventually(lambda: receive(served, owner, owner.id, tar({})).status == 200, "the first has ended")


def test_a_sender_who_stops_is_given_up(served: Served, owner: Tenant) -> None:
    with (
        served.another(body_seconds=0.3, body_bytes_per_second=1) as (site, server),
        sending(site, owner, owner.id) as connection,
    ):
        connection.sendall(chunk(tar(folders())[:3000]))
        assert status_of(connection) == 408
        assert server.held_bytes == 0


@pytest.mark.parametrize("part", [0.3, 0.7, 0.99])
def test_broken_off_in_the_middle_and_sent_again_is_as_sent_once(
    served: Served, owner: Tenant, part: float
) -> None:
    files = {f"{label}/{n}.png": images.plain(f"{label} {n}") for label in "ab" for n in range(6)}
    archive, exports = tar(files), []
    for broken in (True, False):
        dataset = new_dataset(served, owner, f"{part} {broken}")
        if broken:
            with served.another() as (site, _), sending(site, owner, dataset) as connection:
                connection.sendall(chunk(archive[: int(len(archive) * part)]))
            # Left once every call has ended.
            events = [entry.event for entry in served.audited(owner) if entry.subject == dataset]
            assert "dataset.import" not in events
        took_in(served, owner, dataset, archive)
        exports.append(give(served, owner, dataset, "coco").body)
    assert exports[0] == exports[1]


def test_an_operator_imports_and_sees_nothing(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, "by the operator, Sorrento")
    path = f"/appliance/v1/datasets/{dataset}"
    answer = served.site.operate("POST", f"{path}/import", body=tar(folders()), content_type=TAR)
    assert (answer.status, answer.document["images"]) == (200, 5)
    [entry] = [e for e in served.audited(owner) if e.subject == dataset and "refused" in e.details]
    assert (entry.event, entry.actor.kind) == ("dataset.import", "operator")
    answer = served.site.operate("GET", f"{path}/export?format=coco")
    assert (answer.status, "no live grant" in answer.document["detail"]) == (403, True)
    listing = served.site.operate("GET", f"/appliance/v1/datasets?customer={owner.id}")
    [row] = [one for one in listing.document["datasets"] if one["id"] == dataset]
    assert (row["images"], row["name"], row["customer"]) == (5, None, owner.id)
    assert b"Sorrento" not in listing.body
    assert len(served.site.operate("GET", f"{path}/held").body.split()) == 5
    for method, rest in (("POST", "/import"), ("GET", "/held"), ("GET", "/export?format=coco")):
        nobody = f"/appliance/v1/datasets/{uuid.uuid4()}{rest}"
        answer = served.site.operate(method, nobody, body=tar({}), content_type=TAR)
        assert answer.status == 404
