"""Signed statements: one form in bytes, and no bit of it can change."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import SealBroken
from appliance.vault import Keys, enveloped, opened, signed_by

KEYS = Keys(bytes(range(32)))
PUBLIC = KEYS.public("node")
PREDICATE = {"site": "Žižkov", "count": 7, "findings": [], "nothing": None}
ENVELOPE = enveloped(KEYS, "node", "urn:test:v1", PREDICATE, {"residency.toml": "ab" * 32})


def test_a_statement_comes_back_and_is_what_in_toto_and_dsse_say() -> None:
    assert opened(ENVELOPE, PUBLIC) == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "residency.toml", "digest": {"sha256": "ab" * 32}}],
        "predicateType": "urn:test:v1",
        "predicate": PREDICATE,
    }
    outer = json.loads(ENVELOPE)
    payload = base64.b64decode(outer["payload"])
    assert outer["payloadType"] == "application/vnd.in-toto+json"
    authenticated = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    (signature,) = outer["signatures"]
    assert signed_by(PUBLIC, base64.b64decode(signature["sig"]), authenticated)


def test_a_client_that_parsed_it_can_write_it_as_it_was() -> None:
    assert json.dumps(json.loads(ENVELOPE), separators=(",", ":")).encode() == ENVELOPE


@given(st.integers(0, 8 * len(ENVELOPE) - 1))
@settings(derandomize=True, max_examples=300)
def test_any_flipped_bit_is_refused(bit: int) -> None:
    changed = bytearray(ENVELOPE)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealBroken):
        opened(bytes(changed), PUBLIC)


@given(st.integers(0, 8 * len(PUBLIC) - 1))
@settings(derandomize=True, max_examples=100)
def test_any_flipped_bit_of_the_key_is_refused(bit: int) -> None:
    changed = bytearray(PUBLIC.encode())
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealBroken):
        opened(ENVELOPE, changed.decode("latin-1"))


@pytest.mark.full
def test_every_flipped_bit_is_refused() -> None:
    for bit in range(8 * len(ENVELOPE)):
        changed = bytearray(ENVELOPE)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            opened(bytes(changed), PUBLIC)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"[]", b"null", b"7", b"\xff", b"[" * 10_000, ENVELOPE + b"\n", b" " + ENVELOPE),
        *(ENVELOPE[:-1], ENVELOPE.replace(b'"sig"', b'"sig":"x","sig"'), ENVELOPE * 2),
        b'{"payload":7,"signatures":[]}',
        b'{"payload":"","signatures":[{"sig":null}]}',
    ],
)
def test_what_is_no_envelope_is_refused(content: bytes) -> None:
    with pytest.raises(SealBroken):
        opened(content, PUBLIC)


def test_another_label_is_another_key() -> None:
    with pytest.raises(SealBroken):
        opened(ENVELOPE, KEYS.public("other"))
