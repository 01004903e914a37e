"""Whose bundles are installed: signed by a trusted key, or anybody's where the operator says so."""

import hashlib
from pathlib import Path

import pytest

from appliance import vault
from appliance.config import Bundles
from appliance.errors import InvalidInput
from appliance.recognition.manifest import SIGNATURE, verify
from appliance.recognition.trust import Trust, signature
from tests import bundles

MINE, THEIRS = vault.create_signing_key(), vault.create_signing_key()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.tagger(tmp_path / "tagger")


def sign(folder: Path, key: bytes) -> None:
    digest = hashlib.sha256((folder / "bundle.toml").read_bytes()).digest()
    (folder / SIGNATURE).write_bytes(signature(key, digest))


def trusting(*keys: bytes, allow_unsigned: bool = False) -> Trust:
    public = tuple(vault.public_key(key) for key in keys)
    return Trust(Bundles(trusted_keys=public, allow_unsigned=allow_unsigned))


def test_a_bundle_of_a_trusted_maker(bundle: Path) -> None:
    sign(bundle, MINE)
    trusting(MINE).check(verify(bundle))
    trusting(THEIRS, MINE).check(verify(bundle))


def test_a_bundle_that_nobody_signed(bundle: Path) -> None:
    with pytest.raises(InvalidInput, match=r"is not signed: .*appliance bundle sign.*allow_unsigned"):
        trusting(MINE).check(verify(bundle))
    trusting(allow_unsigned=True).check(verify(bundle))


def test_a_bundle_of_somebody_else(bundle: Path) -> None:
    sign(bundle, THEIRS)
    for trust in (trusting(MINE), trusting()):
        with pytest.raises(InvalidInput, match=r"signed by none of bundles\.trusted_keys"):
            trust.check(verify(bundle))


def test_a_signature_is_of_these_very_files(bundle: Path, tmp_path: Path) -> None:
    sign(bundle, MINE)
    other = bundles.detector(tmp_path / "detector")
    (other / SIGNATURE).write_bytes((bundle / SIGNATURE).read_bytes())
    with pytest.raises(InvalidInput, match="signed by none"):
        trusting(MINE).check(verify(other))
    manifest = (bundle / "bundle.toml").read_text()
    (bundle / "bundle.toml").write_text(manifest.replace("threshold = 0.4", "threshold = 0.1"))
    with pytest.raises(InvalidInput, match="signed by none"):
        trusting(MINE).check(verify(bundle))


@pytest.mark.parametrize("content", [b"", b"\n", b"AAAA\n", b"?" * 88, b"\xff" * 64, bytes(64)])
def test_what_is_no_signature(bundle: Path, content: bytes) -> None:
    (bundle / SIGNATURE).write_bytes(content)
    with pytest.raises(InvalidInput, match="sign"):
        trusting(MINE, allow_unsigned=True).check(verify(bundle))


def test_a_huge_signature_is_not_read(bundle: Path) -> None:
    (bundle / SIGNATURE).write_bytes(bytes(2000))
    with pytest.raises(InvalidInput, match="more than 1024 bytes"):
        verify(bundle)
