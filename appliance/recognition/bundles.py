"""The installed bundles: what a bundle is says `manifest`. Nothing heavy is imported here."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
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

_LEFT_OVER = {".staged", ".removed"}  # by an interrupted installation, and by appliance.volume


@dataclass(frozen=True, slots=True)
class Bundle:
    """An installed bundle: `task` is the id clients ask for, `sha256` that of the file `model`.

    `labels` are in the order of the output `logits`, of a detector in that of its classes; `outputs` are
    shapes for one image. `threshold` and `overlap` are what `manifest.Manifest` says of them.
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


class Bundles:
    """The bundles that may serve: their files under `folder`, NAME@VERSION each, their list in the ledger.

    Installing never changes what is answered already: of several bundles for one route, and of several
    backbones, the one installed first serves. Each is reached by its task.
    """

    def __init__(
        self, ledger: Ledger, folder: Path, clock: Callable[[], float], inspect: Inspect = inspection.inspect
    ) -> None:
        self._ledger = ledger
        self._inspect = inspect
        self._folder = folder
        self._clock = clock
        self._installed: dict[TaskId, Bundle] = {}
        self._digests: dict[TaskId, bytes] = {}
        self._publishing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Verify every installed bundle again, and clear away what interrupted installations left.

        Raises StorageFailed naming the bundle whose files are damaged or gone.
        """
        rows = await self._ledger.read(_rows)
        for row, bundle in zip(rows, await asyncio.to_thread(self._open, rows), strict=True):
            self._keep(bundle, row.digest)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._installed.clear()
        self._digests.clear()

    async def install(self, actor: Actor, files: staging.Files) -> Bundle:
        """Write the files as they come, verify them, and list the bundle, durably and audited.

        The same bundle once more gives the same answer. Raises InvalidInput with the reason of a refusal,
        Conflict when another content has this name and version, StorageFailed, and whatever `files` raises;
        nothing is installed then, and nothing left behind.
        """
        staged = self._folder / f".{uuid.uuid4()}.staged"
        try:
            verified = await staging.receive(files, staged)
            await self._inspect(staged / manifest.MODEL)
            async with self._publishing:
                return await self._publish(actor, verified, staged)
        finally:
            await asyncio.to_thread(remove_tree, staged)

    def list(self) -> Sequence[Bundle]:
        """All bundles in the order of installation."""
        return tuple(self._installed.values())

    def for_task(self, task: TaskId) -> Bundle:
        """Raises NotFound."""
        if task not in self._installed:
            raise NotFound("no such task")
        return self._installed[task]

    def for_route(self, route: str) -> Bundle:
        """The bundle that serves a wire route such as "photo/tags/v2/tags". Raises NotInstalled."""
        for bundle in self._installed.values():
            if route in bundle.routes:
                return bundle
        raise NotInstalled("service not installed")

    def route_installed(self, route: str) -> bool:
        """Whether `for_route` has an answer."""
        return any(route in bundle.routes for bundle in self._installed.values())

    def backbone(self) -> Bundle:
        """The bundle whose output `embedding` search compares. Raises NotInstalled."""
        for bundle in self._installed.values():
            if bundle.kind == "backbone":
                return bundle
        raise NotInstalled("no backbone is installed: appliance bundle install PATH")

    def _open(self, rows: Sequence[_Row]) -> Sequence[Bundle]:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            left_over = [path for path in self._folder.glob(".*") if path.suffix in _LEFT_OVER]
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
        return _bundle(verified, folder, row.task)

    async def _publish(self, actor: Actor, verified: manifest.Verified, staged: Path) -> Bundle:
        folder = self._folder / f"{verified.manifest.name}@{verified.manifest.version}"
        bundle = _bundle(verified, folder, TaskId(str(uuid.uuid4())))
        for installed in self._installed.values():
            if installed.folder == folder:
                if self._digests[installed.task] == verified.digest:
                    return installed
                raise Conflict(
                    f"{bundle.name} {bundle.version} is installed with another content:"
                    " give the new one another version"
                )
        now = int(self._clock() * 1000)

        def act(connection: Connection) -> Bundle:
            connection.execute(
                "INSERT INTO bundles (name, version, task, manifest, installed_at) VALUES (?, ?, ?, ?, ?)",
                (bundle.name, bundle.version, bundle.task, verified.digest, now),
            )
            facts: dict[str, object] = {"bundle": folder.name, "manifest": verified.digest.hex()}
            record(connection, now, actor, Event.BUNDLE_INSTALL, None, bundle.task, facts)
            return bundle

        # A crash between the two steps leaves a folder without a row: it makes way for this one.
        await asyncio.to_thread(remove_tree, folder)
        await asyncio.to_thread(publish_tree, staged, folder)
        return await self._ledger.write(act, then=lambda bundle: self._keep(bundle, verified.digest))

    def _keep(self, bundle: Bundle, digest: bytes) -> None:
        self._installed[bundle.task] = bundle
        self._digests[bundle.task] = digest


def _bundle(verified: manifest.Verified, folder: Path, task: TaskId) -> Bundle:
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
    )


def _rows(connection: Connection) -> Sequence[_Row]:
    found = connection.execute("SELECT name, version, task, manifest FROM bundles ORDER BY number")
    return [_Row(name, version, TaskId(task), digest) for name, version, task, digest in found]
