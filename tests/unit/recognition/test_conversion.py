"""Exports become bundles in a process of their own: what goes in, what comes out, and what is left of it."""

from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import numpy_helper

from appliance.errors import InvalidInput, StorageFailed
from appliance.recognition import exports
from appliance.recognition.staging import from_path
from tests.exports import classifier_model, hugging_face, yolo
from tests.unit.recognition.test_exports import ANCHOR_FREE, converted


async def through_a_process(path: Path, name: str | None = None) -> dict[str, bytes]:
    made = {}
    async for file, content in from_path(path, name):
        made[file] = b"".join([piece async for piece in content])
    return made


def large(folder: Path) -> Path:
    """Of some megabytes, so that it is handed on in pieces."""
    model = classifier_model()
    ballast = np.random.default_rng(1).integers(0, 256, 3_000_001, np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(ballast, "ballast"))
    export = hugging_face(folder, model=model)
    (export / "LICENSE").write_text("Do as you please.")
    return export


async def test_a_bundle_comes_out_as_it_was_made_elsewhere_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ((large(tmp_path / "large"), None), (yolo(tmp_path / "cups.onnx", ANCHOR_FREE), "ours"))
    expected = [converted(path, name) for path, name in given]
    monkeypatch.setattr(exports, "convert", None)  # of this process, which is to parse nothing
    before = psutil.Process().children(), psutil.Process().num_fds()
    assert [await through_a_process(path, name) for path, name in given] == expected
    assert (psutil.Process().children(), psutil.Process().num_fds()) == before


async def test_a_refusal_comes_out_in_its_own_words(tmp_path: Path) -> None:
    path = yolo(tmp_path / "cups.onnx", ANCHOR_FREE, names="__import__('os').system('true')")
    with pytest.raises(InvalidInput) as refused:
        await through_a_process(path)
    assert str(refused.value) == (
        f"{path}: its metadata has no names of classes: only YOLO's detectors are understood"
    )


async def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"nothing\.onnx: No such file"):
        await through_a_process(tmp_path / "nothing.onnx")
    (tmp_path / "export").mkdir()
    (tmp_path / "export/config.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"/export: preprocessor_config\.json is missing"):
        await through_a_process(tmp_path / "export")
