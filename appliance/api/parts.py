"""The neighbours of the API, handed in by the composition root and from here to the families."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from appliance.accounts.agreements import Agreements
from appliance.accounts.audit import AuditLog
from appliance.accounts.certificates import Certificates
from appliance.accounts.customers import Customers
from appliance.accounts.grants import Grants
from appliance.accounts.quotas import Quotas
from appliance.accounts.rotations import Rotations
from appliance.accounts.tokens import Tokens
from appliance.accounts.transparency.tree import AuditTree
from appliance.asynchronous.requests import Requests
from appliance.asynchronous.webhooks import Webhooks
from appliance.backup.source import Backups
from appliance.config import Config
from appliance.datasets.images import Images
from appliance.health import Readiness
from appliance.metrics import Registry
from appliance.outbound import Outbound
from appliance.privacy.erasure import Erasure
from appliance.privacy.portability import Portability
from appliance.privacy.records import Records
from appliance.recognition.bundles import Bundles
from appliance.recognition.decoders import Decoders
from appliance.recognition.engine import Engine
from appliance.recognition.heads import Heads, NoHeads
from appliance.residency import Residency
from appliance.search.collections import Collections
from appliance.search.replies import Replies
from appliance.search.sync.synchronisation import Synchronisation
from appliance.volume import Space


@dataclass(frozen=True)
class Parts:
    """What a `Server` serves. `decoders`, `engine`, `images` and what stands on them are None in a process
    that only manages.
    """

    config: Config
    residency: Residency | None
    space: Space
    customers: Customers
    tokens: Tokens
    quotas: Quotas
    agreements: Agreements
    grants: Grants
    audit: AuditLog
    audit_tree: AuditTree
    certificates: Certificates
    records: Records
    rotations: Rotations
    collections: Collections
    replies: Replies
    bundles: Bundles
    decoders: Decoders | None
    engine: Engine | None
    outbound: Outbound
    requests: Requests
    webhooks: Webhooks
    images: Images | None
    status: Callable[[], Awaitable[dict[str, object]]]
    readiness: Callable[[], Readiness]
    registry: Registry
    clock: Callable[[], float]
    backups: Backups | None = None
    synchronisation: Synchronisation | None = None
    erasure: Erasure | None = None
    portability: Portability | None = None
    residency_statement: Callable[[], bytes] | None = None
    heads: Heads = NoHeads()  # noqa: RUF009 - it holds nothing
