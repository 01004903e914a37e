"""Datasets as other programs leave them, as tars, and how they go in and out."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping

from appliance.accounts.agreements import Kind
from tests import images
from tests.serving import ACTOR, Reply, Served, Tenant

TAR = "application/x-tar"
Files = Mapping[str, bytes]


def tar(files: Files | Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    written = io.BytesIO()
    members = files.items() if isinstance(files, Mapping) else files
    with tarfile.open(fileobj=written, mode="w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def untar(archive: bytes) -> dict[str, bytes]:
    """The files of a tar, which is read to its end."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
        found = {}
        for member in opened:
            content = opened.extractfile(member)
            assert content is not None, member.name
            found[member.name] = content.read()
        return found


def agreed(served: Served, name: str) -> Tenant:
    """A new customer that has agreed that images are stored."""
    tenant = served.tenant(name)
    served.run(served.parts.agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))
    return tenant


def new_dataset(served: Served, tenant: Tenant, name: str, **settings: object) -> str:
    body = json.dumps({"name": name, **settings}).encode()
    answer = served.site.call("POST", "/appliance/v1/datasets", body, tenant.headers())
    assert answer.status == 201, answer.body
    return str(answer.document["id"])


def receive(served: Served, tenant: Tenant, dataset: str, archive: bytes, query: str = "") -> Reply:
    path = f"/appliance/v1/datasets/{dataset}/import{query}"
    return served.site.call("POST", path, archive, tenant.headers(content_type=TAR))


def give(served: Served, tenant: Tenant, dataset: str, format_name: str, more: str = "") -> Reply:
    path = f"/appliance/v1/datasets/{dataset}/export?format={format_name}{more}"
    return served.site.call("GET", path, headers=tenant.headers())


def folders() -> dict[str, bytes]:
    """Five images in folders by their classes, some in a test part."""
    return {
        "train/apple/1.png": images.plain("red"),
        "train/apple/2.jpg": images.jpeg(seed=2),
        "train/pear/Žluť 3.png": images.plain("green"),
        "test/pear/4.png": images.plain("lime"),
        "test/apple/" + "5" * 120 + ".png": images.plain("maroon"),
    }


def boxes() -> dict[str, bytes]:
    """Three images and what is on them, in COCO."""
    found = {f"images/{name}.png": images.plain(name) for name in ("one", "two", "three")}
    document = {
        "images": [
            {"id": number, "file_name": f"{name}.png", "width": 640, "height": 480}
            for number, name in enumerate(("one", "two", "three"), 1)
        ],
        "categories": [{"id": 7, "name": "worm"}, {"id": 3, "name": "leaf"}, {"id": 9, "name": "unused"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40.5]},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 640, 480]},
            {"id": 3, "image_id": 1, "category_id": 7, "bbox": [0, 0, 640, 480]},
            {"id": 4, "image_id": 2, "category_id": 7, "bbox": [1.25, 2, 3, 4]},
        ],
    }
    return {"annotations/instances_train.json": json.dumps(document).encode(), **found}
