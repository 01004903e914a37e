"""Activation and removal over the operator socket, while clients ask."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from appliance.recognition.bundles import Bundle
from tests import bundles, images
from tests.serving import Reply, Served, Tenant, colour_bundle

BUNDLES = "/appliance/v1/bundles"
FASHION = "/tagging/fashion/v2/tags"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "state").mkdir()
    with Served(tmp_path / "state") as served:
        served.install(bundles.tagger(tmp_path / "one"))
        second = bundles.tagger(tmp_path / "two")
        manifest = second / "bundle.toml"
        text = manifest.read_text().replace('version = "1"\nkind', 'version = "2.0"\nkind')
        manifest.write_text(text.replace("threshold = 0.4", "threshold = 1.0"))
        served.install(second)
        yield served


@pytest.fixture
def tenant(served: Served) -> Tenant:
    return served.tenant("versions")


def tags(served: Served, tenant: Tenant) -> Reply:
    picture = base64.b64encode(images.encoded(Image.new("RGB", (40, 40), "#d00000"), "PNG")).decode()
    body = json.dumps({"records": [{"_base64": picture}]}).encode()
    return served.site.call("POST", FASHION, body, tenant.headers())


def seen(answer: Reply) -> list[str]:
    assert answer.status == 200, answer.body
    (record,) = answer.document["records"]
    return [tag["name"] for tag in record["_tags"]]


def versions(served: Served) -> dict[str, bool]:
    listed: list[dict[str, Any]] = served.site.operate("GET", BUNDLES).document["bundles"]
    return {one["version"]: one["active"] for one in listed if one["name"] == "fashion"}


def test_an_activated_version_answers_and_the_old_one_can_go(served: Served, tenant: Tenant) -> None:
    assert seen(tags(served, tenant)) == ["red"]
    assert versions(served) == {"1": True, "2.0": False}
    assert served.site.operate("DELETE", f"{BUNDLES}/fashion/1").status == 409
    answer = served.site.operate("POST", f"{BUNDLES}/fashion/2.0/activate")
    assert answer.status == 200
    assert answer.document["active"] is True
    assert seen(tags(served, tenant)) == [], "nothing is certain enough for the second version"
    assert served.site.operate("DELETE", f"{BUNDLES}/fashion/1").status == 204
    assert versions(served) == {"2.0": True}
    assert served.site.operate("DELETE", f"{BUNDLES}/fashion/2.0").status == 204
    answer = tags(served, tenant)
    assert answer.status == answer.code == 404


def test_a_removed_model_is_forgotten_before_its_files_go(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that made room is loaded again for those who asked in time: its file must be there."""
    engine = served.parts.engine
    assert engine is not None
    unload, there = engine.unload, list[bool]()

    async def watched(bundle: Bundle) -> None:
        await unload(bundle)
        there.append(bundle.model.exists())

    monkeypatch.setattr(engine, "unload", watched)
    model = next(one.model for one in served.parts.bundles.list() if one.version == "2.0")
    assert served.site.operate("DELETE", f"{BUNDLES}/fashion/2.0").status == 204
    assert there == [True]
    assert not model.exists()


def test_what_is_under_way_is_answered_before_its_model_is_forgotten(served: Served, tenant: Tenant) -> None:
    answers: list[Reply] = []
    asking = [
        threading.Thread(target=lambda: answers.extend(tags(served, tenant) for _ in range(15)))
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    served.site.operate("POST", f"{BUNDLES}/fashion/2.0/activate")
    assert served.site.operate("DELETE", f"{BUNDLES}/fashion/1").status == 204
    for thread in asking:
        thread.join()
    assert {answer.status for answer in answers} <= {200, 404}
    assert sum(answer.status == 200 for answer in answers) >= 56, "at most one call a client meets the change"
    assert served.parts.engine is not None
    assert [device.restarts for device in served.parts.engine.devices()] == [0]


def test_a_backbone_that_search_needs_stays(served: Served, tenant: Tenant, tmp_path: Path) -> None:
    body = json.dumps({"records": [{"_id": "x", "_base64": _photo()}]}).encode()
    path = "/similarity/photos/v2/insert"
    assert served.site.call("POST", path, body, tenant.headers()).code == 210
    second = colour_bundle(tmp_path / "colours")
    manifest = second / "bundle.toml"
    manifest.write_text(manifest.read_text().replace('version = "1"\nkind', 'version = "2"\nkind'))
    served.install(second)
    assert served.site.operate("POST", f"{BUNDLES}/colours/2/activate").status == 200
    refused = served.site.operate("DELETE", f"{BUNDLES}/colours/1")
    assert refused.status == 409
    assert "colours@1" in refused.document["detail"]
    query = json.dumps({"query_record": {"_base64": _photo()}, "k": 1}).encode()
    found = served.site.call("POST", "/similarity/photos/v2/visualKNN", query, tenant.headers())
    assert found.document["answer_records"][0]["_id"] == "x", "its own backbone still sees for it"


def _photo() -> str:
    return base64.b64encode(images.encoded(Image.new("RGB", (40, 40), "red"), "PNG")).decode()


def test_a_bundle_may_be_installed_asleep(served: Served, tmp_path: Path) -> None:
    source = bundles.tagger(tmp_path / "asleep", route="tagging/home/v2/tags")
    manifest = source / "bundle.toml"
    manifest.write_text(manifest.read_text().replace('name = "fashion"', 'name = "home"'))
    asleep = served.install(source, activate=False)
    assert not asleep.active
    assert served.site.operate("POST", f"{BUNDLES}/home/1/activate").document["active"] is True


@pytest.mark.parametrize(
    ("path", "status"),
    [("fashion/3", 404), ("nothing/1", 404), ("../1", 404), ("fashion/..", 404), ("%2e%2e/1", 400)],
)
def test_unknown_versions(served: Served, path: str, status: int) -> None:
    assert served.site.operate("POST", f"{BUNDLES}/{path}/activate").status == status
    assert served.site.operate("DELETE", f"{BUNDLES}/{path}").status == status


def test_verification_reads_every_file_again(served: Served) -> None:
    listed = served.site.operate("GET", f"{BUNDLES}/verification").document["bundles"]
    assert [one["fault"] for one in listed] == [None] * 3
    shutil.rmtree(served.bundle.folder / "licences")
    listed = served.site.operate("GET", f"{BUNDLES}/verification").document["bundles"]
    assert [one["name"] for one in listed if one["fault"]] == ["colours"]
