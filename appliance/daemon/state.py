"""The parts that stand on the state folder alone: what the daemon and a single command have in common."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from appliance import metrics, process, vault
from appliance.accounts.agreements import Agreements
from appliance.accounts.audit import AuditLog, recording_alterations
from appliance.accounts.certificates import Certificates
from appliance.accounts.customers import Customers
from appliance.accounts.egress import Egress
from appliance.accounts.forward import Untold, is_set_back, latest_time
from appliance.accounts.grants import Grants
from appliance.accounts.quotas import Quotas, defaults
from appliance.accounts.rotations import Rotations
from appliance.accounts.times import Times
from appliance.accounts.tokens import Tokens
from appliance.accounts.transparency.tree import AuditTree
from appliance.api.parts import Parts
from appliance.asynchronous.requests import Requests
from appliance.asynchronous.webhooks import Webhooks
from appliance.backup.restoration import check_whole
from appliance.backup.source import Backups, ImagesAtHand
from appliance.config import Config
from appliance.datasets.images import Images
from appliance.errors import StorageFailed
from appliance.health import Readiness
from appliance.ledger import Ledger, StateLock
from appliance.outbound import Outbound
from appliance.privacy.erasure import Erasure
from appliance.privacy.portability import Portability
from appliance.privacy.records import Records
from appliance.recognition.bundles import Bundles
from appliance.recognition.decoders import Decoders
from appliance.recognition.engine import Engine
from appliance.recognition.trust import Trust
from appliance.residency import Residency
from appliance.search.collections import Collections
from appliance.search.replies import Replies
from appliance.search.sync.feeds import Feeds
from appliance.search.sync.synchronisation import Synchronisation
from appliance.volume import HeldFolder, Space

VERSION = version("appliance")

clock = time.time  # noqa: TID251 the one place that hands the clock out


@dataclass(frozen=True)
class State:
    """The parts that stand on the state folder alone, without a child process."""

    registry: metrics.Registry
    ledger: Ledger
    keyring: vault.Keyring
    space: Space
    times: Times
    customers: Customers
    tokens: Tokens
    quotas: Quotas
    agreements: Agreements
    audit_tree: AuditTree
    grants: Grants
    rotations: Rotations
    collections: Collections
    bundles: Bundles
    requests: Requests
    outbound: Outbound
    egress: Egress
    webhooks: Webhooks

    def parts(
        self,
        settings: Config,
        declared: Residency | None,
        *,
        status: Callable[[], Awaitable[dict[str, object]]],
        readiness: Callable[[], Readiness],
        decoders: Decoders | None = None,
        engine: Engine | None = None,
        images: Images | None = None,
        backups: Backups | None = None,
        synchronisation: Synchronisation | None = None,
        erasure: Erasure | None = None,
        residency_statement: Callable[[], bytes] | None = None,
    ) -> Parts:
        """What the server serves; without an engine that is the operator socket only."""
        return Parts(
            config=settings,
            residency=declared,
            residency_statement=residency_statement,
            space=self.space,
            customers=self.customers,
            tokens=self.tokens,
            quotas=self.quotas,
            agreements=self.agreements,
            grants=self.grants,
            audit=AuditLog(self.ledger),
            audit_tree=self.audit_tree,
            certificates=Certificates(self.ledger, self.keyring.service),
            records=Records(self.ledger, self.keyring, settings, declared, status, self.registry, clock),
            rotations=self.rotations,
            collections=self.collections,
            replies=Replies(self.ledger, self.keyring, Untold() if images is None else images.upkeep.leaps),
            bundles=self.bundles,
            decoders=decoders,
            engine=engine,
            outbound=self.outbound,
            requests=self.requests,
            webhooks=self.webhooks,
            images=images,
            status=status,
            readiness=readiness,
            registry=self.registry,
            clock=clock,
            backups=backups,
            synchronisation=synchronisation,
            erasure=erasure,
            portability=None if images is None else self.portability(images),
        )

    def erasure(self, images: Images) -> Erasure:
        """What erases customers; it acts by itself once it is entered."""
        return Erasure(
            self.ledger,
            self.keyring,
            customers=self.customers,
            tokens=self.tokens,
            agreements=self.agreements,
            collections=self.collections,
            datasets=images.datasets,
            clock=clock,
        )

    def portability(self, images: Images) -> Portability:
        """What gives out copies of everything."""
        return Portability(
            self.ledger,
            self.customers,
            self.tokens,
            self.quotas,
            self.agreements,
            self.grants,
            AuditLog(self.ledger),
            Certificates(self.ledger, self.keyring.service),
            self.requests,
            self.collections,
            Feeds(self.ledger, self.keyring, clock),
            images,
            clock,
        )

    def backups(self, settings: Config, images: ImagesAtHand) -> Backups:
        """What gives out the whole of this state."""
        ledger, keyring, kept = self.ledger, self.keyring, settings.health.min_free_bytes
        return Backups(
            ledger, keyring, settings.state, images, version=VERSION, reserve_bytes=kept, clock=clock
        )


async def open_state(
    stack: contextlib.AsyncExitStack,
    settings: Config,
    declared: Residency | None,
    registry: metrics.Registry,
) -> State:
    """The parts on a state folder, opened in their order and closed with `stack`; root goes on as its owner.

    Raises ConfigInvalid without a root key (nothing is made then), StateInUse when another process holds the
    folder, KeyringInvalid, and StorageFailed, also for a restore that was interrupted.
    """
    process.become_owner(settings.state)
    root = vault.read_root(settings.vault)  # first: where there is none nothing is made
    lock = StateLock(settings.state)
    try:
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise StorageFailed(f"{settings.state}: {error.strerror}") from error
    stack.callback(lock.release)
    check_whole(settings.state)
    enter = stack.enter_async_context
    held = HeldFolder(settings.state)
    stack.callback(held.close)
    space = Space(
        held,
        fraction=settings.datasets.reserve_fraction,
        least_bytes=settings.datasets.reserve_bytes,
        ballast_bytes=settings.datasets.ballast_bytes,
    )
    await asyncio.to_thread(space.before_deletion)  # a start writes too, and it is the way to delete anything
    ledger = await enter(Ledger(settings.state, registry, altered=recording_alterations(clock)))
    keyring = await vault.open_keyring(settings.state, ledger, root)
    stack.callback(keyring.wipe)
    keys = keyring.service
    now = clock()
    latest = await ledger.read(partial(latest_time, now=now))
    set_back = await ledger.read(partial(is_set_back, now=now))
    times = Times(latest, clock, time.monotonic, set_back=set_back)
    customers = await enter(Customers(ledger, times.ended))
    tokens = await enter(Tokens(ledger, keys, customers, times.ended, times.proven))
    quotas = await enter(Quotas(ledger, defaults(settings), clock))
    waits = settings.agreements.require_acceptance
    agreements = await enter(Agreements(ledger, keyring, customers, times.ended, require_acceptance=waits))
    grants = Grants(ledger, keyring, customers, times.forward, four_eyes=settings.grants.four_eyes)
    rotations = Rotations(ledger, keyring, customers, clock)
    graphs, snapshots = settings.state / "graphs", settings.state / "snapshots"
    collections = await enter(
        Collections(
            ledger,
            keyring,
            settings.search,
            clock,
            registry,
            quotas=quotas,
            graphs=graphs,
            snapshots=snapshots,
            space=space,
        )
    )
    bundles = await enter(
        Bundles(ledger, settings.state / "bundles", clock, trust=Trust(settings.bundles).check)
    )
    # What acts by itself stays closed: the daemon opens it.
    audit_tree = AuditTree(ledger, keys, settings.state)
    requests = Requests(ledger, keyring, clock, settings.requests.keep_seconds)
    outbound = Outbound(declared, registry)
    egress = Egress(ledger, outbound, clock, time.monotonic)
    webhooks = Webhooks(requests, outbound, keys, clock)
    return State(
        registry=registry,
        ledger=ledger,
        keyring=keyring,
        space=space,
        times=times,
        customers=customers,
        tokens=tokens,
        quotas=quotas,
        agreements=agreements,
        audit_tree=audit_tree,
        grants=grants,
        rotations=rotations,
        collections=collections,
        bundles=bundles,
        requests=requests,
        outbound=outbound,
        egress=egress,
        webhooks=webhooks,
    )
