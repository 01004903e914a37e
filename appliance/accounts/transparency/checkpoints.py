"""Checkpoints: the signed heads of a log, as https://c2sp.org/tlog-checkpoint and signed-note have them.

    <origin>
    <size>
    <root, base64>

    — <origin> <base64 of 4 bytes that name the key, and 64 of an Ed25519 signature over the lines above>

A key is written NAME+HASH+BASE64, as tools for such logs take it.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from appliance.accounts.transparency.merkle import HASH_BYTES
from appliance.errors import InvalidInput
from appliance.vault import NODE, Keys, signed_by

MAX_BYTES = 16 << 10
"""Of a note with the signatures of witnesses below ours."""

_ED25519 = b"\x01"
_TEXT = re.compile(r"([^\s+]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n")
_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_KEY = re.compile(r"([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]{44})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A head of the log `origin`: its first `size` entries hash to `root`; `note` is what is given out."""

    origin: str
    size: int
    root: bytes
    note: str


@dataclass(frozen=True, slots=True)
class LogKey:
    """The public key of a log; `public` is base64 of its 32 bytes, `str` what a file and a person get."""

    name: str
    public: str

    def __str__(self) -> str:
        raw = base64.b64decode(self.public)
        return f"{self.name}+{key_hash(self.name, raw).hex()}+{base64.b64encode(_ED25519 + raw).decode()}"


def key_hash(name: str, public: bytes) -> bytes:
    """The four bytes by which a signature names its key."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def parse_key(text: str) -> LogKey:
    """What `str` of a LogKey was. Raises InvalidInput."""
    found = _KEY.fullmatch(text.strip())
    if found is not None:
        raw = base64.b64decode(found[3])
        if raw[:1] == _ED25519 and key_hash(found[1], raw[1:]).hex() == found[2]:
            return LogKey(found[1], base64.b64encode(raw[1:]).decode())
    raise InvalidInput("not the key of a log, which is written NAME+HASH+BASE64: `appliance audit key`")


def sign(keys: Keys, origin: str, size: int, root: bytes) -> Checkpoint:
    """A checkpoint by the appliance's own key."""
    text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    named = key_hash(origin, base64.b64decode(keys.public(NODE)))
    signature = base64.b64encode(named + keys.sign(NODE, text.encode())).decode()
    return Checkpoint(origin, size, root, f"{text}\n— {origin} {signature}\n")


def parse(note: bytes, public: str) -> Checkpoint:
    """A checkpoint that the private half of `public` has signed for its own origin.

    Signatures by others, such as witnesses, are passed over. Raises InvalidInput for anything else.
    """
    try:
        whole = note.decode()
    except UnicodeDecodeError:
        raise InvalidInput("it is no checkpoint") from None
    text, _, signatures = whole.rpartition("\n\n")
    found = _TEXT.fullmatch(text + "\n")
    lines = signatures.split("\n")
    if found is None or len(note) > MAX_BYTES or len(lines) < 2 or lines.pop():
        raise InvalidInput("it is no checkpoint")
    named = key_hash(found[1], base64.b64decode(public))
    signed = False
    for line in lines:
        signature = _signature(line)
        if signature is None:
            raise InvalidInput("it is no checkpoint")
        if signature[0] == found[1] and signature[1][:4] == named:
            if not signed_by(public, signature[1][4:], found[0].encode()):
                raise InvalidInput("its signature is not of what it says: it was changed")
            signed = True
    if not signed:
        raise InvalidInput("it is not signed by the key of this log")
    root = base64.b64decode(found[3])
    if len(root) != HASH_BYTES or base64.b64encode(root).decode() != found[3]:
        raise InvalidInput("it is no checkpoint")
    return Checkpoint(found[1], int(found[2]), root, whole)


def parse_own(note: bytes, public: str) -> Checkpoint:
    """One as `sign` makes it, under that signature alone. Raises InvalidInput."""
    found = parse(note, public)
    if found.note.rpartition("\n\n")[2].count("\n") > 1:
        raise InvalidInput("it has signatures that the appliance did not put there")
    return found


def _signature(line: str) -> tuple[str, bytes] | None:
    """Who a line says has signed, and the signature behind the four bytes of its key."""
    found = _SIGNATURE.fullmatch(line)
    if found is None:
        return None
    try:
        raw = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        return None
    return (found[1], raw) if base64.b64encode(raw).decode() == found[2] else None
