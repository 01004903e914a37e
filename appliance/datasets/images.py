"""The parts of the store together, opened in their order on one state folder."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance import config
from appliance.accounts.agreements import Agreements
from appliance.accounts.quotas import Quotas
from appliance.datasets.annotations import Annotations
from appliance.datasets.catalogue import Datasets
from appliance.datasets.deletions import Deletions
from appliance.datasets.files import SealedFiles
from appliance.datasets.folder import data_folder
from appliance.datasets.interchange.annotating import Annotating
from appliance.datasets.interchange.exporting import Exporting
from appliance.datasets.interchange.importing import Importing
from appliance.datasets.links import Links
from appliance.datasets.ports import ImageCodec
from appliance.datasets.sink import Sink
from appliance.datasets.sources import Sources
from appliance.datasets.store import Store
from appliance.datasets.upkeep import Upkeep
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.vault import Keyring
from appliance.volume import DataFolder, Space, Watch

FOLDER = "images"


@dataclass(frozen=True)
class Images:
    """Stored images: whose they are, where they rest, how they are reached, what was written about them."""

    datasets: Datasets
    store: Store
    sink: Sink
    links: Links
    annotations: Annotations
    folder: DataFolder
    files: SealedFiles
    upkeep: Upkeep
    sources: Sources
    importing: Importing
    exporting: Exporting


@dataclass(frozen=True)
class Clocks:
    """Unix seconds, which somebody may set; seconds that only rise; unix seconds that never go back."""

    wall: Callable[[], float]
    monotonic: Callable[[], float]
    forward: Callable[[], float]


@asynccontextmanager
async def open_images(
    state: Path,
    settings: config.Datasets,
    ledger: Ledger,
    keyring: Keyring,
    *,
    space: Space,
    agreements: Agreements,
    codec: ImageCodec,
    encrypted: bool,
    clocks: Clocks,
    registry: Registry,
    quotas: Quotas | None = None,
    may_store: Callable[[], None] = lambda: None,
    contradicted: bool = False,
) -> AsyncIterator[Images]:
    """The store on STATE/images; `encrypted` demands LUKS below, without `quotas` there are none.

    `space` is that of the volume of STATE; images may be on another one.

    `may_store` raises while it takes nothing. `contradicted` says that the ledger may be older than the
    files, whatever lies beside them: then no file is removed because it has no row.

    Raises VolumeOffline when the volume is not fit or not the one that belongs to the ledger, StorageFailed.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        folder = await enter(data_folder(state / FOLDER, ledger, encrypted=encrypted))
        await enter(Watch(folder, clock=clocks.monotonic))
        space = await asyncio.to_thread(space.on, folder)
        files = await enter(SealedFiles(folder, keyring.service, registry))
        datasets = await enter(Datasets(ledger, keyring, files, space=space, clock=clocks.wall))
        deletions = Deletions(ledger, files, datasets.certificates, clocks.wall)
        upkeep = await enter(
            Upkeep(
                ledger,
                datasets,
                files,
                deletions,
                space,
                scrub_days=settings.scrub_days,
                clock=clocks.wall,
                monotonic=clocks.monotonic,
                registry=registry,
                contradicted=contradicted,
            )
        )
        store = await enter(
            Store(
                ledger,
                datasets,
                files,
                deletions,
                codec=codec,
                agreements=agreements,
                space=space,
                clock=clocks.wall,
                leaps=upkeep.leaps,
                registry=registry,
                on_damage=upkeep.count_one_damaged,
                quotas=quotas,
                may_store=may_store,
            )
        )
        links = await enter(
            Links(ledger, datasets, keyring.service, clock=clocks.wall, forward=clocks.forward)
        )
        annotations = await enter(Annotations(ledger, datasets, store, clock=clocks.wall))
        await enter(upkeep.at_leisure(store))
        sources = Sources(ledger, datasets, clocks.wall)
        annotating = Annotating(ledger, datasets, annotations, clocks.wall)
        yield Images(
            datasets,
            store,
            Sink(datasets, store, agreements),
            links,
            annotations,
            folder,
            files,
            upkeep,
            sources,
            Importing(ledger, store, sources, annotating, clocks.wall),
            await enter(Exporting(ledger, datasets, store, sources, annotations, clocks.wall)),
        )
