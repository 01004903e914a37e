"""Exports of other tools become bundles that see what their makers' own code would have seen."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper

from appliance.errors import InvalidInput
from appliance.recognition import exports, graphs, manifest, processors
from tests.exports import BIT, IMAGENET, WEIGHTS, classifier_model, hugging_face, yolo

Outputs = dict[str, npt.NDArray[np.float32]]
WIDE = {"height": 64, "width": 96}
DEIT = BIT | {"size": 72, "image_processor_type": "DeiTImageProcessor"}
UNCROPPED = BIT | {"do_center_crop": False}
VIT = UNCROPPED | {"image_processor_type": "ViTImageProcessor"}
CONVNEXT = UNCROPPED | {"image_processor_type": "ConvNextImageProcessor"}
# As facebook/levit-128S and sail/poolformer_s12 have them.
LEVIT = BIT | {"image_processor_type": "LevitImageProcessor", "size": 224, "crop_size": 224}
POOLFORMER = LEVIT | {"image_processor_type": "PoolFormerFeatureExtractor", "crop_pct": 0.9}


def converted(path: Path, name: str | None = None) -> dict[str, bytes]:
    """As `conversion` has it done, here: a process for each of these would take minutes."""
    files = {file.name: file.path.read_bytes() for file in exports.gather(path)}
    return exports.convert(exports.bundle_name(path, name), files)


def made(path: Path, target: Path, name: str | None = None) -> manifest.Verified:
    """The bundle written as a folder, verified whole."""
    for file, content in converted(path, name).items():
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (target / file).write_bytes(content)
    return manifest.verify(target)


def run(model: Path, pixels: npt.NDArray[np.uint8]) -> Outputs:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: pixels}), strict=True))


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
@pytest.mark.parametrize("output", ["logits", "output_0"])
def test_a_hugging_face_export_computes_what_its_own_code_would(
    tmp_path: Path, place: str, output: str
) -> None:
    folder = hugging_face(tmp_path / "My Colours v2", model=classifier_model(output=output), place=place)
    bundle = made(folder, tmp_path / "bundle").manifest
    assert (bundle.name, bundle.version, bundle.kind) == ("my-colours-v2", "1", "classifier")
    assert bundle.outputs == {"logits": (3,)}
    pixels = noise(3, 64, 64, 3)
    mean, deviation = np.array(IMAGENET["image_mean"]), np.array(IMAGENET["image_std"])
    expected = ((pixels / 255 - mean) / deviation).mean((1, 2)) @ WEIGHTS
    assert np.allclose(run(tmp_path / "bundle/model.onnx", pixels)["logits"], expected, atol=1e-5)


def test_an_output_that_branches_look_at_too(tmp_path: Path) -> None:
    model = classifier_model()
    branches = {
        f"{branch}_branch": helper.make_graph(
            [helper.make_node(operator, ["logits"], [branch])],
            branch,
            [],
            [helper.make_tensor_value_info(branch, onnx.TensorProto.FLOAT, ["batch", 3])],
        )
        for branch, operator in (("then", "Identity"), ("else", "Neg"))
    }
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "which"))
    model.graph.node.append(helper.make_node("If", ["which"], ["chosen"], **branches))
    pixels = noise(2, 64, 64, 3)
    made(hugging_face(tmp_path / "branching", model=model), tmp_path / "bundle")
    made(hugging_face(tmp_path / "plain"), tmp_path / "other")
    graphs.parse((tmp_path / "bundle/model.onnx").read_bytes())  # as its inspection does
    answer, expected = (run(tmp_path / name / "model.onnx", pixels)["logits"] for name in ("bundle", "other"))
    assert np.array_equal(answer, expected)


def test_half_precision_answers_in_full(tmp_path: Path) -> None:
    made(hugging_face(tmp_path / "half", model=classifier_model(half=True)), tmp_path / "bundle")
    made(hugging_face(tmp_path / "whole"), tmp_path / "other")
    pixels = noise(2, 64, 64, 3)
    half = run(tmp_path / "bundle/model.onnx", pixels)["logits"]
    assert half.dtype == np.float32
    assert np.allclose(half, run(tmp_path / "other/model.onnx", pixels)["logits"], atol=0.1)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (BIT, (64, 64, "crop", 64 / 72, "bicubic")),
        (UNCROPPED | {"size": WIDE}, (64, 96, "stretch", 1.0, "bicubic")),
        (BIT | {"size": WIDE, "crop_size": WIDE}, (64, 96, "stretch", 1.0, "bicubic")),
        (BIT | {"size": 72, "crop_size": 64, "resample": 2}, (64, 64, "crop", 64 / 72, "bilinear")),
        (DEIT, (64, 64, "stretch", 64 / 72, "bicubic")),
        (DEIT | {"size": {"height": 72, "width": 72}}, (64, 64, "stretch", 64 / 72, "bicubic")),
        (DEIT | {"size": 64}, (64, 64, "stretch", 1.0, "bicubic")),
        (VIT | {"size": 64, "resample": 0}, (64, 64, "stretch", 1.0, "nearest")),
        (CONVNEXT | {"size": {"shortest_edge": 224}}, (224, 224, "crop", 224 / 256, "bicubic")),
        (CONVNEXT | {"size": 224, "crop_pct": 0.9}, (224, 224, "crop", 224 / 248, "bicubic")),
        (CONVNEXT | {"size": 384, "crop_pct": 0.9}, (384, 384, "stretch", 1.0, "bicubic")),
        (POOLFORMER | {"size": 224}, (224, 224, "crop", 224 / 248, "bicubic")),
        (POOLFORMER | {"crop_pct": 0.95}, (224, 224, "crop", 224 / 235, "bicubic")),
        (LEVIT, (224, 224, "crop", 224 / 256, "bicubic")),
        (LEVIT | {"size": 256}, (224, 224, "crop", 224 / 292, "bicubic")),
    ],
)
def test_processors(tmp_path: Path, processor: dict[str, Any], expected: tuple[object, ...]) -> None:
    folder = hugging_face(tmp_path / "model", processor=processor)
    seen = made(folder, tmp_path / "bundle").manifest.preprocessing
    assert (seen.height, seen.width, seen.fit, pytest.approx(seen.share), seen.resample) == expected


# What a processor does without a word of its settings: the defaults of transformers.
DEFAULTS: dict[str, tuple[object, ...]] = {
    "CLIP": (224, "crop", 1.0, "bicubic"),
    "ConvNext": (384, "stretch", 1.0, "bilinear"),
    "DeiT": (224, "stretch", 224 / 256, "bicubic"),
    "EfficientFormer": (224, "stretch", 1.0, "bicubic"),
    "EfficientNet": (346, "stretch", 1.0, "nearest"),
    "Levit": (224, "crop", 224 / 256, "bicubic"),
    "MobileNetV1": (224, "crop", 224 / 256, "bilinear"),
    "MobileNetV2": (224, "crop", 224 / 256, "bilinear"),
    "PoolFormer": (224, "crop", 224 / 248, "bicubic"),
    "Pvt": (224, "stretch", 1.0, "bilinear"),
    "Segformer": (512, "stretch", 1.0, "bilinear"),
    "Siglip": (224, "stretch", 1.0, "bicubic"),
    "ViT": (224, "stretch", 1.0, "bilinear"),
    "ViTHybrid": (224, "crop", 1.0, "bicubic"),
}


@pytest.mark.parametrize("suffix", ["ImageProcessor", "ImageProcessorFast", "FeatureExtractor"])
@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_settings_leave_out_is_the_default_of_their_kind(kind: str, suffix: str) -> None:
    seen, _ = processors.understand({"image_processor_type": kind + suffix}, "")
    assert (seen.height, seen.fit, pytest.approx(seen.share), seen.resample) == DEFAULTS[kind]


@pytest.mark.parametrize(("model", "side"), [("swin", 224), ("resnet", 384), ("pvt_v2", 224)])
def test_a_processor_without_a_name_is_that_of_the_model(model: str, side: int) -> None:
    seen, _ = processors.understand({}, model)
    assert (seen.height, seen.fit) == (side, "stretch")


@pytest.mark.parametrize("kind", ["FooImageProcessor", "DPTImageProcessor", "ImageProcessor", 7])
def test_a_kind_that_is_not_known_is_named(tmp_path: Path, kind: object) -> None:
    folder = hugging_face(tmp_path / "model", processor=BIT | {"image_processor_type": kind})
    with pytest.raises(InvalidInput, match=rf"'{kind}' resizes is not known.*bundle\.toml"):
        converted(folder)


def test_a_model_of_no_known_processor_is_named(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "model", processor={"size": 64}, model_type="imagegpt")
    with pytest.raises(InvalidInput, match="a model of type 'imagegpt' resizes is not known"):
        converted(folder)


def test_steps_that_are_off_are_left_out(tmp_path: Path) -> None:
    plain = BIT | {"do_rescale": False, "do_normalize": False}
    made(hugging_face(tmp_path / "model", processor=plain), tmp_path / "bundle")
    pixels = noise(1, 64, 64, 3)
    logits = run(tmp_path / "bundle/model.onnx", pixels)["logits"]
    assert np.allclose(logits, pixels.astype(np.float64).mean((1, 2)) @ WEIGHTS, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "times"),
    [({"include_top": True}, 2), ({}, 2), ({"include_top": False}, 1)],
)
def test_efficientnet_divides_by_the_deviation_again(
    tmp_path: Path, settings: dict[str, bool], times: int
) -> None:
    """As its own code does, unless it is told not to."""
    processor = UNCROPPED | {"size": {"height": 64, "width": 64}} | settings
    processor["image_processor_type"] = "EfficientNetImageProcessor"
    made(hugging_face(tmp_path / "model", processor=processor), tmp_path / "bundle")
    pixels = noise(1, 64, 64, 3)
    mean, deviation = np.array(IMAGENET["image_mean"]), np.array(IMAGENET["image_std"])
    expected = ((pixels / 255 - mean) / deviation**times).mean((1, 2)) @ WEIGHTS
    assert np.allclose(run(tmp_path / "bundle/model.onnx", pixels)["logits"], expected, atol=1e-4)


@pytest.mark.parametrize(("settings", "order"), [({}, -1), ({"do_flip_channel_order": False}, 1)])
def test_mobilevit_sees_blue_first_and_nothing_normalised(
    tmp_path: Path, settings: dict[str, bool], order: int
) -> None:
    processor = {
        "image_processor_type": "MobileViTImageProcessor",
        "size": {"shortest_edge": 72},
        "crop_size": {"height": 64, "width": 64},
        "do_center_crop": True,
    }
    folder = hugging_face(tmp_path / "model", processor=processor | settings)
    assert made(folder, tmp_path / "bundle").manifest.preprocessing.fit == "crop"
    pixels = noise(1, 64, 64, 3)
    expected = (pixels / 255).mean((1, 2))[:, ::order] @ WEIGHTS
    assert np.allclose(run(tmp_path / "bundle/model.onnx", pixels)["logits"], expected, atol=1e-5)


def test_labels_that_exclude_nothing_make_a_tagger(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "model", problem_type="multi_label_classification")
    assert made(folder, tmp_path / "bundle").manifest.kind == "tagger"


def test_labels_and_licence_come_along(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path / "model", id2label={"0": "a\tb", "1": "  ", "2": "x" * 500})
    (folder / "LICENSE").write_text("Do as you please.")
    (folder / "tokenizer.json").write_text("{}")
    verified = made(folder, tmp_path / "bundle", name="Ours!")
    assert verified.manifest.name == "ours"
    assert [label.name for label in verified.labels] == ["a b", "(no name)", "x" * 200]
    assert (tmp_path / "bundle/licences/LICENCE.txt").read_text() == "Do as you please."


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no proportions": ({"processor": UNCROPPED}, "no input of one size"),
    "crop larger than the image": ({"processor": BIT | {"crop_size": 100}}, "no input of one size"),
    "stretched, then cropped in other proportions": (
        {"processor": DEIT | {"size": {"height": 72, "width": 96}}},
        "no input of one size",
    ),
    "stretched, then cropped by an odd margin": ({"processor": DEIT | {"size": 71}}, "no input of one size"),
    "stretched to less than the crop": ({"processor": DEIT | {"size": 60}}, "no input of one size"),
    "divided again by nobody knows whom": ({"processor": BIT | {"include_top": True}}, "include_top"),
    "a crop of a kind that crops not": ({"processor": VIT | {"do_center_crop": True}}, "do_center_crop"),
    "a share of a kind that has none": ({"processor": BIT | {"crop_pct": 0.9}}, "crop_pct"),
    "a share of nothing": ({"processor": CONVNEXT | {"crop_pct": 0}}, "crop_pct"),
    "a share without end": ({"processor": CONVNEXT | {"crop_pct": float("nan")}}, "crop_pct"),
    "both sides of a kind that takes the shorter": ({"processor": CONVNEXT | {"size": WIDE}}, "size"),
    "a longest edge": (
        {"processor": BIT | {"size": {"shortest_edge": 72, "longest_edge": 90}}},
        "a height and a width",
    ),
    "a side without end": ({"processor": LEVIT | {"size": 10**400}}, "size"),
    "a crop that nobody said": (
        {"processor": {"image_processor_type": "BeitImageProcessor", "size": 224}},
        "do_center_crop",
    ),
    "padding": ({"processor": BIT | {"do_pad": True}}, "do_pad is not understood"),
    "another scale": ({"processor": BIT | {"rescale_offset": True}}, "rescale_offset is not"),
    "blue first": ({"processor": BIT | {"do_flip_channel_order": True}}, "do_flip_channel_order"),
    "no resizing": ({"processor": BIT | {"do_resize": False}}, "do_resize"),
    "unknown filter": ({"processor": BIT | {"resample": 4}}, "resample: 4"),
    **{
        f"{setting} of {value}": ({"processor": BIT | {setting: value}}, setting)
        for setting in ("image_std", "image_mean")
        for value in ([float("inf")] * 3, [1, float("nan"), 1], [1, 1, 10**400], [1e300, 1, 1])
    },
    **{
        f"a deviation of {value}": ({"processor": BIT | {"image_std": [value, 1, 1]}}, "image_std")
        for value in (0, -1, 1e-300)
    },
    **{
        f"a factor of {value}": ({"processor": BIT | {"rescale_factor": value}}, "rescale_factor")
        for value in (0, -1, float("inf"), float("nan"), 1e-300)
    },
    "two means": ({"processor": BIT | {"image_mean": [0.5, 0.5]}}, "image_mean"),
    "a huge input": ({"processor": BIT | {"size": 9000, "crop_size": 8000}}, "2048"),
    "another input": ({"model": classifier_model(sides=(32, 32))}, "64 pixels high, the model takes 32"),
    "fewer labels": ({"id2label": {"0": "one", "1": "two"}}, "2 labels"),
    "a regression": ({"problem_type": "regression"}, "estimates a value"),
    "a single label": ({"id2label": {"0": "age"}}, "estimates a value"),
    "a hole in the labels": ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "id2label"),
    "no labels": ({"id2label": None}, "id2label"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused(tmp_path: Path, case: str) -> None:
    options, reason = REFUSED[case]
    with pytest.raises(InvalidInput, match=reason):
        converted(hugging_face(tmp_path / "model", **options))


@pytest.mark.parametrize("missing", ["model.onnx", "preprocessor_config.json"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = hugging_face(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(InvalidInput, match=f"{missing} is missing"):
        converted(folder)


@pytest.mark.parametrize(
    ("name", "size"), [("config.json", 16 << 20), ("model.onnx", (2 << 30) - 1), ("LICENSE", 1 << 20)]
)
def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path, name: str, size: int) -> None:
    folder = hugging_face(tmp_path / "model")
    with (folder / name).open("wb") as file:
        file.truncate(size + 1)
    with pytest.raises(InvalidInput, match=rf"{name} has more than {size} bytes"):
        exports.gather(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.onnx", "LICENSE"])
def test_a_link_out_of_the_folder_takes_nothing_into_the_bundle(tmp_path: Path, name: str) -> None:
    folder = hugging_face(tmp_path / "model")
    (tmp_path / "secret").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidInput, match=f"{name} is a link out of the folder"):
        exports.gather(folder)


def test_a_snapshot_of_hugging_faces_cache_is_of_links(tmp_path: Path) -> None:
    folder, blobs = hugging_face(tmp_path / "snapshots/1a2b"), tmp_path / "blobs"
    blobs.mkdir()
    plain = converted(folder)
    for number, file in enumerate(list(folder.iterdir())):
        blob = file.rename(blobs / f"{number}")
        file.symlink_to(Path("../../blobs", blob.name))
    assert converted(folder) == plain


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cups.onnx")
    with pytest.raises(InvalidInput, match=r"cups\.onnx is not a plain file"):
        exports.gather(tmp_path / "cups.onnx")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_settings_that_are_no_json_object(tmp_path: Path, text: str) -> None:
    folder = hugging_face(tmp_path / "model")
    (folder / "config.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"config\.json"):
        converted(folder)


@pytest.mark.parametrize("name", ["...", "!!", "é"])
def test_a_name_needs_a_letter(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="--name"):
        converted(hugging_face(tmp_path / "model"), name)


def test_a_model_of_an_old_opset_is_refused(tmp_path: Path) -> None:
    model = classifier_model()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 9))
    folder = hugging_face(tmp_path / "model", model=model)
    assert onnx.load(folder / "model.onnx").opset_import[0].version == 9
    with pytest.raises(InvalidInput, match="opset 9"):
        converted(folder)


# YOLO: centre and size of three objects, their corners, and the certainty of each class.
CENTRED = np.array([[32, 32, 20, 10], [10, 12, 4, 8], [50, 50, 10, 10]], np.float32)
CORNERS = np.array([[22, 27, 42, 37], [8, 8, 12, 16], [45, 45, 55, 55]], np.float32)
CERTAIN = np.array([[0.2, 0.7], [0.9, 0.1], [0.3, 0.25]], np.float32)
ORDER = [1, 0, 2]
ANCHOR_FREE = np.concatenate([CENTRED, CERTAIN], 1).T


def assert_candidates(outputs: Outputs) -> None:
    for image in range(len(outputs["boxes"])):
        assert np.allclose(outputs["boxes"][image], CORNERS[ORDER], atol=1e-4)
        assert np.allclose(outputs["scores"][image], CERTAIN.max(1)[ORDER])
        assert outputs["classes"][image].tolist() == CERTAIN.argmax(1)[ORDER].tolist()


def detector(
    tmp_path: Path, raw: npt.NDArray[np.float32], **options: Any
) -> tuple[manifest.Verified, Outputs]:
    verified = made(yolo(tmp_path / "cups.onnx", raw, **options), tmp_path / "bundle")
    return verified, run(tmp_path / "bundle/model.onnx", noise(2, 64, 64, 3))


def test_a_yolo_detector_without_anchors(tmp_path: Path) -> None:
    verified, outputs = detector(tmp_path, ANCHOR_FREE)
    assert_candidates(outputs)
    bundle = verified.manifest
    assert (bundle.name, bundle.kind, bundle.overlap) == ("cups", "detector", 0.7)
    assert (bundle.preprocessing.fit, bundle.preprocessing.shape) == ("letterbox", (64, 64, 3))
    assert [label.name for label in verified.labels] == ["cup", "plate"]


def test_an_older_yolo_detector_with_objectness(tmp_path: Path) -> None:
    """Its certainty is the product of both; of 350 candidates the best 300 are handed on."""
    some = np.concatenate([CENTRED, np.full((3, 1), 0.5), CERTAIN * 2], 1)
    _, outputs = detector(tmp_path, np.concatenate([some, np.zeros((347, 7))]).astype(np.float32))
    assert outputs["boxes"].shape == (2, 300, 4)
    assert_candidates({name: values[:, :3] for name, values in outputs.items()})


def test_a_yolo_detector_that_suppresses_overlaps_itself(tmp_path: Path) -> None:
    best = np.concatenate([CORNERS, CERTAIN.max(1)[:, None], CERTAIN.argmax(1)[:, None]], 1)
    assert_candidates(detector(tmp_path, best.astype(np.float32))[1])


@pytest.mark.parametrize("count", [3, 350])
@pytest.mark.parametrize("version", [5, 8])
def test_a_yolo_detector_that_says_no_number_of_candidates(tmp_path: Path, version: int, count: int) -> None:
    """What the model does not give is filled with candidates of no certainty."""
    objectness = [np.ones((3, 1))] if version == 5 else []
    raw = np.concatenate([CENTRED, *objectness, CERTAIN], 1)
    raw = np.concatenate([raw, np.zeros((count - 3, raw.shape[1]))]).astype(np.float32)
    said = ("anchors", 7) if version == 5 else (6, "anchors")
    _, outputs = detector(tmp_path, raw if version == 5 else raw.T, said=said)
    assert outputs["boxes"].shape == (2, 300, 4)
    assert_candidates({name: values[:, :3] for name, values in outputs.items()})
    assert outputs["scores"][:, 3:].max() == 0


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (("a", "b"), "{0: 'cup', 1: 'plate'}"),
        ((5, "anchors"), "{0: 'cup', 1: 'plate'}"),
        (("anchors", 6), "{0: 'cup'}"),  # suppressed or with objectness
        (("anchors", 6), "{0: 'cup', 1: 'plate'}"),
    ],
)
def test_open_candidates_of_no_single_form(tmp_path: Path, said: tuple[int | str, ...], names: str) -> None:
    with pytest.raises(InvalidInput, match="no known YOLO form"):
        detector(tmp_path, ANCHOR_FREE, said=said, names=names)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"names": "{}"}, "names of classes"),
        ({"names": "__import__('os').system('true')"}, "names of classes"),
        ({"names": "{1: 'a', 2: 'b'}"}, "names of classes"),
        ({"names": "[" * 10_000}, "names of classes"),
        ({"names": "{[]: 1}"}, "names of classes"),
        ({"names": "{0: 'a', 1: 'b'} + 1"}, "names of classes"),
        ({"names": "{0: 'a'}"}, "no known YOLO form"),
        ({"task": "segment"}, "segment"),
    ],
)
def test_a_file_that_is_no_yolo_detector(tmp_path: Path, metadata: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        detector(tmp_path, ANCHOR_FREE, **metadata)
