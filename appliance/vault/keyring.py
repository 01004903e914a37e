"""The keyring: every key that something at rest is sealed with, each wrapped by the one above it.

    root (a credential, in no file of the state folder)
      -> the keyring's own key -> service keys
                               -> customer -> container (dataset, collection, model, document), in generations

One small file that each change replaces whole and durably: a rotation is done or not done, a key that was
destroyed is in it no more. While the root is being rotated two roots open it. What was destroyed is gone from
every older copy of the file as well, once a root that opens none of them is the only one left.
"""

import hmac
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from appliance.errors import Conflict, KeyringInvalid, NotFound, SealBroken, StorageFailed, VolumeFull
from appliance.vault.keys import KEY_BYTES, Keys
from appliance.volume import BALLAST, FULL, Ballast, HeldFolder, write_atomically

Kind = Literal["dataset", "collection", "model", "document"]

_MAGIC = b"appliance keyring 1\n"
_MAC_BYTES = 32
_LEAST_BALLAST_BYTES = 64 << 10
_ROOT, _OWN, _SERVICE, _CUSTOMER, _CONTAINER = "root", "keyring", "service", "customer", "container"


class _Wrapped(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    generation: int
    key: bytes


class _Slot(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    root: bytes  # which root opens it
    key: bytes  # the keyring's own key, wrapped


class _Container(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    kind: Kind
    keys: tuple[_Wrapped, ...]  # oldest first; what is new is sealed with the last one


class _Customer(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    key: _Wrapped
    containers: dict[bytes, _Container]


class _Content(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    id: bytes
    number: int  # rises with every change
    slots: tuple[_Slot, ...]  # the newest root last
    service: bytes
    customers: dict[bytes, _Customer]


class Container:
    """The keys of one container: seals objects and rows under the newest generation, opens under any.

    Once they are destroyed everything raises SealBroken.
    """

    __slots__ = ("_keys", "generation")

    def __init__(self, keys: dict[int, Keys]) -> None:
        self._keys = keys
        self.generation = max(keys)
        """The generation that seals what is new."""

    def object_key(self, generation: int) -> bytes:
        """What objects of a generation are sealed with, 32 bytes. Raises SealBroken when there is none."""
        with _destroyed_meanwhile():
            return self._of(generation).subkey("objects")

    def seal(self, label: str, data: bytes, context: bytes) -> bytes:
        """`data` bound to `label` and `context`; the generation of its key comes first, 4 bytes."""
        with _destroyed_meanwhile():
            sealed = self._of(self.generation).seal(label, data, context)
        return self.generation.to_bytes(4) + sealed

    def unseal(self, label: str, sealed: bytes, context: bytes) -> bytes:
        """What `seal` was given. Raises SealBroken when it was sealed otherwise or has changed."""
        return self._of(int.from_bytes(sealed[:4])).unseal(label, sealed[4:], context)

    def mac(self, label: str, data: bytes | bytearray | memoryview) -> bytes:
        """HMAC-SHA256 of `data`, the same for as long as the container lives: for look-ups by content."""
        with _destroyed_meanwhile():
            return self._of(min(self._keys, default=0)).mac(label, data)

    def wipe(self) -> None:
        """Overwrite the keys: nothing opens any more."""
        wiped, self._keys = self._keys, {}
        for keys in wiped.values():
            keys.wipe()

    def _of(self, generation: int) -> Keys:
        found = self._keys.get(generation)
        if found is None:
            raise SealBroken(f"there is no key of generation {generation}: it was destroyed, or is another's")
        return found


@dataclass(frozen=True, slots=True)
class Generations:
    """What may be told of a customer's keys: how often each was rotated, counted from 1, and no key."""

    customer: UUID
    generation: int
    containers: tuple[tuple[UUID, Kind, tuple[int, ...]], ...]
    """Id, kind and the generations that there are, oldest first."""


class Keyring:
    """The opened keyring: `Keyring.create` once, `Keyring.open` ever after.

    Changes are durable when they return. They block on the disk, may come from any thread, and run one after
    the other; reading never waits for them. All raise StorageFailed and VolumeFull, which change nothing.

    What destroys keys finds room on a full volume: a ballast beside the file, made by its first change, gives
    way for the new copy, and comes back where the old one was.
    """

    def __init__(self, path: Path, root: Keys, content: _Content, own: Keys) -> None:
        self._path = path
        self._folder = HeldFolder(path.parent)
        self._root = root
        # Changed together, so that a reader never sees one of before and one of after.
        self._now = content, own
        self._changing = threading.Lock()
        self._ended: set[bytes] = set()
        """Customers whose keys were destroyed: what was under way for them makes none anew."""
        self._opened: dict[tuple[UUID, UUID], Container] = {}
        self.service = Keys(own.unseal(_SERVICE, content.service, content.id))
        """Labelled keys of the appliance itself, for tokens, links and webhooks: no rotation changes them."""

    @classmethod
    def create(cls, path: Path, root: bytes | bytearray, service: bytes | None = None) -> "Keyring":
        """A new keyring at `path`, durable on return; its service key is `service`, by default a random one.

        Takes `root` over, as Keys does. Raises Conflict when there is a file, StorageFailed.
        """
        if path.exists():
            raise Conflict(f"{path} exists already")
        identity, keys, own = os.urandom(16), Keys(root), os.urandom(KEY_BYTES)
        wrapped = Keys(own).seal(_SERVICE, service or os.urandom(KEY_BYTES), identity)
        content = _Content(identity, 1, (_slot(keys, own, identity),), wrapped, {})
        write_atomically(path, _encoded(content, Keys(own)))
        return cls(path, keys, content, Keys(own))

    @classmethod
    def open(cls, path: Path, root: bytes | bytearray) -> "Keyring":
        """The keyring at `path`. Takes `root` over, as Keys does.

        Raises NotFound when there is no file; KeyringInvalid when it is damaged or made for another root.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"{path} does not exist") from None
        except OSError as error:
            raise KeyringInvalid(f"{path}: {error.strerror}") from error
        body, mac = data[len(_MAGIC) : -_MAC_BYTES], data[-_MAC_BYTES:]
        try:
            content = msgspec.msgpack.decode(body, type=_Content) if data.startswith(_MAGIC) else None
        except ValueError:
            content = None
        if content is None:
            raise KeyringInvalid(f"{path} is damaged, or no keyring: restore it from its backup")
        keys = Keys(root)
        slot = next((slot for slot in content.slots if slot.root == _root_id(keys, content.id)), None)
        if slot is None:
            reason = f"{path} was made for another root key than the one given"
            raise KeyringInvalid(f"{reason}: put the right root.key in place, or restore the file beside it")
        try:
            own = Keys(keys.unseal(_ROOT, slot.key, content.id))
        except SealBroken:
            own = None
        if own is None or not hmac.compare_digest(own.mac(_OWN, body), mac):
            raise KeyringInvalid(f"{path} was changed: restore it from its backup")
        return cls(path, keys, content, own)

    @property
    def id(self) -> bytes:
        """16 random bytes that tell this keyring from every other, the same for as long as it lives."""
        return self._now[0].id

    @property
    def number(self) -> int:
        """Rises with every change: of two copies, the higher one is the newer."""
        return self._now[0].number

    @property
    def rotation(self) -> Literal["restart", "retire"] | None:
        """What comes next in a rotation of the root: a start with the new one, or its end; None for none."""
        content = self._now[0]
        if len(content.slots) == 1:
            return None
        return "retire" if _root_id(self._root, content.id) == content.slots[-1].root else "restart"

    def generations(self) -> list[Generations]:
        """Of every customer that has a key."""
        return [
            Generations(
                UUID(bytes=customer),
                held.key.generation,
                tuple(
                    (UUID(bytes=container), found.kind, tuple(key.generation for key in found.keys))
                    for container, found in held.containers.items()
                ),
            )
            for customer, held in self._now[0].customers.items()
        ]

    def copy(self) -> bytes:
        """The file as it is now, for a backup: worth nothing without a root."""
        return _encoded(*self._now)

    def containers(self) -> Iterator[tuple[UUID, UUID, Kind]]:
        """Customer, id and kind of every container that has a key."""
        for customer, held in self._now[0].customers.items():
            for container, keys in held.containers.items():
                yield UUID(bytes=customer), UUID(bytes=container), keys.kind

    def container(self, customer: UUID, container: UUID) -> Container:
        """The keys of a container. Raises NotFound when it has none: they were destroyed, or never were."""
        while (opened := self._opened.get((customer, container))) is None:
            content, own = self._now
            held = content.customers.get(customer.bytes)
            found = None if held is None else held.containers.get(container.bytes)
            if held is None or found is None:
                raise NotFound("there is no key of this container: it was destroyed, or never was one")
            parent = _customer_keys(own, customer, held)
            opened = Container(
                {
                    wrapped.generation: Keys(
                        parent.unseal(_CONTAINER, wrapped.key, _context(held, customer, container, wrapped))
                    )
                    for wrapped in found.keys
                }
            )
            self._opened[customer, container] = opened
            if self._now[0] is content:
                break
            # A change has come between: it may have rotated or destroyed these very keys, and looked for them
            # here before they were.
            self._opened.pop((customer, container), None)
        return opened

    def add(self, customer: UUID, container: UUID, kind: Kind) -> Container:
        """A key for a new container. Raises Conflict when it has one, NotFound for an erased customer."""

        def act(own: Keys, customers: dict[bytes, _Customer]) -> None:
            if customer.bytes in self._ended:
                raise NotFound("no such customer")
            held = customers.get(customer.bytes) or _new_customer(own, customer, 1)
            if container.bytes in held.containers:
                raise Conflict("this container has a key already")
            wrapped = _new_key(own, held, customer, container, 1)
            containers = held.containers | {container.bytes: _Container(kind, (wrapped,))}
            customers[customer.bytes] = _Customer(held.key, containers)

        self._change(act)
        return self.container(customer, container)

    def destroy(self, customer: UUID, container: UUID) -> None:
        """Erase a container's keys, and with them all that they seal; none there: nothing to do."""

        def act(_: Keys, customers: dict[bytes, _Customer]) -> None:
            held = customers.get(customer.bytes)
            if held is not None and container.bytes in held.containers:
                left = {key: value for key, value in held.containers.items() if key != container.bytes}
                customers[customer.bytes] = _Customer(held.key, left)

        held = self._now[0].customers.get(customer.bytes)
        if held is not None and container.bytes in held.containers:
            self._change(act, destroying=True)
        self._forget(customer, container)

    def destroy_customer(self, customer: UUID) -> None:
        """Erase a customer's keys, and with them all that its containers seal; `add` makes none for it again.

        None there: nothing is written.
        """
        with self._changing:
            self._ended.add(customer.bytes)
        if customer.bytes in self._now[0].customers:
            self._change(lambda _, customers: customers.pop(customer.bytes, None), destroying=True)
        for owner, container in list(self._opened):
            if owner == customer:
                self._forget(owner, container)

    def rotate_container(self, customer: UUID, container: UUID) -> None:
        """Seal what is new under a new key; what there is stays as it is and opens. Raises NotFound."""

        def act(own: Keys, customers: dict[bytes, _Customer]) -> None:
            held = customers.get(customer.bytes)
            if held is None or container.bytes not in held.containers:
                raise NotFound("there is no key of this container")
            found = held.containers[container.bytes]
            wrapped = _new_key(own, held, customer, container, found.keys[-1].generation + 1)
            rotated = _Container(found.kind, (*found.keys, wrapped))
            customers[customer.bytes] = _Customer(held.key, held.containers | {container.bytes: rotated})

        self._change(act)
        self._opened.pop((customer, container), None)

    def rotate_customer(self, customer: UUID) -> None:
        """Wrap the keys of a customer's containers anew, under a new key. Raises NotFound."""

        def act(own: Keys, customers: dict[bytes, _Customer]) -> None:
            held = customers.get(customer.bytes)
            if held is None:
                raise NotFound("this customer has no key")
            fresh = _new_customer(own, customer, held.key.generation + 1)
            old, new = _customer_keys(own, customer, held), _customer_keys(own, customer, fresh)

            def rewrapped(container: bytes, wrapped: _Wrapped) -> _Wrapped:
                named = UUID(bytes=container)
                key = old.unseal(_CONTAINER, wrapped.key, _context(held, customer, named, wrapped))
                sealed = new.seal(_CONTAINER, key, _context(fresh, customer, named, wrapped))
                return _Wrapped(wrapped.generation, sealed)

            containers = {
                container: _Container(found.kind, tuple(rewrapped(container, key) for key in found.keys))
                for container, found in held.containers.items()
            }
            customers[customer.bytes] = _Customer(fresh.key, containers)

        self._change(act)

    def rotate_root(self, root: bytes | bytearray) -> bool:
        """Have `root` open the keyring as well, under a new key of its own; the present one goes on to.

        Start the appliance with the new root, then `retire_root`. Before that start, `root` being the present
        one goes back: the new one opens nothing any more. Takes `root` over, as Keys does. Returns False when
        that root is being rotated to already. Raises Conflict for the root that there is, and while another
        rotation is not ended.
        """
        new = Keys(root)
        try:
            with self._changing:
                content, rotation = self._now[0], self.rotation
                asked = _root_id(new, content.id)
                if rotation is None and asked == content.slots[-1].root:
                    raise Conflict("this is the root key that the keyring has: make another one")
                if asked == content.slots[-1].root:
                    return False
                if rotation == "restart" and asked == _root_id(self._root, content.id):
                    self._rekey(self._root)
                elif rotation is not None:
                    raise Conflict("the root is being rotated to another key: retire the old one first")
                else:
                    self._rekey(self._root, new)
        finally:
            new.wipe()
        return True

    def retire_root(self) -> bool:
        """End a rotation: from now on only the root that opened this keyring opens it.

        Returns False when there is no rotation; raises Conflict when that root is still the old one.
        """
        with self._changing:
            if self.rotation == "restart":
                fix = "start it with the new one first"
                raise Conflict(f"the appliance still runs with the old root key: {fix}")
            if self.rotation is None:
                return False
            self._rekey(self._root)
        return True

    def wipe(self) -> None:
        """Overwrite every key in memory."""
        for container in self._opened.values():
            container.wipe()
        self._opened.clear()
        for keys in (self.service, self._now[1], self._root):
            keys.wipe()
        self._folder.close()

    def _rekey(self, *roots: Keys) -> None:
        """Everything under a new key of the keyring itself, which these roots open. Under `_changing`."""
        content, old = self._now
        own = os.urandom(KEY_BYTES)
        new = Keys(own)
        customers = {}
        for customer, held in content.customers.items():
            context = customer + held.key.generation.to_bytes(4)
            wrapped = new.seal(_CUSTOMER, old.unseal(_CUSTOMER, held.key.key, context), context)
            customers[customer] = _Customer(_Wrapped(held.key.generation, wrapped), held.containers)
        service = new.seal(_SERVICE, old.unseal(_SERVICE, content.service, content.id), content.id)
        slots = tuple(_slot(root, own, content.id) for root in roots)
        changed = _Content(content.id, content.number + 1, slots, service, customers)
        self._write(_encoded(changed, new))
        self._now = changed, new

    def _change(
        self, act: Callable[[Keys, dict[bytes, _Customer]], object], *, destroying: bool = False
    ) -> None:
        with self._changing:
            content, own = self._now
            customers = dict(content.customers)
            act(own, customers)
            changed = _Content(content.id, content.number + 1, content.slots, content.service, customers)
            self._write(_encoded(changed, own), destroying=destroying)
            self._now = changed, own

    def _write(self, data: bytes, *, destroying: bool = False) -> None:
        ballast = Ballast(self._folder, ballast_of(self._path.name), _ballast_bytes(len(data)))
        try:
            self._replace(data)
        except VolumeFull:
            if not (destroying and ballast.release()):
                raise
            self._replace(data)
        with suppress(StorageFailed, VolumeFull):  # the key is what counts
            ballast.restore()

    def _replace(self, data: bytes) -> None:
        # By the descriptor: what is mounted on the path by now may be gone tomorrow, and this key with it.
        try:
            write_atomically(self._path, data, dir_fd=self._folder.fd)
        except StorageFailed as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL:
                raise VolumeFull(str(error)) from error
            raise

    def _forget(self, customer: UUID, container: UUID) -> None:
        opened = self._opened.pop((customer, container), None)
        if opened is not None:
            opened.wipe()


def ballast_of(keyring: str) -> str:
    """What the file beside a keyring is called that holds room for its next copy."""
    return f".{keyring}{BALLAST}"


def _ballast_bytes(keyring: int) -> int:
    """Room for a copy of a keyring of so many bytes, whole powers of two, so that it is seldom made anew."""
    return max(_LEAST_BALLAST_BYTES, 1 << (2 * keyring).bit_length())


def identity_of(data: bytes) -> bytes | None:
    """The `id` that a keyring file says it has, not proven; None for what is none."""
    if not data.startswith(_MAGIC):
        return None
    try:
        return msgspec.msgpack.decode(data[len(_MAGIC) : -_MAC_BYTES], type=_Content).id
    except ValueError:
        return None


@contextmanager
def _destroyed_meanwhile() -> Iterator[None]:
    """What another thread wiped just after they were looked up is gone as if it had been before."""
    try:
        yield
    except ValueError:
        raise SealBroken("these keys were destroyed") from None


def _new_customer(own: Keys, customer: UUID, generation: int) -> _Customer:
    wrapped = own.seal(_CUSTOMER, os.urandom(KEY_BYTES), customer.bytes + generation.to_bytes(4))
    return _Customer(_Wrapped(generation, wrapped), {})


def _new_key(own: Keys, held: _Customer, customer: UUID, container: UUID, generation: int) -> _Wrapped:
    context = _context(held, customer, container, _Wrapped(generation, b""))
    keys = _customer_keys(own, customer, held)
    return _Wrapped(generation, keys.seal(_CONTAINER, os.urandom(KEY_BYTES), context))


def _customer_keys(own: Keys, customer: UUID, held: _Customer) -> Keys:
    return Keys(own.unseal(_CUSTOMER, held.key.key, customer.bytes + held.key.generation.to_bytes(4)))


def _context(held: _Customer, customer: UUID, container: UUID, wrapped: _Wrapped) -> bytes:
    generations = held.key.generation.to_bytes(4) + wrapped.generation.to_bytes(4)
    return customer.bytes + container.bytes + generations


def _root_id(root: Keys, identity: bytes) -> bytes:
    return root.mac("root id", identity)[:8]


def _slot(root: Keys, own: bytes, identity: bytes) -> _Slot:
    return _Slot(_root_id(root, identity), root.seal(_ROOT, own, identity))


def _encoded(content: _Content, own: Keys) -> bytes:
    body = msgspec.msgpack.encode(content)
    return _MAGIC + body + own.mac(_OWN, body)
