"""A customer's image makes a model give more than it promised: nobody else's answers may change by that."""

import json
import threading
from collections.abc import Iterator

import pytest
from PIL import Image

from tests import bundles, images
from tests.serving import Reply, Served, Tenant

FASHION, WIDE = "/tagging/fashion/v2/tags", "/tagging/wide/v2/tags"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own, with a model that gives 12 MB of values for a red image: beyond its slot."""
    folder = tmp_path_factory.mktemp("widening")
    with Served(folder) as served:
        served.install(bundles.tagger(folder / "tagger"))
        served.install(bundles.widening(folder / "widening", 3_000_000))
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
        assert record["_status"]["text"] == "the model failed for this image"
        assert "_tags" not in record
    (record,) = ask(served, attacker, WIDE, "blue").document["records"]
    assert record["_status"]["code"] == 200
    assert served.parts.engine is not None
    assert [device.restarts for device in served.parts.engine.devices()] == [0]
