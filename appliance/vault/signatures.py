"""Ed25519 (RFC 8032): who made a thing, told by the public half of a key."""

import base64
import binascii

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.errors import InvalidInput, SelfTestFailed

KEY_BYTES = 32

# RFC 8032, section 7.1, test 2.
_PRIVATE = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
_PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
_MESSAGE = b"\x72"
_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def create_signing_key() -> bytes:
    """A new private key: 32 bytes from the operating system's generator."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes | bytearray) -> str:
    """The public half in base64, as a configuration names it. Raises InvalidInput for what is no key."""
    return base64.b64encode(_private(private).public_key().public_bytes_raw()).decode()


def sign(private: bytes | bytearray, message: bytes) -> bytes:
    """The signature of the message, 64 bytes. Raises InvalidInput for what is no key."""
    return _private(private).sign(message)


def signed_by(public: str, signature: bytes, message: bytes) -> bool:
    """Whether the private half of `public` (base64) made this signature of the message."""
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True)).verify(signature, message)
    except (InvalidSignature, ValueError, binascii.Error):
        return False
    return True


def self_test() -> None:
    """The RFC's answer, and the refusal of another message. Raises SelfTestFailed."""
    public = base64.b64encode(_PUBLIC).decode()
    good = sign(_PRIVATE, _MESSAGE) == _SIGNATURE and signed_by(public, _SIGNATURE, _MESSAGE)
    if not good or signed_by(public, _SIGNATURE, b"\x73"):
        raise SelfTestFailed("Ed25519 does not behave as RFC 8032 says: cryptography is damaged or replaced")


def _private(key: bytes | bytearray) -> Ed25519PrivateKey:
    try:
        return Ed25519PrivateKey.from_private_bytes(key)
    except ValueError:
        raise InvalidInput(f"a signing key has {KEY_BYTES} bytes") from None
