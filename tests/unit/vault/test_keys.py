"""Root key files and labelled subkeys."""

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Vault
from appliance.errors import ConfigInvalid
from appliance.vault import Keys, create_root, read_root, signed_by

ROOT = bytes(range(32))


def root_file(folder: Path, content: bytes = ROOT, mode: int = 0o600) -> Vault:
    path = folder / "root.key"
    path.write_bytes(content)
    path.chmod(mode)
    return Vault(root_key=path)


def test_a_new_root_is_32_bytes_and_new() -> None:
    assert len(create_root()) == 32
    assert create_root() != create_root()


def test_a_root_key_file(tmp_path: Path) -> None:
    assert read_root(root_file(tmp_path)) == ROOT
    assert read_root(root_file(tmp_path, mode=0o400)) == ROOT


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_file_that_others_may_touch_is_refused_with_the_fix(tmp_path: Path, mode: int) -> None:
    vault = root_file(tmp_path, mode=mode)
    with pytest.raises(ConfigInvalid, match=f"mode {mode:04o}.*: chmod 600 {vault.root_key}"):
        read_root(vault)


@pytest.mark.parametrize("content", [b"", ROOT[:31], ROOT + b"\n", ROOT.hex().encode()])
def test_a_wrong_length_is_refused_without_the_content(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigInvalid, match=f"{len(content)} bytes instead of 32") as refused:
        read_root(root_file(tmp_path, content))
    assert ROOT.hex() not in str(refused.value)


def test_a_missing_file_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"does not exist.*install -m 600 .*head -c 32 /dev/urandom"):
        read_root(Vault(root_key=tmp_path / "absent"))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigInvalid, match="not a regular file"):
            read_root(Vault(root_key=path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    vault = root_file(tmp_path)
    assert vault.root_key is not None
    os.chown(vault.root_key, 65534, 65534)
    with pytest.raises(ConfigInvalid, match="belongs to uid 65534"):
        read_root(vault)


def test_the_credential_stands_in_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigInvalid, match=r"vault\.root_key: not set, .*LoadCredentialEncrypted"):
        read_root(Vault())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "root.key").write_bytes(ROOT)
    assert read_root(Vault()) == ROOT
    (tmp_path / "root.key").write_bytes(ROOT[:5])
    with pytest.raises(ConfigInvalid, match="has 5 bytes instead of 32"):
        read_root(Vault())


def test_a_subkey_is_the_hkdf_expansion_of_its_label() -> None:
    expected = hmac.digest(ROOT, b"appliance/v1/tokens" + b"\x01", "sha256")  # RFC 5869 2.3 for one block
    assert Keys(ROOT).subkey("tokens") == expected
    assert Keys(ROOT).mac("tokens", b"data") == hmac.digest(expected, b"data", "sha256")


@given(st.text(), st.text(), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_labels_and_roots_separate(label: str, other: str, root: bytes, another: bytes) -> None:
    assert (Keys(root).subkey(label) == Keys(root).subkey(other)) == (label == other)
    assert (Keys(root).subkey(label) == Keys(another).subkey(label)) == (root == another)


def test_keys_take_the_root_over_and_wipe_it() -> None:
    root = bytearray(ROOT)
    held = Keys(root)
    assert root == bytes(32)
    assert held.subkey("a") == Keys(ROOT).subkey("a")
    inner = [held._root, held._subkeys["a"]]
    assert all(any(key) for key in inner)
    held.wipe()
    assert inner == [bytes(32), bytes(32)]
    with pytest.raises(ValueError, match="wiped"):
        held.subkey("a")
    with pytest.raises(ValueError, match="wiped"):
        held.mac("b", b"")
    held.wipe()


@pytest.mark.parametrize("known", [True, False])
def test_keys_that_are_wiped_by_another_thread_make_nothing(
    monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Whatever comes of a key that is being overwritten is not given out: zeros are a key that all know."""
    wiped: list[Keys] = []

    def wiping(do: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            made = do(*arguments)
            wiped[-1].wipe()
            return made

        return act

    acts: tuple[Callable[[Keys], bytes], ...] = (
        lambda keys: keys.subkey("a"),
        lambda keys: keys.mac("a", b"data"),
        lambda keys: keys.seal("a", b"data", b""),
    )
    for act in acts:
        wiped.append(Keys(ROOT))
        if known:
            act(wiped[-1])
        with monkeypatch.context() as patch:
            patch.setattr(Keys, "_cached", wiping(Keys._cached))
            with pytest.raises(ValueError, match="wiped"):
                act(wiped[-1])


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_root_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"not {size}"):
        Keys(bytes(size))


def test_keys_sign_by_label_and_anyone_may_verify() -> None:
    keys = Keys(ROOT)
    signature = keys.sign("node", b"message")
    assert signed_by(keys.public("node"), signature, b"message")
    assert not signed_by(keys.public("node"), signature, b"another")
    assert not signed_by(keys.public("other"), signature, b"message")
    assert keys.public("node") != Keys(bytes(32)).public("node")
    keys.wipe()
    with pytest.raises(ValueError, match="wiped"):
        keys.sign("node", b"message")


def test_keys_do_not_show_themselves() -> None:
    held = Keys(ROOT)
    held.subkey("a")
    assert repr(held) == "Keys(...)"
