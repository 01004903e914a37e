"""The keyring: keys that open what they sealed, through every rotation, until they are destroyed."""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Conflict, KeyringInvalid, NotFound, SealBroken, StorageFailed
from appliance.vault import Container, Generations, Keyring, Keys, create_root
from appliance.vault import keyring as module

ALICE, BOB = uuid.UUID(int=1 << 90), uuid.UUID(int=2 << 90)
CATS, DOGS = uuid.UUID(int=3 << 90), uuid.UUID(int=4 << 90)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keyring"


@pytest.fixture
def root() -> bytes:
    return create_root()


@pytest.fixture
def keyring(path: Path, root: bytes) -> Keyring:
    return Keyring.create(path, root)


def opens(container: Container, sealed: bytes, text: bytes = b"a cat") -> bool:
    return container.unseal("note", sealed, b"1") == text


def seal(container: Container, text: bytes = b"a cat") -> bytes:
    return container.seal("note", text, b"1")


def test_what_a_container_seals_opens_after_a_restart(keyring: Keyring, path: Path, root: bytes) -> None:
    sealed = seal(keyring.add(ALICE, CATS, "dataset"))
    objects = keyring.container(ALICE, CATS).object_key(1)
    looked_up = keyring.container(ALICE, CATS).mac("content", b"x")
    again = Keyring.open(path, root)
    assert opens(again.container(ALICE, CATS), sealed)
    assert again.container(ALICE, CATS).object_key(1) == objects
    assert again.container(ALICE, CATS).mac("content", b"x") == looked_up
    assert again.service.subkey("tokens") == keyring.service.subkey("tokens")
    assert (again.id, again.number) == (keyring.id, keyring.number)
    assert list(again.containers()) == [(ALICE, CATS, "dataset")]


def test_no_two_keys_are_the_same(keyring: Keyring) -> None:
    containers = [keyring.add(owner, uuid.uuid4(), "dataset") for owner in (ALICE, BOB) for _ in range(3)]
    assert len({container.object_key(1) for container in containers}) == 6


def test_a_container_opens_nothing_of_another_one(keyring: Keyring) -> None:
    sealed = seal(keyring.add(ALICE, CATS, "dataset"))
    for other in (keyring.add(ALICE, DOGS, "dataset"), keyring.add(BOB, CATS, "dataset")):
        with pytest.raises(SealBroken):
            other.unseal("note", sealed, b"1")


def test_what_is_sealed_is_bound_to_its_label_and_context(keyring: Keyring) -> None:
    container = keyring.add(ALICE, CATS, "dataset")
    sealed = seal(container)
    for label, context in (("name", b"1"), ("note", b"2")):
        with pytest.raises(SealBroken):
            container.unseal(label, sealed, context)


def test_a_second_key_for_a_container_is_refused(keyring: Keyring) -> None:
    sealed = seal(keyring.add(ALICE, CATS, "dataset"))
    with pytest.raises(Conflict):
        keyring.add(ALICE, CATS, "dataset")
    assert opens(keyring.container(ALICE, CATS), sealed)


def test_destroying_a_container_is_the_erasure(keyring: Keyring, path: Path, root: bytes) -> None:
    container = keyring.add(ALICE, CATS, "dataset")
    kept = seal(keyring.add(ALICE, DOGS, "dataset"))
    sealed = seal(container)
    keyring.destroy(ALICE, CATS)
    keyring.destroy(ALICE, CATS)
    for keys in (keyring, Keyring.open(path, root)):
        with pytest.raises(NotFound):
            keys.container(ALICE, CATS)
        assert opens(keys.container(ALICE, DOGS), kept)
    with pytest.raises((SealBroken, ValueError)):  # also for one who still holds it
        container.unseal("note", sealed, b"1")


def test_what_is_destroyed_while_it_is_opened_is_not_kept(
    path: Path, root: bytes, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring.add(ALICE, CATS, "dataset")
    keyring.add(ALICE, DOGS, "dataset")
    again = Keyring.open(path, root)
    unwrap = module._customer_keys

    def changed_meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        again.destroy(ALICE, CATS)
        again.rotate_container(ALICE, DOGS)
        return unwrap(*arguments)

    for container in (CATS, DOGS):
        monkeypatch.setattr(module, "_customer_keys", changed_meanwhile)
        if container == CATS:
            with pytest.raises(NotFound):
                again.container(ALICE, CATS)
        else:
            assert again.container(ALICE, DOGS).generation == 3


def test_destroyed_keys_in_the_hand_open_and_seal_nothing(keyring: Keyring) -> None:
    cats = keyring.add(ALICE, CATS, "dataset")
    sealed = seal(cats)
    keyring.destroy(ALICE, CATS)
    for use in (
        lambda: seal(cats),
        lambda: opens(cats, sealed),
        lambda: cats.mac("content", b"a cat"),
        lambda: cats.object_key(1),
    ):
        with pytest.raises(SealBroken, match="destroyed"):
            use()


def test_destroying_a_customer_destroys_its_containers_alone(
    keyring: Keyring, path: Path, root: bytes
) -> None:
    keyring.add(ALICE, CATS, "dataset")
    keyring.add(ALICE, DOGS, "collection")
    kept = seal(keyring.add(BOB, DOGS, "dataset"))
    keyring.destroy_customer(ALICE)
    for keys in (keyring, Keyring.open(path, root)):
        assert list(keys.containers()) == [(BOB, DOGS, "dataset")]
        assert opens(keys.container(BOB, DOGS), kept)


def test_no_key_is_made_again_for_a_customer_that_was_erased(
    keyring: Keyring, path: Path, root: bytes
) -> None:
    keyring.add(ALICE, CATS, "dataset")
    for customer in (ALICE, BOB):  # the other one had no key yet
        keyring.destroy_customer(customer)
        with pytest.raises(NotFound):
            keyring.add(customer, DOGS, "document")
    for keys in (keyring, Keyring.open(path, root)):
        assert keys.generations() == []


def test_a_rotated_container_seals_anew_and_opens_what_was(keyring: Keyring, path: Path, root: bytes) -> None:
    old = seal(keyring.add(ALICE, CATS, "dataset"))
    before = keyring.container(ALICE, CATS)
    looked_up = before.mac("content", b"x")
    keyring.rotate_container(ALICE, CATS)
    new = seal(keyring.container(ALICE, CATS))
    assert new[:4] == (2).to_bytes(4)
    for keys in (keyring, Keyring.open(path, root)):
        container = keys.container(ALICE, CATS)
        assert container.generation == 2
        assert opens(container, old)
        assert opens(container, new)
        assert container.object_key(1) != container.object_key(2)
        assert container.mac("content", b"x") == looked_up
    assert opens(before, old)  # one that was being read goes on
    with pytest.raises(SealBroken, match="generation 2"):
        before.unseal("note", new, b"1")


def test_a_rotated_customer_rewraps_and_changes_no_container(
    keyring: Keyring, path: Path, root: bytes
) -> None:
    sealed = seal(keyring.add(ALICE, CATS, "dataset"))
    keyring.rotate_container(ALICE, CATS)
    keyring.rotate_customer(ALICE)
    keyring.rotate_customer(ALICE)
    keyring.add(ALICE, DOGS, "dataset")
    for keys in (keyring, Keyring.open(path, root)):
        assert opens(keys.container(ALICE, CATS), sealed)
        assert keys.container(ALICE, CATS).generation == 2


def test_what_has_no_key_cannot_be_rotated(keyring: Keyring) -> None:
    with pytest.raises(NotFound):
        keyring.rotate_customer(ALICE)
    with pytest.raises(NotFound):
        keyring.rotate_container(ALICE, CATS)
    with pytest.raises(NotFound):
        keyring.container(ALICE, CATS)


def test_a_root_is_rotated_in_two_steps(keyring: Keyring, path: Path, root: bytes) -> None:
    sealed = seal(keyring.add(ALICE, CATS, "dataset"))
    new = create_root()
    keyring.rotate_root(bytes(new))
    keyring.rotate_root(bytes(new))  # interrupted and repeated
    assert keyring.rotation == "restart"
    with pytest.raises(Conflict, match="retire"):
        keyring.rotate_root(create_root())
    with pytest.raises(Conflict, match="old root"):
        keyring.retire_root()
    for either in (root, new):
        assert opens(Keyring.open(path, either).container(ALICE, CATS), sealed)
    between = path.read_bytes()
    rotated = Keyring.open(path, new)
    rotated.retire_root()
    rotated.retire_root()
    assert rotated.rotation is None
    assert opens(Keyring.open(path, new).container(ALICE, CATS), sealed)
    assert Keyring.open(path, new).service.subkey("tokens") == keyring.service.subkey("tokens")
    with pytest.raises(KeyringInvalid, match="another root"):
        Keyring.open(path, root)
    # Whoever has the old root and a copy from between learns nothing of what is new since.
    after = path.read_bytes()
    path.write_bytes(between)
    stolen = Keyring.open(path, root)
    path.write_bytes(after)
    with pytest.raises(SealBroken):
        stolen._now[1].unseal("service", rotated._now[0].service, rotated.id)


def test_what_comes_next_in_a_rotation(keyring: Keyring, path: Path) -> None:
    new = create_root()
    said = [keyring.rotation]
    assert keyring.rotate_root(bytes(new))
    said.append(keyring.rotation)
    assert not keyring.rotate_root(bytes(new))
    rotated = Keyring.open(path, new)
    said.append(rotated.rotation)
    assert not rotated.rotate_root(bytes(new))
    assert rotated.retire_root()
    said.append(rotated.rotation)
    assert not rotated.retire_root()
    assert said == [None, "restart", "retire", None]


def test_a_rotation_is_taken_back_with_the_present_root(keyring: Keyring, path: Path, root: bytes) -> None:
    """A new root that is lost before the restart must not be in the way of every other one."""
    sealed = seal(keyring.add(ALICE, CATS, "dataset"))
    lost, new = create_root(), create_root()
    keyring.rotate_root(lost)
    assert keyring.rotate_root(root)
    assert keyring.rotation is None
    with pytest.raises(KeyringInvalid, match="another root"):
        Keyring.open(path, lost)
    keyring.rotate_root(new)
    for either in (root, new):
        assert opens(Keyring.open(path, either).container(ALICE, CATS), sealed)
    with pytest.raises(Conflict, match="another key"):  # what is in place already is not taken back
        Keyring.open(path, new).rotate_root(root)


def test_a_root_is_not_rotated_to_itself(keyring: Keyring, path: Path, root: bytes) -> None:
    before = path.read_bytes()
    with pytest.raises(Conflict, match="make another one"):
        keyring.rotate_root(root)
    assert path.read_bytes() == before


def test_of_two_roots_at_once_one_is_refused(keyring: Keyring, path: Path) -> None:
    """Each caller was told that its root opens the keyring, so it has to."""
    roots = [create_root() for _ in range(8)]

    def rotate(root: bytes) -> bool:
        try:
            return keyring.rotate_root(root)
        except Conflict:
            return False

    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(rotate, roots))
    assert sum(told) == 1
    assert Keyring.open(path, roots[told.index(True)]).rotation == "retire"


def test_a_container_that_is_opened_while_it_is_rotated_is_the_new_one(keyring: Keyring) -> None:
    keyring.add(ALICE, CATS, "dataset")
    keyring._opened.clear()
    opened, rotations = Container, iter([True])

    def opening(keys: dict[int, Keys]) -> Container:
        if next(rotations, False):
            keyring.rotate_container(ALICE, CATS)
        return opened(keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.vault.keyring.Container", opening)
        assert keyring.container(ALICE, CATS).generation == 2
    assert keyring.container(ALICE, CATS).generation == 2


def test_a_container_that_is_opened_while_it_is_destroyed_is_gone(keyring: Keyring) -> None:
    keyring.add(ALICE, CATS, "dataset")
    keyring._opened.clear()
    opened = Container

    def opening(keys: dict[int, Keys]) -> Container:
        keyring.destroy(ALICE, CATS)
        return opened(keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.vault.keyring.Container", opening)
        with pytest.raises(NotFound):
            keyring.container(ALICE, CATS)
    assert not keyring._opened


def test_generations_are_told_without_a_key(keyring: Keyring) -> None:
    keyring.add(ALICE, CATS, "dataset")
    keyring.add(BOB, DOGS, "collection")
    keyring.rotate_container(ALICE, CATS)
    keyring.rotate_customer(BOB)
    assert keyring.generations() == [
        Generations(ALICE, 1, ((CATS, "dataset", (1, 2)),)),
        Generations(BOB, 2, ((DOGS, "collection", (1,)),)),
    ]


def test_an_erasure_reaches_old_copies_once_the_root_is_rotated(
    keyring: Keyring, path: Path, root: bytes
) -> None:
    keyring.add(ALICE, CATS, "dataset")
    backup = path.read_bytes()
    keyring.destroy(ALICE, CATS)
    new = create_root()
    keyring.rotate_root(bytes(new))
    Keyring.open(path, new).retire_root()
    path.write_bytes(backup)
    with pytest.raises(KeyringInvalid):  # the old root is thrown away
        Keyring.open(path, new)


def test_ten_thousand_containers_are_rotated_in_two_seconds(path: Path, root: bytes) -> None:
    keyring = Keyring.create(path, root)
    with pytest.MonkeyPatch.context() as patch:  # ten thousand files are not what is measured
        patch.setattr("appliance.vault.keyring._encoded", lambda *_: b"")
        patch.setattr("appliance.vault.keyring.write_atomically", lambda *_, **__: None)
        for number in range(10_000):
            keyring.add(ALICE if number % 2 else uuid.uuid4(), uuid.uuid4(), "dataset")
    rotations: list[Callable[[], object]] = [
        lambda: keyring.rotate_root(create_root()),
        lambda: keyring.rotate_customer(ALICE),
    ]
    for rotate in rotations:
        began = time.process_time()
        rotate()
        assert time.process_time() - began < 2.0
    assert len(list(Keyring.open(path, root).containers())) == 10_000


def test_any_changed_byte_is_noticed(keyring: Keyring, path: Path, root: bytes) -> None:
    keyring.add(ALICE, CATS, "dataset")
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(KeyringInvalid):
            Keyring.open(path, root)
    for size in range(0, len(good), 7):
        path.write_bytes(good[:size])
        with pytest.raises(KeyringInvalid):
            Keyring.open(path, root)


def test_a_missing_keyring_is_told_from_a_bad_one(path: Path, root: bytes) -> None:
    with pytest.raises(NotFound):
        Keyring.open(path, root)


def test_a_keyring_is_never_made_over_another(keyring: Keyring, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Conflict):
        Keyring.create(path, create_root())
    assert path.read_bytes() == before


def test_a_key_goes_to_the_folder_that_was_opened(tmp_path: Path, root: bytes) -> None:
    """What covers the folder by then may be gone at the next start, and what the key seals is not."""
    state = tmp_path / "state"
    state.mkdir()
    keyring = Keyring.create(state / "keyring", root)
    aside = state.rename(tmp_path / "aside")
    state.mkdir()
    sealed = seal(keyring.add(ALICE, CATS, "dataset"))
    assert list(state.iterdir()) == []
    assert opens(Keyring.open(aside / "keyring", root).container(ALICE, CATS), sealed)


def test_a_change_that_cannot_be_written_is_none(keyring: Keyring, path: Path) -> None:
    sealed = seal(keyring.add(ALICE, CATS, "dataset"))
    before, number = path.read_bytes(), keyring.number

    def refuse(*_: object, **__: object) -> None:
        raise StorageFailed("no space left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.vault.keyring.write_atomically", refuse)
        for change in (
            lambda: keyring.destroy(ALICE, CATS),
            lambda: keyring.rotate_customer(ALICE),
            lambda: keyring.rotate_root(create_root()),
            lambda: keyring.add(BOB, DOGS, "dataset"),
        ):
            with pytest.raises(StorageFailed):
                change()
    assert (path.read_bytes(), keyring.number) == (before, number)
    assert opens(keyring.container(ALICE, CATS), sealed)
    assert list(keyring.containers()) == [(ALICE, CATS, "dataset")]


def test_no_key_is_in_the_file_or_in_what_is_printed(keyring: Keyring, path: Path) -> None:
    container = keyring.add(ALICE, CATS, "dataset")
    file = path.read_bytes()
    for key in (container.object_key(1), keyring.service.subkey("tokens")):
        assert key not in file
        assert key.hex() not in repr(keyring) + repr(container)


def test_wiped_it_opens_nothing(keyring: Keyring) -> None:
    container = keyring.add(ALICE, CATS, "dataset")
    sealed = seal(container)
    keyring.wipe()
    with pytest.raises((SealBroken, ValueError)):
        container.unseal("note", sealed, b"1")
    with pytest.raises(ValueError, match="wiped"):
        keyring.service.subkey("tokens")


def test_a_container_that_is_erased_in_the_midst_of_its_use_is_erased(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = Container._of

    def erased_since(container: Container, generation: int) -> Keys:
        found = looked_up(container, generation)
        keyring.destroy(ALICE, CATS)
        return found

    monkeypatch.setattr(Container, "_of", erased_since)
    acts: tuple[Callable[[Container], bytes], ...] = (
        lambda held: held.object_key(1),
        lambda held: held.seal("note", b"data", b""),
        lambda held: held.mac("content", b"data"),
    )
    for act in acts:
        container = keyring.add(ALICE, CATS, "dataset")
        with pytest.raises(SealBroken, match="destroyed"):
            act(container)


def test_a_state_from_before_keyrings_keeps_its_keys(path: Path, root: bytes) -> None:
    assert Keyring.create(path, root, service=root).service.subkey("tokens") is not None
    assert Keyring.open(path, root).service.subkey("tokens") == Keys(root).subkey("tokens")
    assert path.stat().st_mode & 0o777 == 0o600
