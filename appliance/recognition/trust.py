"""Who made a bundle: signed by a key that the operator trusts, or built here from known data packages."""

import base64
import binascii

from appliance.config import Bundles
from appliance.errors import InvalidInput
from appliance.recognition.manifest import SIGNATURE, Verified
from appliance.vault import sign, signed_by

# `appliance bundle build` gives the same bytes everywhere: the SHA-256 of their manifests is all there is to
# know, and stands for a signature.
BUILT_HERE = frozenset(
    {
        "0e592ac3183737163d6e353edb8b9aa4293b8cf5f04cc13303e43c8693534885",  # efficientnet-lite0 1
        "a5f4051a24d23fcddacab2893d1a1832b14afe9429f627b0ac5a1886aa4cc388",  # efficientnet-lite1 1
        "0b0d1bd4b7934a0cf15db3062a87c31a4cb9237808ed362ab0671d01cb101dd7",  # efficientnet-lite2 1
    }
)
_SIGNATURE_BYTES = 64
_CONTEXT = b"appliance bundle v1\n"


def signature(private: bytes, digest: bytes) -> bytes:
    """The content of bundle.sig for the bundle whose manifest has this SHA-256. Raises InvalidInput."""
    return base64.b64encode(sign(private, _CONTEXT + digest)) + b"\n"


class Trust:
    """What `[bundles]` says about makers."""

    def __init__(self, config: Bundles) -> None:
        self._keys = config.trusted_keys
        self._unsigned = config.allow_unsigned

    def check(self, verified: Verified) -> None:
        """Raises InvalidInput, saying what to do, for a bundle of nobody whom the operator trusts."""
        if verified.digest.hex() in BUILT_HERE or self._signed(verified):
            return
        if self._unsigned:
            return
        state = "is not signed" if verified.signature is None else "is signed by none of bundles.trusted_keys"
        raise InvalidInput(
            f"the bundle {state}: have its maker sign it (appliance bundle sign) and trust the key"
            " (bundles.trusted_keys), or set bundles.allow_unsigned"
        )

    def _signed(self, verified: Verified) -> bool:
        if verified.signature is None:
            return False
        try:
            raw = base64.b64decode(verified.signature.strip(), validate=True)
        except binascii.Error:
            raw = b""
        if len(raw) != _SIGNATURE_BYTES:
            raise InvalidInput(f"{SIGNATURE} is no Ed25519 signature in base64 ({_SIGNATURE_BYTES} bytes)")
        return any(signed_by(key, raw, _CONTEXT + verified.digest) for key in self._keys)
