"""The installed bundles: what a bundle is says `manifest`. Nothing heavy is imported here."""

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.errors import Conflict, InvalidInput, NotFound, NotInstalled, StorageFailed, VolumeFull
from appliance.ledger import Connection, Ledger
from appliance.recognition import inspection, manifest, staging
from appliance.recognition.bundle import Bundle, Damaged, TaskId
from appliance.recognition.catalogue import Catalogue
from appliance.recognition.manifest import Label, Manifest
from appliance.recognition.preprocessing import Preprocessing
from appliance.volume import HeldFolder, is_removed, publish_tree, remove_tree

__all__ = ["Bundle", "Bundles", "Catalogue", "Damaged", "Label", "Preprocessing", "TaskId", "read"]

_log = logging.getLogger(__name__)
_SYSTEM = Actor("system", "bundles")
_STAGED = ".staged"

Inspect = Callable[[Path], Awaitable[None]]  # of a model file, before anything loads it
Try = Callable[[Bundle], Awaitable[None]]  # of a bundle before it is listed: it raises InvalidInput
Unload = Callable[[Bundle], Awaitable[None]]  # of a bundle that is no longer listed, before its files go


def read(folder: Path) -> Manifest:
    """The manifest of the bundle at `folder`, every file of which was verified just now.

    Raises InvalidInput naming the folder and the reason, as `manifest.verify` says.
    """
    try:
        return manifest.verify(folder).manifest
    except InvalidInput as refusal:
        raise InvalidInput(f"{folder}: {refusal}") from refusal


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    version: str
    task: TaskId
    digest: bytes
    active: bool
    customers: frozenset[CustomerId] | None


class Bundles:
    """The bundles that may serve: their files under `folder`, NAME@VERSION each, their list in the ledger.

    A task is a name; of its versions the active one answers where none is asked for. Installing never changes
    what is answered already: the first version of a name is active until another one is activated, and of
    several active bundles for one route, and of several backbones, the one installed first serves.

    A bundle whose files are not what was installed is left out (`damaged`), and its place is kept: what it
    answered is answered by no other, until it is installed again, removed, or another version activated.
    """

    def __init__(
        self,
        ledger: Ledger,
        folder: Path,
        clock: Callable[[], float],
        *,
        trust: Callable[[manifest.Verified], None],
        inspect: Inspect = inspection.inspect,
    ) -> None:
        self._ledger = ledger
        self._trust = trust
        self._inspect = inspect
        self._folder = folder
        self._clock = clock
        self._installed: dict[str, Bundle | Damaged] = {}  # by pin, in the order of installation
        self._digests: dict[str, bytes] = {}
        # A trial takes its time: what is installed is changed and rolled back beside it.
        self._installing, self._changing = asyncio.Lock(), asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Verify every installed bundle again, and clear away what interrupted installations left."""
        rows = await self._ledger.read(_rows)
        for row, bundle in zip(rows, await asyncio.to_thread(self._open, rows), strict=True):
            self._installed[bundle.pin] = bundle
            self._digests[bundle.pin] = row.digest
        self._held = await asyncio.to_thread(HeldFolder, self._folder)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._held.close()
        self._installed.clear()
        self._digests.clear()

    async def install(
        self,
        actor: Actor,
        files: staging.Files,
        *,
        activate: bool = True,
        customers: Iterable[CustomerId] | None = None,
        attempt: Try | None = None,
    ) -> Bundle:
        """Write the files as they come, verify and `attempt` them, and list the bundle, durably and audited.

        The first version of a name is active at once unless told otherwise, a later one never; it also says
        which `customers` may use the task, all when None. The same bundle once more gives the same answer,
        and puts its files right where they are not what was installed.
        Raises InvalidInput with the reason of a refusal, Conflict when another content has this name and
        version, StorageFailed, VolumeOffline, and whatever `files` raises; nothing is installed then, and
        nothing left behind. One is tried at a time; activating and removing do not wait for that.
        """
        await asyncio.to_thread(self._held.check)
        chosen = None if customers is None else frozenset(customers)
        staged = self._folder / f".{uuid.uuid4()}{_STAGED}"
        try:
            verified = await staging.receive(files, staged)
            self._trust(verified)
            await self._inspect(staged / manifest.MODEL)
            async with self._installing:
                bundle = self._place(verified, activate=activate, customers=chosen)
                known = self._installed.get(bundle.pin)
                if isinstance(known, Bundle) and await asyncio.to_thread(self._fault, known) is None:
                    return known
                if attempt is not None and known is None:
                    await attempt(replace(bundle, folder=staged, model=staged / manifest.MODEL, active=False))
                async with self._changing:
                    # Once more: its other versions may have come and gone meanwhile.
                    bundle = self._place(verified, activate=activate, customers=chosen)
                    return await self._publish(actor, bundle, verified.digest, staged)
        finally:
            await asyncio.to_thread(remove_tree, staged)

    async def activate(self, actor: Actor, name: str, version: str) -> Bundle:
        """Have this version answer for its task and routes from now on, durably and audited.

        Raises NotFound, StorageFailed, and Conflict for a damaged one.
        """
        async with self._changing:
            bundle = self._named(name, version)
            if isinstance(bundle, Damaged):
                raise Conflict(f"{name} {version} is damaged ({bundle.fault}): install it again first")
            if bundle.active:
                return bundle
            now = int(self._clock() * 1000)

            def act(connection: Connection) -> None:
                connection.execute("UPDATE bundle_tasks SET active = ? WHERE name = ?", (version, name))
                facts: dict[str, object] = {"bundle": bundle.pin}
                record(connection, now, actor, Event.BUNDLE_ACTIVATE, None, bundle.task, facts)

            def then(_: None) -> None:
                for pin, other in self._installed.items():
                    if other.name == name:
                        self._installed[pin] = replace(other, active=other.version == version)

            await self._ledger.write(act, then=then)
            return replace(bundle, active=True)

    async def remove(
        self, actor: Actor, name: str, version: str, *, unload: Unload | None = None
    ) -> Bundle | Damaged:
        """Take a version away, durably and audited, `unload` it, then its files go; returns what it was.

        Raises NotFound, StorageFailed, VolumeOffline, and Conflict for the active one of several versions.
        """
        await asyncio.to_thread(self._held.check)
        async with self._changing:
            bundle = self._named(name, version)
            others = [one for one in self._installed.values() if one.name == name and one != bundle]
            if bundle.active and others:
                listed = ", ".join(one.version for one in others)
                raise Conflict(f"{name} {version} is active: activate another version first ({listed})")
            now = int(self._clock() * 1000)

            def act(connection: Connection) -> None:
                connection.execute("DELETE FROM bundles WHERE name = ? AND version = ?", (name, version))
                if not others:
                    connection.execute("DELETE FROM bundle_tasks WHERE name = ?", (name,))
                facts: dict[str, object] = {"bundle": bundle.pin}
                record(connection, now, actor, Event.BUNDLE_REMOVE, None, bundle.task, facts)

            def then(_: None) -> None:
                del self._installed[bundle.pin], self._digests[bundle.pin]

            await self._ledger.write(act, then=then)
            if unload is not None and isinstance(bundle, Bundle):
                await unload(bundle)  # who is being answered may need the model to be loaded once more
            # A crash before this leaves a folder without a row, which the next start clears away.
            await asyncio.to_thread(remove_tree, self._folder / bundle.pin)
            return bundle

    async def verify(self) -> list[tuple[Bundle | Damaged, str | None]]:
        """Every bundle with the reason why its files are not what was installed, None where they are."""
        bundles = self.all()
        return list(zip(bundles, await asyncio.to_thread(lambda: [*map(self._fault, bundles)]), strict=True))

    async def report(self, pin: str, fault: str) -> None:
        """Have the log and the audit log tell of a bundle that was found damaged.

        A ledger that takes nothing is a finding of its own, and no reason to stop.
        """
        _log.error("bundle %s is damaged: %s; install it again", pin, fault)
        known = self._installed.get(pin)
        now, facts = int(self._clock() * 1000), {"bundle": pin, "reason": fault}

        def act(connection: Connection) -> None:
            task = None if known is None else known.task
            record(connection, now, _SYSTEM, Event.BUNDLE_DAMAGED, None, task, dict[str, object](facts))

        try:
            await self._ledger.write(act)
        except (StorageFailed, VolumeFull) as error:
            _log.error("that bundle %s is damaged is not in the audit log: %s", pin, error)

    def all(self) -> Sequence[Bundle | Damaged]:
        """All bundles in the order of installation."""
        return tuple(self._installed.values())

    def list(self) -> Sequence[Bundle]:
        """Those that can serve, in the order of installation."""
        return tuple(one for one in self._installed.values() if isinstance(one, Bundle))

    def damaged(self) -> Sequence[Damaged]:
        """Those that were found damaged at the start, in the order of installation."""
        return tuple(one for one in self._installed.values() if isinstance(one, Damaged))

    def catalogue(self, customer: CustomerId | None = None) -> Catalogue:
        """The bundles that a customer may use; without one, all."""
        return Catalogue(bundle for bundle in self.all() if customer is None or bundle.for_customer(customer))

    def backbone(self, pin: str | None = None) -> Bundle:
        """The bundle whose output `embedding` search compares: the one of a pin, or the active one.

        Raises NotInstalled.
        """
        for bundle in self._installed.values():
            wanted = bundle.active if pin is None else bundle.pin == pin
            if isinstance(bundle, Damaged) and wanted and (pin is not None or bundle.kind == "backbone"):
                raise NotInstalled(bundle.told)
            if isinstance(bundle, Bundle) and bundle.kind == "backbone" and wanted:
                return bundle
        missing = "no backbone is active" if pin is None else f"the backbone {pin} is not installed"
        raise NotInstalled(f"{missing}: appliance bundle install PATH")

    def _named(self, name: str, version: str) -> Bundle | Damaged:
        bundle = self._installed.get(f"{name}@{version}")
        if bundle is None:
            raise NotFound("no such bundle")
        return bundle

    def _open(self, rows: Sequence[_Row]) -> Sequence[Bundle | Damaged]:
        pins = {f"{row.name}@{row.version}" for row in rows}
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            others = [path for path in self._folder.iterdir() if path.name not in pins]
        except OSError as error:
            raise StorageFailed(f"{self._folder}: {error.strerror}") from error
        for path in others:
            if not (path.suffix == _STAGED or is_removed(path) or (path.is_dir() and "@" in path.name)):
                _log.warning("%s is none of the appliance's, and stays there", path)
                continue
            try:
                remove_tree(path)
            except StorageFailed as error:
                _log.warning("what an installation left is not removed yet: %s", error)
        return [self._opened(row) for row in rows]

    def _opened(self, row: _Row) -> Bundle | Damaged:
        folder = self._folder / f"{row.name}@{row.version}"
        try:
            verified = _verify(folder, row.digest)
        except InvalidInput as fault:
            said = _stated(folder, row.digest)
            return Damaged(
                row.name,
                row.version,
                None if said is None else said.kind,
                row.task,
                () if said is None else said.routes,
                str(fault),
                row.active,
                row.customers,
            )
        return replace(_bundle(verified, folder, row.task, row.customers), active=row.active)

    def _fault(self, bundle: Bundle | Damaged) -> str | None:
        if (digest := self._digests.get(bundle.pin)) is None:
            return "it was removed meanwhile"
        try:
            _verify(self._folder / bundle.pin, digest)
        except InvalidInput as fault:
            return str(fault)
        return None if isinstance(bundle, Bundle) else f"it was damaged at the start: {bundle.fault}"

    def _place(
        self, verified: manifest.Verified, *, activate: bool, customers: frozenset[CustomerId] | None
    ) -> Bundle:
        """What the verified files are going to be. Raises Conflict, InvalidInput."""
        name, version = verified.manifest.name, verified.manifest.version
        pin = f"{name}@{version}"
        known = next((one for one in self._installed.values() if one.name == name), None)
        if pin in self._installed and self._digests[pin] != verified.digest:
            raise Conflict(
                f"{name} {version} is installed with another content: give the new one another version"
            )
        if customers is not None and verified.manifest.kind == "backbone":
            raise InvalidInput("a backbone serves the searches of everybody: it is for no customer alone")
        if known is not None:
            if customers not in {None, known.customers}:
                raise Conflict(f"who may use {name} was said with its first version")
            task, customers = known.task, known.customers
        else:
            task = TaskId(str(uuid.uuid4()))
        bundle = _bundle(verified, self._folder / pin, task, customers)
        same = self._installed.get(pin)
        return replace(bundle, active=known is None and activate if same is None else same.active)

    async def _publish(self, actor: Actor, bundle: Bundle, digest: bytes, staged: Path) -> Bundle:
        first = all(one.name != bundle.name for one in self._installed.values())
        repairs = bundle.pin in self._installed
        now = int(self._clock() * 1000)
        customers = None if bundle.customers is None else json.dumps(sorted(bundle.customers))

        def act(connection: Connection) -> Bundle:
            if first:
                connection.execute(
                    "INSERT INTO bundle_tasks (name, task, active, customers) VALUES (?, ?, ?, ?)",
                    (bundle.name, bundle.task, bundle.version if bundle.active else "", customers),
                )
            if not repairs:
                connection.execute(
                    "INSERT INTO bundles (name, version, manifest, installed_at) VALUES (?, ?, ?, ?)",
                    (bundle.name, bundle.version, digest, now),
                )
            facts: dict[str, object] = {"bundle": bundle.pin, "manifest": digest.hex()}
            facts |= {"repaired": True} if repairs else {}
            record(connection, now, actor, Event.BUNDLE_INSTALL, None, bundle.task, facts)
            return bundle

        # A crash between the two steps leaves a folder without a row: it makes way for this one. One that is
        # repaired is damaged until the second step.
        await asyncio.to_thread(remove_tree, bundle.folder)
        await asyncio.to_thread(publish_tree, staged, bundle.folder)
        return await self._ledger.write(act, then=lambda bundle: self._keep(bundle, digest))

    def _keep(self, bundle: Bundle, digest: bytes) -> None:
        self._installed[bundle.pin] = bundle
        self._digests[bundle.pin] = digest


def _verify(folder: Path, digest: bytes) -> manifest.Verified:
    verified = manifest.verify(folder)
    if verified.digest != digest:
        raise InvalidInput("it is not the bundle that was installed")
    return verified


def _stated(folder: Path, digest: bytes) -> Manifest | None:
    """The manifest that was installed, where at least that is whole."""
    try:
        said, given = manifest.stated(folder)
    except InvalidInput:
        return None
    return said if given == digest else None


def _bundle(
    verified: manifest.Verified, folder: Path, task: TaskId, customers: frozenset[CustomerId] | None
) -> Bundle:
    listed = verified.manifest
    selftest = listed.selftest
    return Bundle(
        name=listed.name,
        version=listed.version,
        kind=listed.kind,
        task=task,
        routes=listed.routes,
        preprocessing=listed.preprocessing,
        outputs=listed.outputs,
        labels=verified.labels,
        folder=folder,
        model=folder / manifest.MODEL,
        sha256=listed.files[manifest.MODEL],
        threshold=listed.threshold,
        overlap=listed.overlap,
        selftest=selftest if isinstance(selftest, manifest.SelfTest) else None,
        customers=customers,
    )


def _rows(connection: Connection) -> Sequence[_Row]:
    found = connection.execute(
        "SELECT name, version, task, manifest, version = active, customers"
        " FROM bundles JOIN bundle_tasks USING (name) ORDER BY number"
    )
    return [
        _Row(
            name,
            version,
            TaskId(task),
            digest,
            bool(active),
            None if customers is None else frozenset(json.loads(customers)),
        )
        for name, version, task, digest, active, customers in found
    ]
