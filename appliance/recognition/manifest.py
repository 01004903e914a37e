"""What a bundle is: a folder of exactly the files that its manifest lists, verified whole or refused.

The files are `bundle.toml`, the manifest; `model.onnx`; `labels.txt` where the model has classes, one name a
line in the order of the output `logits` or the numbers of `classes`; and texts under `licences/`. The
manifest has the SHA-256 of every other file but `bundle.sig`, its signature. A self-test has an image of its
own (`selftest.png`, ...). Verification says that a bundle is what was built; who built it is asked of
`trust`, and whether the model computes of the engine.
"""

import hashlib
import os
import re
import stat
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import tomli_w

from appliance.errors import InvalidInput
from appliance.recognition.preprocessing import Preprocessing

MANIFEST = "bundle.toml"
MODEL = "model.onnx"
LABELS = "labels.txt"
LICENCES = "licences"
SIGNATURE = "bundle.sig"

_LARGEST = {
    MANIFEST: 256 * 1024,
    MODEL: 2 * 1024**3 - 1,  # a protobuf ends at 2 GiB
    LABELS: 8 * 1024 * 1024,
    SIGNATURE: 1024,
}
_LARGEST_OTHER = 1024 * 1024  # a licence, the image of a self-test
MOST_FILES = 64
LONGEST_LABEL = 200
_CHUNK = 1024 * 1024
_LICENCE = re.compile(rf"{LICENCES}/[A-Za-z0-9][A-Za-z0-9._-]{{0,99}}")
_SELFTEST = re.compile(r"selftest\.(bmp|gif|jpg|png|tiff|webp)")

_Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?\Z")]
_Version = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Za-z]([0-9A-Za-z.-]{0,30}[0-9A-Za-z])?\Z")]
_Route = Annotated[str, msgspec.Meta(pattern=r"\A(photo/tags|tagging/[a-z0-9-]{1,40})/v2/tags\Z")]
_Output = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_]{0,63}\Z")]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
_Length = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Kind = Literal["backbone", "classifier", "tagger", "detector"]
_Shape = Annotated[tuple[_Length, ...], msgspec.Meta(min_length=1, max_length=4)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a part comes from: `licence` is an SPDX expression, `sha256` that of the original file."""

    name: _Text
    version: _Text
    provides: _Text
    licence: _Text
    sha256: _Digest


class SelfTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image of the bundle, and the first values of an output for it.

    A device may differ by `tolerance`, of values above 1 by that part of them.
    """

    image: Annotated[str, msgspec.Meta(pattern=rf"\A{_SELFTEST.pattern}\Z")]
    output: _Output
    expected: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=64)]
    tolerance: _Fraction = 0.02


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """bundle.toml: `outputs` are shapes for one image, `files` the SHA-256 of every other file of the folder.

    A backbone has the output `embedding` (n), whose vectors search compares. A classifier, a tagger, and
    whatever serves routes, has the output `logits` (n) and a label for each: of a tagger any number may be
    true of one image, of the others exactly one is. Tags less probable than `threshold` are left out.

    A detector has the outputs `boxes` (k, 4: left, top, right, bottom in pixels of the input), `scores` (k,
    0 to 1) and `classes` (k, indices of labels, as floats). Of boxes of one class that overlap by more than
    `overlap` (intersection over union) the less certain ones are dropped; 1.0 keeps all.

    `exportable` says whether its licence lets the files leave the appliance again.
    """

    format: Literal[1]
    name: _Name
    version: _Version
    kind: Kind
    preprocessing: Preprocessing
    outputs: dict[_Output, _Shape]
    files: dict[str, _Digest]
    sources: Annotated[tuple[Source, ...], msgspec.Meta(min_length=1, max_length=64)]
    routes: Annotated[tuple[_Route, ...], msgspec.Meta(max_length=64)] = ()
    threshold: _Fraction = 0.0
    overlap: _Fraction = 1.0
    selftest: SelfTest | msgspec.UnsetType = msgspec.UNSET
    exportable: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """A class of a model; `id` is a UUID made of the bundle's name and version and the class's index."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What verification saw: `digest` is the SHA-256 of the manifest, and so of the whole bundle.

    `signature` is the content of bundle.sig, which nobody has looked at yet.
    """

    manifest: Manifest
    labels: tuple[Label, ...]
    digest: bytes
    signature: bytes | None


def verify(folder: Path) -> Verified:
    """Read every file of a bundle and hold it against the manifest.

    Raises InvalidInput with the first reason found, file names relative to the folder: a missing, unlisted,
    altered or oversized file, a link or anything else that is no plain file, an invalid manifest, labels that
    do not fit the model.
    """
    present = set(files(folder))
    if MANIFEST not in present:
        raise InvalidInput(f"{MANIFEST} is missing: this is no bundle")
    manifest, own_digest = stated(folder)
    listed = manifest.files.keys() | {MANIFEST}
    signature = b"".join(chunks(folder, SIGNATURE)) if SIGNATURE in present else None
    labels = b""
    for name in sorted(listed ^ (present - {SIGNATURE})):
        raise InvalidInput(f"{name} is {'missing' if name in listed else f'not listed in {MANIFEST}'}")
    for name, expected in manifest.files.items():
        digest = hashlib.sha256()
        for chunk in chunks(folder, name):
            digest.update(chunk)
            if name == LABELS:
                labels += chunk
        if digest.hexdigest() != expected:
            raise InvalidInput(f"{name} is not the file that {MANIFEST} lists: its SHA-256 differs")
    return Verified(manifest, _labels(manifest, labels), own_digest, signature)


def stated(folder: Path) -> tuple[Manifest, bytes]:
    """What the manifest says, of whatever files, and its SHA-256. Raises InvalidInput."""
    raw = b"".join(chunks(folder, MANIFEST))
    return _manifest(raw), hashlib.sha256(raw).digest()


def render(manifest: Manifest) -> bytes:
    """bundle.toml of a manifest. Raises InvalidInput for one that contradicts itself."""
    raw = tomli_w.dumps(msgspec.to_builtins(manifest)).encode()
    _manifest(raw)
    return raw


def files(folder: Path) -> list[str]:
    """The names of all files of the folder, relative to it. Raises InvalidInput for what no bundle holds."""
    names = []
    for prefix in ("", f"{LICENCES}/"):
        for entry in _entries(folder / prefix):
            name = prefix + entry.name
            if name == LICENCES and entry.is_dir(follow_symlinks=False):
                continue
            if not entry.is_file(follow_symlinks=False):
                raise InvalidInput(f"{name!r} is not a plain file")
            limit(name)
            names.append(name)
    return names


def limit(name: str) -> int:
    """The most bytes a file of this name may have. Raises InvalidInput for a name that no bundle holds."""
    if not _is_name(name):
        raise InvalidInput(f"{name!r} is not a file of a bundle")
    return _LARGEST.get(name, _LARGEST_OTHER)


def chunks(folder: Path, name: str) -> Iterator[bytes]:
    """The content of a file. Raises InvalidInput for a link, a device, a pipe, and beyond its limit."""
    largest = limit(name)
    with _readable(name):
        # O_NONBLOCK: opening a pipe that took the file's place would wait for its other end.
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidInput(f"{name} is not a plain file")
            size = 0
            while chunk := os.read(fd, _CHUNK):
                size += len(chunk)
                if size > largest:
                    raise InvalidInput(f"{name} has more than {largest} bytes")
                yield chunk
        finally:
            os.close(fd)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    if folder.name == LICENCES and not folder.is_dir():
        return []
    with _readable("the folder"), os.scandir(folder) as found:
        entries = list(islice(found, MOST_FILES + 1))
    if len(entries) > MOST_FILES:
        raise InvalidInput(f"more than {MOST_FILES} files")
    return sorted(entries, key=lambda entry: entry.name)


def _is_name(name: str) -> bool:
    return name in _LARGEST or any(kind.fullmatch(name) for kind in (_LICENCE, _SELFTEST))


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{name} cannot be read: {error.strerror}") from error


def _manifest(raw: bytes) -> Manifest:
    try:
        manifest = msgspec.convert(tomllib.loads(raw.decode("utf-8")), Manifest)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{MANIFEST} is not UTF-8 text") from error
    except RecursionError as error:
        raise InvalidInput(f"{MANIFEST} is nested too deep") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidInput(f"{MANIFEST}: {error}") from error
    for reason in _contradictions(manifest):
        raise InvalidInput(f"{MANIFEST}: {reason}")
    return manifest


def _contradictions(manifest: Manifest) -> Iterator[str]:
    yield from _wrong_files(manifest)
    if manifest.selftest is not msgspec.UNSET:
        yield from _no_selftest(manifest, manifest.selftest)
    if manifest.kind == "backbone" and len(manifest.outputs.get("embedding", ())) != 1:
        yield "outputs: a backbone has the output embedding with one dimension"
    logits = manifest.outputs.get("logits")
    if logits is not None and len(logits) != 1:
        yield "outputs: logits has one dimension"
    if logits is None and (manifest.kind in {"classifier", "tagger"} or manifest.routes):
        yield "outputs: a classifier, a tagger, and what serves routes, has the output logits"
    if manifest.kind == "detector":
        yield from _no_detector(manifest)
    elif (logits is not None) != (LABELS in manifest.files):
        yield f"files: {LABELS} and the output logits belong together"


def _wrong_files(manifest: Manifest) -> Iterator[str]:
    for name in manifest.files:
        if name in {MANIFEST, SIGNATURE} or not _is_name(name):
            yield f"files: {name!r} is not a file of a bundle"
    if MODEL not in manifest.files:
        yield f"files: {MODEL} is missing"
    if not any(name.startswith(f"{LICENCES}/") for name in manifest.files):
        yield f"files: there is no text under {LICENCES}/"


def _no_selftest(manifest: Manifest, selftest: SelfTest) -> Iterator[str]:
    if selftest.image not in manifest.files:
        yield f"selftest: {selftest.image} is not among the files"
    if selftest.output not in manifest.outputs:
        yield f"selftest: the model has no output {selftest.output}"


def _no_detector(manifest: Manifest) -> Iterator[str]:
    count = manifest.outputs.get("scores", (0,))[0]
    wanted = {"boxes": (count, 4), "scores": (count,), "classes": (count,)}
    if dict(manifest.outputs) != wanted:
        yield "outputs: a detector has boxes = [k, 4], scores = [k] and classes = [k], and no others"
    if LABELS not in manifest.files:
        yield f"files: a detector has {LABELS}"


def _labels(manifest: Manifest, content: bytes) -> tuple[Label, ...]:
    if LABELS not in manifest.files:
        return ()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{LABELS} is not UTF-8 text") from error
    names = text.removesuffix("\n").split("\n")
    (expected,) = manifest.outputs.get("logits", (len(names),))
    if len(names) != expected:
        raise InvalidInput(f"{LABELS}: {len(names)} labels for {expected} logits")
    for line, name in enumerate(names, 1):
        if not 1 <= len(name) <= LONGEST_LABEL or not name.isprintable() or name != name.strip():
            raise InvalidInput(
                f"{LABELS}: line {line}: 1 to {LONGEST_LABEL} printable characters, no space around them"
            )
    return tuple(Label(_label_id(manifest, index), name) for index, name in enumerate(names))


def _label_id(manifest: Manifest, index: int) -> str:
    text = f"{manifest.name}\n{manifest.version}\n{index}"
    return str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4))
