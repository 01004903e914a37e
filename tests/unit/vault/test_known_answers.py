"""The self-test at every start: it passes, and each thing it guards against makes it fail."""

import hmac
from collections.abc import Iterator

import pytest
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.errors import SelfTestFailed
from appliance.vault import SealedFile, known_answers, self_test


def test_the_ciphers_give_their_known_answers() -> None:
    self_test()


def test_a_wrong_hmac_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = hmac.digest

    def digest(key: bytes, data: bytes, name: str) -> bytes:
        return bytes(32) if data == b"Hi There" else genuine(key, data, name)

    monkeypatch.setattr(hmac, "digest", digest)
    with pytest.raises(SelfTestFailed, match=r"HMAC-SHA256 .* case 1"):
        self_test()


def test_a_cipher_that_does_not_check_its_tag_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless:
        def __init__(self, key: bytes) -> None:
            self._cipher = AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            return self._cipher.encrypt(nonce, data, associated)

        def decrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
            plain = data[:-16]
            return self._cipher.encrypt(nonce, plain, associated)[:-16]

    monkeypatch.setattr(known_answers, "AESGCM", Careless)
    with pytest.raises(SelfTestFailed, match="AES-256-GCM"):
        self_test()


@pytest.mark.parametrize("vectors", ["_EXPANSIONS", "_MACS", "_SEALED", "_MESSAGES"])
def test_a_missing_known_answer_is_noticed(vectors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, vectors, getattr(known_answers, vectors)[:-1])
    with pytest.raises(SelfTestFailed, match="12 of 13"):
        self_test()


def test_a_reader_that_gives_out_what_was_forged_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(SealedFile):
        def __init__(self, *_: object) -> None:
            pass

        def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
            return iter(())

    monkeypatch.setattr(known_answers, "SealedFile", Careless)
    with pytest.raises(SelfTestFailed, match="sealed files"):
        self_test()


def test_a_cobblestone_that_ignores_its_context_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(key: bytes, _: bytes) -> Cobblestone256Decryptor:
        return Cobblestone256Decryptor(key, b"")

    monkeypatch.setattr(known_answers, "Cobblestone256Decryptor", careless)
    with pytest.raises(SelfTestFailed, match=r"Cobblestone-256 .* case 2"):
        self_test()
