"""What was signed on paper: whoever reads an agreement can tell which text it speaks of."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from datetime import date

from appliance.errors import InvalidInput, TooLarge

MAX_DOCUMENT_BYTES = 8 << 20

_MAX_PARTIES = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Contract:
    """`parties` as the paper names them, the SHA-256 of the file (64 hex digits), the day on which both had
    signed, until when it holds (unix milliseconds, None until it is revoked); each may be left out.

    Raises InvalidInput for what is none of these.
    """

    parties: str | None = None
    text_sha256: str | None = None
    signed_on: date | None = None
    valid_until: int | None = None

    def __post_init__(self) -> None:
        if self.text_sha256 is not None and not _SHA256.fullmatch(self.text_sha256):
            raise InvalidInput("text_sha256: 64 hexadecimal digits in lower case are expected")
        if self.parties is not None:
            cleaned = unicodedata.normalize("NFC", self.parties).strip()
            if not 1 <= len(cleaned) <= _MAX_PARTIES or not cleaned.isprintable():
                raise InvalidInput(f"parties: 1 to {_MAX_PARTIES} printable characters")


def check_document(document: bytes, text_sha256: str | None) -> None:
    """Raises TooLarge beyond MAX_DOCUMENT_BYTES, InvalidInput unless it is the document of this digest."""
    if len(document) > MAX_DOCUMENT_BYTES:
        raise TooLarge(f"a document has at most {MAX_DOCUMENT_BYTES >> 20} MiB")
    if text_sha256 is None:
        raise InvalidInput(
            "the agreement was signed without text_sha256: no document can be proven to be its"
        )
    if hashlib.sha256(document).hexdigest() != text_sha256:
        raise InvalidInput("this is not the document that was signed: its SHA-256 is not text_sha256")
