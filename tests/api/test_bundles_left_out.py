"""A bundle that the devices did not take is told of, and not served, until it is put right."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from appliance.errors import InvalidInput, ModelFailed
from appliance.recognition import selftest
from appliance.recognition.bundles import Bundle
from appliance.recognition.manifest import SelfTest
from tests import bundles, images
from tests.api.test_bundle_makers import RED, upload
from tests.serving import Served, Tenant
from tests.unit.recognition.small_models import SIZE, trap


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as served:
        yield served


def fault(served: Served) -> object:
    (one,) = [
        one
        for one in served.site.operate("GET", "/appliance/v1/bundles").document["bundles"]
        if one["name"] == "tested"
    ]
    return one["fault"]


def tagged(served: Served, tenant: Tenant) -> int:
    """The code that the one image has."""
    headers = tenant.headers(content_type="image/png")
    answer = served.site.call("POST", "/tagging/tested/v2/tags", RED, headers)
    (record,) = answer.document["records"]
    return int(record["_status"]["code"])


def left_out(served: Served, bundle: Bundle) -> None:
    """As a start does, which finds another model in its place."""
    parts = served.parts
    assert parts.engine is not None
    assert parts.decoders is not None
    served.run(parts.engine.unload(bundle))
    bundle.model.write_bytes(b"another")
    with pytest.raises(InvalidInput, match="not the file that was installed"):
        served.run(selftest.serve(bundle, parts.decoders, parts.engine))


@pytest.mark.parametrize("back", [False, True])
def test_it_is_healed_by_installing_it_again(served: Served, tmp_path: Path, back: bool) -> None:
    """Also where its files are what they should be by then."""
    source, tenant = bundles.self_tested(tmp_path / "tested", [10.0, -10.0]), served.tenant("who tags")
    assert upload(served, source).status == 201
    bundle = served.parts.bundles.catalogue().for_name("tested")
    left_out(served, bundle)
    assert "not the file that was installed" in str(fault(served))
    assert served.parts.engine is not None
    ((name, told),) = served.parts.engine.refused()
    assert (name, told.startswith("tested 1: ")) == ("tested", True)
    assert tagged(served, tenant) == 404
    if back:
        bundle.model.write_bytes((source / "model.onnx").read_bytes())
    assert upload(served, source).status == 201
    assert (fault(served), served.parts.engine.refused()) == (None, [])
    assert tagged(served, tenant) == 200


def test_one_that_fails_for_its_own_image_is_left_out(served: Served, tmp_path: Path) -> None:
    parts = served.parts
    assert parts.engine is not None
    assert parts.decoders is not None
    (tmp_path / "selftest.png").write_bytes(images.encoded(Image.new("RGB", (SIZE, SIZE), "white"), "PNG"))
    bundle = replace(trap(tmp_path), selftest=SelfTest("selftest.png", "logits", (1.0,)))
    with pytest.raises(ModelFailed):
        served.run(selftest.serve(bundle, parts.decoders, parts.engine))
    assert not parts.engine.serves(bundle)
    assert "the model fails for this image" in str(parts.engine.fault(bundle))
