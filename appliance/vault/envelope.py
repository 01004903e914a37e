"""Signed statements in DSSE envelopes, by a key of the appliance.

The envelope is DSSE 1.0.2 (https://github.com/secure-systems-lab/dsse) with one Ed25519 signature; what a
residency report states is an in-toto Statement (https://github.com/in-toto/attestation, v1). An envelope has
one form in bytes: whatever is changed in it, or in the public key, is refused.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from appliance.errors import SealBroken
from appliance.vault.keys import Keys
from appliance.vault.signatures import signed_by

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def signed(keys: Keys, label: str, payload: bytes, kind: str) -> bytes:
    """The signature of a payload of this type, by the subkey of `label`: for `wrapped`."""
    return keys.sign(label, _authenticated(payload, kind))


def wrapped(payload: bytes, kind: str, signature: bytes, public: str) -> bytes:
    """The envelope, JSON in ASCII without spaces; `public` (base64) is the key that the signature is by."""
    key = base64.b64decode(public, validate=True)
    if base64.b64encode(key).decode() != public:
        raise ValueError("not the one spelling of a key")
    return msgspec.json.encode(
        {
            "payloadType": kind,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {"keyid": hashlib.sha256(key).hexdigest(), "sig": base64.b64encode(signature).decode()}
            ],
        }
    )


def unwrapped(envelope: bytes, kind: str, public: str) -> bytes:
    """The payload of this type in an envelope that the private half of `public` (base64) signed.

    Raises SealBroken for any other bytes than were made, and for what another key signed.
    """
    try:
        outer = msgspec.json.decode(envelope)
        payload = base64.b64decode(outer["payload"], validate=True)
        (entry,) = outer["signatures"]
        signature = base64.b64decode(entry["sig"], validate=True)
        same = wrapped(payload, kind, signature, public) == envelope
    except (msgspec.DecodeError, binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        raise SealBroken("it is no statement in a DSSE envelope") from None
    if not same or not signed_by(public, signature, _authenticated(payload, kind)):
        raise SealBroken("it is not as this key signed it: it was changed, or is another appliance's")
    return payload


def enveloped(
    keys: Keys, label: str, predicate_type: str, predicate: Mapping[str, object], subject: Mapping[str, str]
) -> bytes:
    """The in-toto Statement of `predicate` about the files of `subject` (name: SHA-256 in hexadecimal),
    signed by the subkey of `label` and wrapped.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subject.items()],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    payload = msgspec.json.encode(statement)
    return wrapped(payload, PAYLOAD_TYPE, signed(keys, label, payload, PAYLOAD_TYPE), keys.public(label))


def opened(envelope: bytes, public: str) -> dict[str, Any]:
    """The in-toto Statement in an envelope. Raises SealBroken as `unwrapped`."""
    statement: dict[str, Any] = msgspec.json.decode(unwrapped(envelope, PAYLOAD_TYPE, public))
    return statement


def _authenticated(payload: bytes, kind: str) -> bytes:
    """DSSE's pre-authentication encoding: what is signed, type and lengths included."""
    return b"DSSEv1 %d %b %d %b" % (len(kind.encode()), kind.encode(), len(payload), payload)
