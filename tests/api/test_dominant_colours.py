"""Dominant colours over HTTP."""

import base64
import json
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from appliance.accounts.rights import Scope
from appliance.recognition.colours import Colour, dominant
from tests import images
from tests.serving import Reply, Served, Tenant

GENERIC, PRODUCT = "/dom_colors/generic/v2/dominantcolor", "/dom_colors/product/v2/dominantcolor"
BOTH = pytest.mark.parametrize("path", [GENERIC, PRODUCT])


def picture(background: str = "white", product: str = "#c8141e", kind: str = "PNG") -> bytes:
    """A product that covers 12 % of the picture."""
    image = Image.new("RGB", (600, 450), background)
    image.paste(product, (210, 135, 390, 315))
    return images.encoded(image, kind)


def record(encoded: bytes | None = None, **fields: object) -> dict[str, object]:
    return {"_base64": base64.b64encode(encoded or picture()).decode(), **fields}


def post(served: Served, tenant: Tenant, path: str, document: object, **headers: str) -> Reply:
    return served.site.call("POST", path, json.dumps(document).encode(), tenant.headers(**headers))


def colours(served: Served, tenant: Tenant, path: str, *records: object) -> Any:
    answer = post(served, tenant, path, {"records": records})
    assert answer.status == 200, answer.body
    return answer.document


def test_the_answer_has_the_clouds_shape(served: Served, tenant: Tenant) -> None:
    document = colours(served, tenant, GENERIC, record(_id="mine", own={"id": 7}, _file="/home/anna/cat.png"))
    (seen,) = document["records"]
    assert seen["_status"] == document["status"]
    assert (document["status"]["code"], document["status"]["text"]) == (200, "OK")
    assert (seen["_id"], seen["own"], seen["_width"], seen["_height"]) == ("mine", {"id": 7}, 600, 450)
    assert "_base64" not in seen
    assert "_file" not in seen
    assert document["statistics"]["processing time"] > 0
    told = seen["_dominant_colors"]
    assert list(told) == [
        "rgb_colors",
        "rgb_hex_colors",
        "percentages",
        "color_names",
        "color_names_pantone",
    ]
    white, red = told["rgb_colors"]
    assert white == [255, 255, 255]
    assert red == pytest.approx([200, 20, 30], abs=2)  # its edge overshoots when the image is made smaller
    assert told["rgb_hex_colors"] == ["#ffffff", "#{:02x}{:02x}{:02x}".format(*red)]
    assert told["color_names"] == ["white", "firebrick"]
    assert told["color_names_pantone"] == []
    assert told["percentages"] == pytest.approx([0.88, 0.12], abs=0.01)
    assert sum(told["percentages"]) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("background", "product"), [("white", "firebrick"), ("#e8e8e8", "navy"), ("black", "gold")]
)
def test_a_product_is_seen_without_its_background(
    served: Served, tenant: Tenant, background: str, product: str, kind: str
) -> None:
    encoded = picture(background, product, kind=kind)
    (seen,) = colours(served, tenant, PRODUCT, record(encoded))["records"]
    assert seen["_dominant_colors"]["color_names"] == [product]
    assert seen["_dominant_colors"]["percentages"] == [1]
    assert (seen["_width"], seen["_height"]) == (600, 450)
    (seen,) = colours(served, tenant, GENERIC, record(encoded))["records"]
    assert len(seen["_dominant_colors"]["color_names"]) == 2


@BOTH
def test_ten_records_come_back_in_their_order(served: Served, tenant: Tenant, path: str) -> None:
    names = ["red", "lime", "blue", "navy", "gold", "teal", "white", "black", "gray", "rebeccapurple"]
    plain = [images.encoded(Image.new("RGB", (40, 30), name), "PNG") for name in names]
    document = colours(served, tenant, path, *(record(encoded, n=n) for n, encoded in enumerate(plain)))
    assert [seen["n"] for seen in document["records"]] == list(range(10))
    assert [seen["_dominant_colors"]["color_names"] for seen in document["records"]] == [
        [name] for name in names
    ]
    assert [seen["_dominant_colors"]["percentages"] for seen in document["records"]] == [[1]] * 10


@BOTH
def test_one_bad_record_says_why_and_the_others_are_served(served: Served, tenant: Tenant, path: str) -> None:
    bad = [
        {"_base64": base64.b64encode(b"no image").decode()},
        {"_base64": "!!!"},
        {"_url": "http://169.254.169.254/x.jpg"},
        {"_id": "no image at all"},
        record(images.truncated()),
    ]
    document = colours(served, tenant, path, *bad, record())
    *refused, good = document["records"]
    assert document["status"]["code"] == 200
    assert good["_status"]["code"] == 200
    assert good["_dominant_colors"]["rgb_colors"]
    assert [seen["_status"]["code"] for seen in refused] == [400] * 5
    assert all("_dominant_colors" not in seen and "_width" not in seen for seen in refused)
    assert all(seen["_id"] for seen in document["records"])


@BOTH
@pytest.mark.parametrize("records", [None, [], [{}] * 11])
def test_calls_that_are_refused_whole(served: Served, tenant: Tenant, path: str, records: object) -> None:
    answer = post(served, tenant, path, {"records": records})
    assert answer.status == answer.code == 400
    assert "records" in answer.document["status"]["text"]


@BOTH
def test_a_raw_body_under_the_prefix(served: Served, tenant: Tenant, path: str) -> None:
    headers = tenant.headers(content_type="image/png", x_record=json.dumps({"_id": "raw"}))
    answer = served.site.call("POST", f"/localhost{path}/", picture(), headers)
    (seen,) = answer.document["records"]
    assert seen["_id"] == "raw"
    assert "firebrick" in seen["_dominant_colors"]["color_names"]


@BOTH
def test_the_same_image_has_the_same_answer(served: Served, tenant: Tenant, path: str) -> None:
    photo = record(images.jpeg(300), _id="same")
    first, second = (colours(served, tenant, path, photo)["records"][0] for _ in range(2))
    assert first["_dominant_colors"] == second["_dominant_colors"]


@BOTH
def test_colours_need_their_scope(served: Served, tenant: Tenant, path: str) -> None:
    token = served.token(tenant, Scope.SEARCH_READ)
    answer = post(served, tenant, path, {"records": [record()]}, authorization=f"Token {token}")
    assert answer.status == answer.code == 403
    assert "infer" in answer.document["detail"]


@BOTH
def test_colours_are_not_computed_on_the_event_loop(
    served: Served, tenant: Tenant, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def watched(pixels: npt.NDArray[np.uint8], *, product: bool) -> list[Colour]:
        threads.append(threading.current_thread())
        return dominant(pixels, product=product)

    monkeypatch.setattr("appliance.api.colours.dominant", watched)
    colours(served, tenant, path, record(), record())
    assert len(threads) == 2
    assert all(thread.name != "served" for thread in threads)
