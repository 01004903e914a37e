"""Taggers and detectors over HTTP, installed beside the backbone as an operator installs them."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests import bundles, images
from tests.serving import Served, Tenant

FASHION = "/tagging/fashion/v2/tags"
CLASSIFY = "/recognition/v2/classify"
DETECT = "/detection/v2/detect"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own: the others must not see what is installed here."""
    folder = tmp_path_factory.mktemp("kinds")
    with Served(folder) as served:
        served.install(bundles.tagger(folder / "tagger"))
        served.install(bundles.detector(folder / "detector"))
        yield served


@pytest.fixture(scope="module")
def tenant(served: Served) -> Tenant:
    return served.tenant("kinds")


def task(served: Served, name: str) -> str:
    return next(bundle.task for bundle in served.parts.bundles.list() if bundle.name == name)


def record(colour: str, size: tuple[int, int] = (40, 40), **fields: object) -> dict[str, object]:
    picture = images.encoded(Image.new("RGB", size, colour), "PNG")
    return {"_base64": base64.b64encode(picture).decode(), **fields}


def post(served: Served, tenant: Tenant, path: str, **document: object) -> Any:
    return served.site.call("POST", path, json.dumps(document).encode(), tenant.headers())


def test_a_tagger_answers_on_its_route_with_every_tag_that_is_true(served: Served, tenant: Tenant) -> None:
    colours = ["red", "#00ff00", "yellow", "black"]
    answer = post(served, tenant, FASHION, records=[record(colour) for colour in colours])
    assert answer.status == 200, answer.body
    names = [{tag["name"] for tag in seen["_tags"]} for seen in answer.document["records"]]
    assert names == [{"red"}, {"green"}, {"red", "green"}, set()]
    best = answer.document["records"][0]["_tags"][0]
    assert set(best) == {"id", "name", "prob"}
    assert best["prob"] > 0.99


def test_a_tagger_also_answers_by_its_task(served: Served, tenant: Tenant) -> None:
    named = {"task_id": task(served, "fashion")}
    answer = post(served, tenant, CLASSIFY, records=[record("yellow"), record("black")], **named)
    lit, dark = answer.document["records"]
    assert [label["name"] for label in lit["labels"]] == ["red", "green"]
    assert lit["best_label"] == lit["labels"][0]
    assert (dark["best_label"], dark["labels"]) == (None, [])


@pytest.mark.parametrize("field", ["home", "fashion2", "x" * 64])
def test_a_field_that_no_bundle_serves(served: Served, tenant: Tenant, field: str) -> None:
    answer = post(served, tenant, f"/tagging/{field}/v2/tags", records=[record("red")])
    assert answer.status == answer.code == 404
    assert answer.document["detail"] == "service not installed"


def test_objects_lie_in_the_pixels_of_the_image_that_was_sent(served: Served, tenant: Tenant) -> None:
    """128 x 64 on an input of 64 x 64: half the size, 16 rows of grey above and below."""
    sent = record("red", (128, 64), _id="mine")
    answer = post(served, tenant, DETECT, records=[sent], task_id=task(served, "things"))
    assert answer.status == 200, answer.body
    (seen,) = answer.document["records"]
    assert (seen["_id"], seen["_width"], seen["_height"]) == ("mine", 128, 64)
    best, *others = seen["_objects"]
    assert best["name"] == "cup"
    assert best["bound_box"] == [16, 0, 80, 48]
    assert best["area"] == pytest.approx(64 * 48 / (128 * 64))
    assert set(best) == {"name", "id", "bound_box", "prob", "area"}
    assert [one["name"] for one in others] == ["plate", "cup"], (
        "the overlapping cup is dropped, the plate stays"
    )
    assert [one["prob"] for one in seen["_objects"]] == sorted(
        (one["prob"] for one in seen["_objects"]), reverse=True
    )


@pytest.mark.parametrize(("keep", "count"), [(None, 3), (0.6, 2), (0.999, 0), (0, 3), (1, 0)])
def test_keep_prob(served: Served, tenant: Tenant, keep: float | None, count: int) -> None:
    wanted = {"task_id": task(served, "things"), "keep_prob": keep}
    answer = post(served, tenant, DETECT, records=[record("#f80000")], **wanted)
    assert len(answer.document["records"][0]["_objects"]) == count


@pytest.mark.parametrize("keep", ["0.5", -0.1, 1.1, True, []])
def test_what_is_no_probability(served: Served, tenant: Tenant, keep: object) -> None:
    wanted = {"task_id": task(served, "things"), "keep_prob": keep}
    answer = post(served, tenant, DETECT, records=[record("red")], **wanted)
    assert answer.status == answer.code == 400
    assert "keep_prob" in answer.document["detail"]


def test_a_task_does_what_it_is_for(served: Served, tenant: Tenant) -> None:
    things, fashion = task(served, "things"), task(served, "fashion")
    assert post(served, tenant, CLASSIFY, records=[record("red")], task_id=things).status == 404
    assert post(served, tenant, DETECT, records=[record("red")], task_id=fashion).status == 404
    stored = post(served, tenant, DETECT, records=[record("red")], task_id=things, store_images=True)
    assert stored.status == 403
    assert "training-data agreement" in stored.document["detail"]


@pytest.mark.parametrize(
    ("service", "status"),
    [
        ("fashion-tagging", 200),
        ("custom-object-detection", 200),
        ("home-tagging", 404),
        ("generic-tagging", 200),
    ],
)
def test_authorize_knows_what_is_installed(served: Served, tenant: Tenant, service: str, status: int) -> None:
    answer = post(served, tenant, "/authorization/v2/authorize", service=service, call_type="authenticate")
    assert answer.status == status
