"""Signed statements: an in-toto Statement in a DSSE envelope, by a key of the appliance.

The envelope is DSSE 1.0.2 (https://github.com/secure-systems-lab/dsse) with one Ed25519 signature, the
statement that of https://github.com/in-toto/attestation, v1. An envelope has one form in bytes: whatever is
changed in it, or in the public key, is refused.
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


def enveloped(
    keys: Keys, label: str, predicate_type: str, predicate: Mapping[str, object], subject: Mapping[str, str]
) -> bytes:
    """The statement of `predicate` about the files of `subject` (name: SHA-256 in hexadecimal), signed.

    JSON in ASCII without spaces; its signature is by the subkey of `label`.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subject.items()],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    payload = msgspec.json.encode(statement)
    return _envelope(payload, keys.sign(label, _authenticated(payload)), keys.public(label))


def opened(envelope: bytes, public: str) -> dict[str, Any]:
    """The statement in an envelope that the private half of `public` (base64) signed.

    Raises SealBroken for any other bytes than were made, and for what another key signed.
    """
    try:
        outer = msgspec.json.decode(envelope)
        payload = base64.b64decode(outer["payload"], validate=True)
        (entry,) = outer["signatures"]
        signature = base64.b64decode(entry["sig"], validate=True)
        same = _envelope(payload, signature, public) == envelope
    except (msgspec.DecodeError, binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        raise SealBroken("it is no statement in a DSSE envelope") from None
    if not same or not signed_by(public, signature, _authenticated(payload)):
        raise SealBroken("it is not as this key signed it: it was changed, or is another appliance's")
    statement: dict[str, Any] = msgspec.json.decode(payload)
    return statement


def _envelope(payload: bytes, signature: bytes, public: str) -> bytes:
    key = base64.b64decode(public, validate=True)
    if base64.b64encode(key).decode() != public:
        raise ValueError("not the one spelling of a key")
    return msgspec.json.encode(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {"keyid": hashlib.sha256(key).hexdigest(), "sig": base64.b64encode(signature).decode()}
            ],
        }
    )


def _authenticated(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed, type and lengths included."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
