"""The Open Inference Protocol over HTTP: the same bundles and tokens, another wire."""

import asyncio
import base64
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from appliance.accounts.rights import Scope
from appliance.api.open_inference import MAX_BATCH
from appliance.errors import Overloaded
from appliance.health import Readiness
from tests import bundles, images
from tests.serving import Reply, Served, Tenant

LENGTH = "inference-header-content-length"
FASHION = "/v2/models/fashion"
COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "yellow": (255, 255, 0), "black": (0, 0, 0)}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own: the others must not see what is installed here."""
    folder = tmp_path_factory.mktemp("open inference")
    with Served(folder) as served:
        served.install(bundles.tagger(folder / "tagger"))
        served.install(bundles.detector(folder / "detector"))
        yield served


@pytest.fixture(scope="module")
def tenant(served: Served) -> Tenant:
    return served.tenant("open inference")


@pytest.fixture
def ready(served: Served) -> Iterator[None]:
    yield
    served.readiness = Readiness("ready")


def pixels(*colours: str, side: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    plain = [np.full((side, side, 3), COLOURS[colour], np.uint8) for colour in colours]
    return np.stack(plain)


def picture(colour: str) -> bytes:
    return images.encoded(Image.new("RGB", (40, 40), COLOURS[colour]), "PNG")


def image(batch: np.ndarray[Any, Any], **changed: object) -> dict[str, object]:
    size = {"binary_data_size": batch.nbytes}
    named = {"name": "image", "datatype": "UINT8", "shape": list(batch.shape), "parameters": size}
    return named | changed


def encoded(*data: object) -> dict[str, object]:
    return {"name": "encoded", "datatype": "BYTES", "shape": [len(data)], "data": list(data)}


def infer(
    served: Served,
    tenant: Tenant,
    given: Mapping[str, object],
    binary: bytes | None = None,
    *,
    model: str = FASHION,
    **more: object,
) -> Reply:
    text = json.dumps({"inputs": [given], **more}).encode()
    headers = tenant.headers(content_type="application/octet-stream")
    if binary is not None:
        headers[LENGTH] = str(len(text))
    return served.site.call("POST", f"{model}/infer", text + (binary or b""), headers)


def outputs(reply: Reply) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The tensors of an answer by name, whichever way they came."""
    assert reply.status == 200, reply.body[:300]
    length = int(reply.headers.get(LENGTH, len(reply.body)))
    binary, found = reply.body[length:], {}
    for output in json.loads(reply.body[:length])["outputs"]:
        assert output["datatype"] == "FP32"
        if "data" in output:
            values = np.array(output["data"], np.float32)
        else:
            size = output["parameters"]["binary_data_size"]
            values, binary = np.frombuffer(binary[:size], np.float32), binary[size:]
        found[output["name"]] = values.reshape(output["shape"])
    assert not binary
    return found


def refused(reply: Reply, status: int) -> str:
    assert reply.status == status, reply.body[:300]
    assert reply.headers["content-type"] == "application/json"
    error = reply.document["error"]
    assert isinstance(error, str)
    return error


def test_the_server_tells_what_it_speaks(served: Served, tenant: Tenant) -> None:
    about = served.site.call("GET", "/v2", headers=tenant.headers()).document
    assert about["name"] == "appliance"
    assert about["version"]
    assert about["extensions"] == ["binary_tensor_data", "model_repository"]
    refused(served.site.call("GET", "/v2"), 401)


@pytest.mark.usefixtures("ready")
def test_live_and_ready_need_no_token(served: Served) -> None:
    for readiness, status in (
        (Readiness("ready"), 200),
        (Readiness("failed"), 503),
        (Readiness("starting"), 503),
    ):
        served.readiness = readiness
        assert served.site.call("GET", "/v2/health/live").document == {"live": True}
        answer = served.site.call("GET", "/v2/health/ready")
        assert (answer.status, answer.document) == (status, {"ready": status == 200})


def test_a_model_is_a_bundle_by_its_name(served: Served, tenant: Tenant) -> None:
    for path in (FASHION, f"{FASHION}/versions/1", f"/localhost{FASHION}/"):
        assert served.site.call("GET", path, headers=tenant.headers()).document == {
            "name": "fashion",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]},
                {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}],
        }
        ready = served.site.call("GET", f"{path.rstrip('/')}/ready", headers=tenant.headers())
        assert (ready.status, ready.document) == (200, {"name": "fashion", "ready": True})


def test_unknown_models_and_versions(served: Served, tenant: Tenant) -> None:
    for path in ("/v2/models/none", f"{FASHION}/versions/2", "/v2/models/a_b", f"{FASHION}/config"):
        refused(served.site.call("GET", path, headers=tenant.headers()), 404)
        refused(served.site.call("GET", f"{path}/ready", headers=tenant.headers()), 404)
        refused(infer(served, tenant, encoded(), model=path), 404)


def test_the_repository_lists_every_version(
    served: Served, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def index(body: bytes | None) -> Any:
        return served.site.call("POST", "/v2/repository/index", body, tenant.headers()).document

    assert {(one["name"], one["version"], one["state"]) for one in index(b"")} == {
        ("colours", "1", "READY"),
        ("fashion", "1", "READY"),
        ("things", "1", "READY"),
    }
    assert index(b'{"ready": true}') == index(None)
    engine = served.parts.engine
    monkeypatch.setattr(type(engine), "serves", lambda _, bundle: bundle.name == "things")
    assert [one["name"] for one in index(b'{"ready": true}')] == ["things"]
    assert [one["state"] for one in index(b"")] == ["UNAVAILABLE", "UNAVAILABLE", "READY"]
    ready = served.site.call("GET", f"{FASHION}/ready", headers=tenant.headers())
    assert (ready.status, ready.document["ready"]) == (503, False)


def test_a_bundle_that_is_gone_is_not_served(served: Served) -> None:
    engine = served.parts.engine
    assert engine is not None
    assert engine.serves(served.bundle)
    served.run(engine.unload(served.bundle))
    assert not engine.serves(served.bundle)
    served.run(engine.load(served.bundle))
    assert engine.serves(served.bundle)


def test_pixels_and_pictures_give_the_same_answer_on_every_way(served: Served, tenant: Tenant) -> None:
    names = ["red", "lime", "yellow", "black"]
    batch = pixels(*names)
    expected = np.array([[10, -10], [-10, 10], [10, 10], [-10, -10]], np.float32)
    files = [picture(name) for name in names]
    packed = b"".join(struct.pack("<I", len(file)) + file for file in files)
    packed_input = encoded() | {"shape": [4], "parameters": {"binary_data_size": len(packed)}}
    del packed_input["data"]
    for reply in (
        infer(served, tenant, image(batch), batch.tobytes()),
        infer(served, tenant, packed_input, packed),
        infer(served, tenant, encoded(*(base64.b64encode(file).decode() for file in files))),
        infer(served, tenant, image(batch), batch.tobytes(), parameters={"binary_data_output": True}),
        infer(served, tenant, image(batch), batch.tobytes(), model=f"{FASHION}/versions/1"),
    ):
        assert np.allclose(outputs(reply)["logits"], expected)


def test_small_pixels_in_json(served: Served, tenant: Tenant) -> None:
    batch = pixels("yellow")
    for data in (batch.tolist(), batch.ravel().tolist()):
        given = image(batch, data=data, parameters={})
        assert np.allclose(outputs(infer(served, tenant, given))["logits"], [[10, 10]])


def test_outputs_are_selected_and_each_comes_back_as_it_was_asked(served: Served, tenant: Tenant) -> None:
    batch = pixels("red", "black", side=64)
    asked = [{"name": "classes"}, {"name": "boxes", "parameters": {"binary_data": True}}]
    reply = infer(
        served, tenant, image(batch), batch.tobytes(), model="/v2/models/things", outputs=asked, id="42"
    )
    assert reply.headers["content-type"] == "application/octet-stream"
    found = outputs(reply)
    assert list(found) == ["classes", "boxes"]
    assert found["classes"].tolist() == [list(bundles.CLASSES)] * 2
    assert found["boxes"].tolist() == [[list(box) for box in bundles.BOXES]] * 2
    head = json.loads(reply.body[: int(reply.headers[LENGTH])])
    assert (head["id"], head["model_name"], head["model_version"]) == ("42", "things", "1")

    every = infer(served, tenant, image(batch), batch.tobytes(), model="/v2/models/things")
    assert set(outputs(every)) == {"boxes", "scores", "classes"}
    assert "id" not in every.document
    assert "error" in infer(served, tenant, image(batch), batch.tobytes(), outputs=[{"name": "no"}]).document


def test_a_bad_picture_refuses_the_call_and_is_named(served: Served, tenant: Tenant) -> None:
    good = base64.b64encode(picture("red")).decode()
    bad = base64.b64encode(images.truncated()).decode()
    error = refused(infer(served, tenant, encoded(good, bad)), 400)
    assert error.startswith("encoded[1]: ")
    for data in ("%", 5, None, ""):
        refused(infer(served, tenant, encoded(good, data)), 400)


def test_a_batch_has_64_elements_at_most(served: Served, tenant: Tenant) -> None:
    batch = pixels(*["red"] * MAX_BATCH)
    assert outputs(infer(served, tenant, image(batch), batch.tobytes()))["logits"].shape == (MAX_BATCH, 2)
    larger = pixels(*["red"] * (MAX_BATCH + 1))
    assert "64" in refused(infer(served, tenant, image(larger), larger.tobytes()), 400)


def test_an_answer_that_is_too_long_for_json(
    served: Served, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pixels("red", "red")
    monkeypatch.setattr("appliance.api.open_inference.MAX_VALUES", 3)
    assert "binary_data" in refused(infer(served, tenant, image(batch), batch.tobytes()), 413)
    binary = {"binary_data_output": True}
    assert infer(served, tenant, image(batch), batch.tobytes(), parameters=binary).status == 200
    monkeypatch.setattr("appliance.api.open_inference.MAX_ANSWER_BYTES", 15)
    refused(infer(served, tenant, image(batch), batch.tobytes(), parameters=binary), 413)


def test_overload_is_429(served: Served, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        await asyncio.sleep(0)
        raise Overloaded("as many as the queue holds", retry_after=1)

    monkeypatch.setattr(type(served.parts.engine), "infer", full)
    batch = pixels("red", "lime")
    reply = infer(served, tenant, image(batch), batch.tobytes())
    assert "queue" in refused(reply, 429)
    assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (b"", None),
        (b"not json", None),
        (b"{}", None),
        (b'{"inputs": 5}', None),
        (b'{"inputs": [{}]}', None),
        (b'{"inputs": [{"name": "other", "datatype": "UINT8", "shape": [1], "data": [1]}]}', None),
        (b"{}", "3"),
        (b"{}", "-1"),
        (b"{}", "1" * 400),
    ],
)
def test_hostile_bodies_are_refused(served: Served, tenant: Tenant, text: bytes, header: str | None) -> None:
    headers = tenant.headers() | ({} if header is None else {LENGTH: header})
    refused(served.site.call("POST", f"{FASHION}/infer", text, headers), 400)


def test_a_token_without_the_scope_is_refused(served: Served, tenant: Tenant) -> None:
    headers = {"authorization": f"Token {served.token(tenant, Scope.SEARCH_READ)}"}
    for method, path in (
        ("GET", FASHION),
        ("GET", f"{FASHION}/ready"),
        ("POST", f"{FASHION}/infer"),
        ("POST", "/v2/repository/index"),
    ):
        assert "infer" in refused(served.site.call(method, path, headers=headers), 403)
        assert refused(served.site.call(method, path), 401)


def test_a_body_over_the_limit_is_refused(served: Served, tenant: Tenant) -> None:
    with served.another(max_body_bytes=1 << 20) as (site, _):
        body = bytes((1 << 20) + 1)
        refused(site.call("POST", f"{FASHION}/infer", body, tenant.headers()), 413)
