"""The official Triton client, its URL and a header changed and nothing else."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import bundles, images
from tests.serving import Served

SESSION = Path(__file__).with_name("triton_session.py")
SIDE = 32
EXPECTED = [[10, -10], [-10, 10]]  # of a red and a green image


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own: the others must not see what is installed here."""
    folder = tmp_path_factory.mktemp("triton")
    with Served(folder) as served:
        served.install(bundles.tagger(folder / "tagger"))
        yield served


@pytest.fixture(scope="module", params=["", "/localhost"], ids=["plain", "prefixed"])
def seen(served: Served, request: pytest.FixtureRequest) -> Any:
    """What the client saw, at each of the two addresses."""
    files = [images.encoded(Image.new("RGB", (50, 40), colour), "PNG") for colour in ("red", "lime")]
    told = {"token": served.tenant(f"triton{request.param}").token, "files": [file.hex() for file in files]}
    url = f"{served.site.host}:{served.site.port}{request.param}"
    ended = subprocess.run(
        [sys.executable, SESSION, url, "fashion", str(SIDE)],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_the_server_and_its_models_are_found(seen: Any) -> None:
    assert (seen["live"], seen["ready"], seen["model ready"], seen["unknown ready"]) == (
        True,
        True,
        True,
        False,
    )
    assert "binary_tensor_data" in seen["server"]["extensions"]
    assert seen["model"]["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 2]}]
    assert {one["name"]: one["state"] for one in seen["index"]} == {"colours": "READY", "fashion": "READY"}


@pytest.mark.parametrize(
    "way",
    ["pixels", "json pixels", "files", "asked as binary", "asked as JSON", "version", "asynchronous"],
)
def test_every_way_to_send_and_to_ask_gives_the_same_numbers(seen: Any, way: str) -> None:
    assert np.allclose(seen["logits"][way], EXPECTED)


def test_an_answer_names_its_request_and_the_version(seen: Any) -> None:
    answer = seen["version"]
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "fashion", "1")


@pytest.mark.parametrize(
    ("what", "status", "word"),
    [
        ("shape", "400", "[-1, 32, 32, 3]"),
        ("output", "400", "logits"),
        ("version", "404", "version"),
        ("token", "401", "token"),
    ],
)
def test_refusals_reach_the_caller_with_their_reason(seen: Any, what: str, status: str, word: str) -> None:
    code, message = seen[f"refused {what}"]
    assert code == status
    assert word in message
