"""The installed bundles: what a bundle is says `manifest`. Nothing heavy is imported here."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NewType, Self

from appliance.accounts.audit import Actor, Event, record
from appliance.errors import Conflict, InvalidInput, NotFound, NotInstalled, StorageFailed
from appliance.ledger import Connection, Ledger
from appliance.recognition import inspection, manifest, staging
from appliance.recognition.manifest import Kind, Label, Manifest
from appliance.recognition.preprocessing import Preprocessing
from appliance.volume import publish_tree, remove_tree

__all__ = ["Bundle", "Bundles", "Label", "Preprocessing", "TaskId", "read"]

TaskId = NewType("TaskId", str)
Inspect = Callable[[Path], Awaitable[None]]  # of a model file, before anything loads it


@dataclass(frozen=True, slots=True)
class Bundle:
    """An installed bundle: `task` is the id clients ask for, `sha256` that of the file `model`.

    `labels` are in the order of the output `logits`, of a detector in that of its classes; `outputs` are
    shapes for one image. `threshold` and `overlap` are what `manifest.Manifest` says of them. `active` says
    whether it answers where no version is asked for.
    """

    name: str
    version: str
    kind: Kind
    task: TaskId
    routes: tuple[str, ...]
    preprocessing: Preprocessing
    outputs: Mapping[str, tuple[int, ...]]
    labels: tuple[Label, ...]
    folder: Path
    model: Path
    sha256: str
    threshold: float = 0.0
    overlap: float = 1.0
    active: bool = True

    @property
    def pin(self) -> str:
        """NAME@VERSION: what names exactly these files."""
        return f"{self.name}@{self.version}"

    @property
    def classifies(self) -> bool:
        """Whether its answer is labels of the whole image."""
        return "logits" in self.outputs


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


class Bundles:
    """The bundles that may serve: their files under `folder`, NAME@VERSION each, their list in the ledger.

    A task is a name; of its versions the active one answers where none is asked for. Installing never changes
    what is answered already: the first version of a name is active until another one is activated, and of
    several active bundles for one route, and of several backbones, the one installed first serves.
    """

    def __init__(
        self, ledger: Ledger, folder: Path, clock: Callable[[], float], inspect: Inspect = inspection.inspect
    ) -> None:
        self._ledger = ledger
        self._inspect = inspect
        self._folder = folder
        self._clock = clock
        self._installed: dict[str, Bundle] = {}  # by pin, in the order of installation
        self._digests: dict[str, bytes] = {}
        self._changing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Verify every installed bundle again, and clear away what interrupted installations left.

        Raises StorageFailed naming the bundle whose files are damaged or gone.
        """
        rows = await self._ledger.read(_rows)
        for row, bundle in zip(rows, await asyncio.to_thread(self._open, rows), strict=True):
            self._installed[bundle.pin] = bundle
            self._digests[bundle.pin] = row.digest
        return self

    async def __aexit__(self, *_: object) -> None:
        self._installed.clear()
        self._digests.clear()

    async def install(self, actor: Actor, files: staging.Files, *, activate: bool = True) -> Bundle:
        """Write the files as they come, verify them, and list the bundle, durably and audited.

        The first version of a name is active at once unless told otherwise, a later one never. The same
        bundle once more gives the same answer. Raises InvalidInput with the reason of a refusal, Conflict
        when another content has this name and version, StorageFailed, and whatever `files` raises; nothing
        is installed then, and nothing left behind.
        """
        staged = self._folder / f".{uuid.uuid4()}.staged"
        try:
            verified = await staging.receive(files, staged)
            await self._inspect(staged / manifest.MODEL)
            async with self._changing:
                return await self._publish(actor, verified, staged, activate=activate)
        finally:
            await asyncio.to_thread(remove_tree, staged)

    async def activate(self, actor: Actor, name: str, version: str) -> Bundle:
        """Have this version answer for its task and routes from now on, durably and audited.

        Raises NotFound, StorageFailed.
        """
        async with self._changing:
            bundle = self._named(name, version)
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
            return self._installed[bundle.pin]

    async def remove(self, actor: Actor, name: str, version: str) -> Bundle:
        """Take a version away, its files included, durably and audited; returns what it was.

        Raises NotFound, StorageFailed, and Conflict for the active one of several versions.
        """
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
            # A crash before this leaves a folder without a row, which the next start clears away.
            await asyncio.to_thread(remove_tree, bundle.folder)
            return bundle

    async def verify(self) -> list[tuple[Bundle, str | None]]:
        """Every bundle with the reason why its files are not what was installed, None where they are."""
        bundles = self.list()
        return list(zip(bundles, await asyncio.to_thread(lambda: [*map(self._fault, bundles)]), strict=True))

    def list(self) -> Sequence[Bundle]:
        """All bundles in the order of installation."""
        return tuple(self._installed.values())

    def for_task(self, task: TaskId, version: str | None = None) -> Bundle:
        """The version of a task that answers, or the one that is asked for. Raises NotFound."""
        return _version("task", [one for one in self._installed.values() if one.task == task], version)

    def for_name(self, name: str, version: str | None = None) -> Bundle:
        """The version of a model, which a bundle's name is, that answers, or the one asked for.

        Raises NotFound.
        """
        return _version("model", self.versions(name), version)

    def versions(self, name: str) -> Sequence[Bundle]:
        """All versions of a name in the order of installation; none for an unknown one."""
        return [bundle for bundle in self._installed.values() if bundle.name == name]

    def for_route(self, route: str) -> Bundle:
        """The bundle that serves a wire route such as "photo/tags/v2/tags". Raises NotInstalled."""
        for bundle in self._serving():
            if route in bundle.routes:
                return bundle
        raise NotInstalled("service not installed")

    def route_installed(self, route: str) -> bool:
        """Whether `for_route` has an answer."""
        return any(route in bundle.routes for bundle in self._serving())

    def backbone(self, pin: str | None = None) -> Bundle:
        """The bundle whose output `embedding` search compares: the one of a pin, or the active one.

        Raises NotInstalled.
        """
        for bundle in self._serving() if pin is None else self._installed.values():
            if bundle.kind == "backbone" and pin in (None, bundle.pin):
                return bundle
        wanted = "no backbone is active" if pin is None else f"the backbone {pin} is not installed"
        raise NotInstalled(f"{wanted}: appliance bundle install PATH")

    def _serving(self) -> Iterator[Bundle]:
        return (bundle for bundle in self._installed.values() if bundle.active)

    def _named(self, name: str, version: str) -> Bundle:
        bundle = self._installed.get(f"{name}@{version}")
        if bundle is None:
            raise NotFound("no such bundle")
        return bundle

    def _open(self, rows: Sequence[_Row]) -> Sequence[Bundle]:
        pins = {f"{row.name}@{row.version}" for row in rows}
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            left_over = [path for path in self._folder.iterdir() if path.name not in pins]
        except OSError as error:
            raise StorageFailed(f"{self._folder}: {error.strerror}") from error
        for folder in left_over:
            remove_tree(folder)
        return [self._opened(row) for row in rows]

    def _opened(self, row: _Row) -> Bundle:
        folder = self._folder / f"{row.name}@{row.version}"
        try:
            verified = manifest.verify(folder)
        except InvalidInput as error:
            raise StorageFailed(f"{folder}: {error}; restore this bundle from a backup") from error
        if verified.digest != row.digest:
            raise StorageFailed(f"{folder} is not the bundle that was installed; restore it from a backup")
        return _bundle(verified, folder, row.task, active=row.active)

    def _fault(self, bundle: Bundle) -> str | None:
        try:
            digest = manifest.verify(bundle.folder).digest
        except InvalidInput as error:
            return str(error)
        return None if digest == self._digests.get(bundle.pin) else "it is not the bundle that was installed"

    async def _publish(
        self, actor: Actor, verified: manifest.Verified, staged: Path, *, activate: bool
    ) -> Bundle:
        name, version = verified.manifest.name, verified.manifest.version
        pin = f"{name}@{version}"
        if pin in self._installed:
            if self._digests[pin] == verified.digest:
                return self._installed[pin]
            raise Conflict(
                f"{name} {version} is installed with another content: give the new one another version"
            )
        task = next((one.task for one in self._installed.values() if one.name == name), None)
        first = task is None
        folder = self._folder / pin
        bundle = _bundle(verified, folder, task or TaskId(str(uuid.uuid4())), active=first and activate)
        now = int(self._clock() * 1000)

        def act(connection: Connection) -> Bundle:
            if first:
                connection.execute(
                    "INSERT INTO bundle_tasks (name, task, active) VALUES (?, ?, ?)",
                    (name, bundle.task, version if bundle.active else ""),
                )
            connection.execute(
                "INSERT INTO bundles (name, version, manifest, installed_at) VALUES (?, ?, ?, ?)",
                (name, version, verified.digest, now),
            )
            facts: dict[str, object] = {"bundle": pin, "manifest": verified.digest.hex()}
            record(connection, now, actor, Event.BUNDLE_INSTALL, None, bundle.task, facts)
            return bundle

        # A crash between the two steps leaves a folder without a row: it makes way for this one.
        await asyncio.to_thread(remove_tree, folder)
        await asyncio.to_thread(publish_tree, staged, folder)
        return await self._ledger.write(act, then=lambda bundle: self._keep(bundle, verified.digest))

    def _keep(self, bundle: Bundle, digest: bytes) -> None:
        self._installed[bundle.pin] = bundle
        self._digests[bundle.pin] = digest


def _version(noun: str, versions: Sequence[Bundle], version: str | None) -> Bundle:
    if not versions:
        raise NotFound(f"no such {noun}")
    for bundle in versions:
        if bundle.active if version is None else bundle.version == version:
            return bundle
    raise NotFound(f"the {noun} has no such version" if version else f"the {noun} has no active version")


def _bundle(verified: manifest.Verified, folder: Path, task: TaskId, *, active: bool) -> Bundle:
    listed = verified.manifest
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
        active=active,
    )


def _rows(connection: Connection) -> Sequence[_Row]:
    found = connection.execute(
        "SELECT name, version, task, manifest, version = active FROM bundles JOIN bundle_tasks USING (name)"
        " ORDER BY number"
    )
    return [
        _Row(name, version, TaskId(task), digest, bool(active))
        for name, version, task, digest, active in found
    ]
