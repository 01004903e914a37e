"""A customer's image for which a model gives what it did not promise: it alone is refused."""

import json
import threading
from collections.abc import Iterator

import onnx
import pytest
from PIL import Image

from tests import bundles, images
from tests.serving import Reply, Served, Tenant
from tests.unit.recognition.small_models import SIZE, wrong_when_bright

FASHION, WIDE, ROOT = (f"/tagging/{field}/v2/tags" for field in ("fashion", "wide", "root"))
FAILED = 422, "the model failed for this image"  # sent again it would fail again


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own, with a model that gives 12 MB of values for a red image: beyond its slot."""
    folder = tmp_path_factory.mktemp("widening")
    with Served(folder) as served:
        served.install(bundles.tagger(folder / "tagger"))
        served.install(bundles.widening(folder / "widening", 3_000_000))
        root = wrong_when_bright(folder)
        served.install(
            bundles.write(
                folder / "root",
                onnx.load(root.model),
                name="root",
                kind="tagger",
                labels=("level",),
                outputs=dict(root.outputs),
                routes=(ROOT[1:],),
                preprocessing={"size": SIZE},
                threshold=0.5,
            )
        )
        yield served


def ask(served: Served, tenant: Tenant, path: str, colour: str) -> Reply:
    picture = images.encoded(Image.new("RGB", (64, 64), colour), "PNG")
    return served.site.call("POST", path, picture, tenant.headers(content_type="image/png"))


def test_only_the_image_is_refused_and_every_other_customer_is_answered_right(served: Served) -> None:
    victim, attacker = served.tenant("victim"), served.tenant("attacker")
    ends = threading.Event()
    wrong: list[bytes] = []
    answered = 0

    def go_on_asking() -> None:
        nonlocal answered
        while not ends.is_set():
            answer = ask(served, victim, FASHION, "#00ff00")
            answered += 1
            (record,) = answer.document["records"]
            if answer.status != 200 or [tag["name"] for tag in record.get("_tags", ())] != ["green"]:
                wrong.append(answer.body)

    threads = [threading.Thread(target=go_on_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    refused = [ask(served, attacker, WIDE, "red") for _ in range(8)]
    ends.set()
    for thread in threads:
        thread.join()

    assert answered > 0
    assert wrong == []
    for answer in refused:
        (record,) = json.loads(answer.body)["records"]
        assert (record["_status"]["code"], record["_status"]["text"]) == FAILED
        assert "_tags" not in record
    (record,) = ask(served, attacker, WIDE, "blue").document["records"]
    assert record["_status"]["code"] == 200
    assert served.parts.engine is not None
    assert [device.restarts for device in served.parts.engine.devices()] == [0]


def test_an_image_for_which_a_model_gives_no_number_is_refused_for_good(served: Served) -> None:
    tenant = served.tenant("bright")
    codes = [
        ask(served, tenant, ROOT, colour).document["records"][0]["_status"]["code"]
        for colour in ("black", "white", "black")
    ]
    assert codes == [200, FAILED[0], 200]
