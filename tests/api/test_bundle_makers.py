"""Bundles over the operator's socket: tried before they are listed, and for some customers alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import bundles, images
from tests.serving import Reply, Served, Tenant

RED = images.encoded(Image.new("RGB", (40, 40), "red"), "PNG")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of this file alone: its bundles are nobody else's."""
    with Served(tmp_path_factory.mktemp("makers")) as served:
        yield served


def upload(served: Served, folder: Path, query: str = "") -> Reply:
    body = b""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        body += f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + path.read_bytes()
        body += b"\r\n"
    kind = "multipart/form-data; boundary=b"
    return served.site.operate(
        "POST", f"/appliance/v1/bundles{query}", body=body + b"--b--\r\n", content_type=kind
    )


def listed(served: Served) -> list[str]:
    answer = served.site.operate("GET", "/appliance/v1/bundles").document["bundles"]
    return [f"{one['name']} {one['version']}" for one in answer]


def tag(served: Served, tenant: Tenant, path: str = "/tagging/fashion/v2/tags") -> Reply:
    return served.site.call("POST", path, RED, tenant.headers(content_type="image/png"))


def test_a_bundle_sees_its_own_image_before_it_is_listed(served: Served, tmp_path: Path) -> None:
    before = listed(served)
    refused = upload(served, bundles.self_tested(tmp_path / "wrong", [10.0, 3.0]))
    assert refused.status == 400
    assert "self-test: value 1 of logits is -10 and not 3" in refused.document["detail"]
    assert listed(served) == before
    for number, expected in enumerate(([float("nan")], [1e30], [0.0] * 3)):
        wrong = bundles.self_tested(tmp_path / f"wrong{number}", expected)
        assert upload(served, wrong).status == 400
    assert listed(served) == before
    made = upload(served, bundles.self_tested(tmp_path / "right", [10.0, -10.0]))
    assert made.status == 201, made.body
    tenant = served.tenant("who uses what was tested")
    (record,) = tag(served, tenant, "/tagging/tested/v2/tags").document["records"]
    assert [one["name"] for one in record["_tags"]] == ["red"]


def test_a_model_that_gives_other_shapes_is_not_listed(served: Served, tmp_path: Path) -> None:
    before = listed(served)
    made = bundles.tagger(tmp_path / "tagger")
    text = (made / "bundle.toml").read_text()
    (made / "bundle.toml").write_text(
        text.replace('kind = "tagger"', 'kind = "tagger"', 1).replace(
            "[outputs]\n", "[outputs]\nmore = [7]\n"
        )
    )
    refused = upload(served, made)
    assert refused.status == 400
    assert "output more is" in refused.document["detail"]
    assert listed(served) == before


def test_a_bundle_for_one_customer_does_not_exist_for_others(served: Served, tmp_path: Path) -> None:
    owner, stranger = served.tenant("owner of a tagger"), served.tenant("stranger to a tagger")
    query = f"?customer={owner.id}"
    made = upload(served, bundles.tagger(tmp_path / "tagger"), query)
    assert made.status == 201, made.body
    assert made.document["customers"] == [owner.id]
    task = made.document["task"]

    def ask(tenant: Tenant, path: str, document: object) -> Reply:
        return served.site.call("POST", path, json.dumps(document).encode(), tenant.headers())

    answers: dict[str, list[Any]] = {"owner": [], "stranger": []}
    for name, tenant in (("owner", owner), ("stranger", stranger)):
        answers[name] = [
            tag(served, tenant).status,
            tag(served, tenant, f"/recognition/v2/classify?task_id={task}").status,
            ask(tenant, "/authorization/v2/authorize", {"service": "fashion-tagging"}).status,
            served.site.call("GET", "/v2/models/fashion", headers=tenant.headers()).status,
            ask(tenant, "/account/v2/request", {"type": "fashion-tagging", "records": [{}]}).status,
        ]
    assert answers == {"owner": [200, 200, 200, 200, 201], "stranger": [404] * 5}
    index = ask(stranger, "/v2/repository/index", {})
    assert "fashion" not in index.body.decode()
    assert upload(served, bundles.tagger(tmp_path / "again")).document["customers"] == [owner.id]
    served.run(served.parts.bundles.__aexit__(None, None, None))
    served.run(served.parts.bundles.__aenter__())
    assert tag(served, stranger).status == 404, "after a restart too"
    assert tag(served, owner).status == 200


@pytest.mark.parametrize("query", ["?customer=7f8ad1a0-0000-4000-8000-000000000000", "?customer="])
def test_nobody_is_no_customer(served: Served, tmp_path: Path, query: str) -> None:
    assert upload(served, bundles.detector(tmp_path / "things"), query).status == 404
