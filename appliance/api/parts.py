"""The neighbours of the API, handed in by the composition root and from here to the families."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from appliance.accounts.customers import Customers
from appliance.accounts.tokens import Tokens
from appliance.asynchronous.requests import Requests
from appliance.asynchronous.webhooks import Webhooks
from appliance.config import Config
from appliance.health import Readiness
from appliance.metrics import Registry
from appliance.outbound import Outbound
from appliance.recognition.bundles import Bundles
from appliance.recognition.decoders import Decoders
from appliance.recognition.engine import Engine
from appliance.recognition.heads import Heads, NoHeads
from appliance.residency import Residency
from appliance.search.collections import Collections


@dataclass(frozen=True)
class Parts:
    """What a `Server` serves. `decoders` and `engine` are None in a process that only manages."""

    config: Config
    residency: Residency | None
    customers: Customers
    tokens: Tokens
    collections: Collections
    bundles: Bundles
    decoders: Decoders | None
    engine: Engine | None
    outbound: Outbound
    requests: Requests
    webhooks: Webhooks
    status: Callable[[], Awaitable[dict[str, object]]]
    readiness: Callable[[], Readiness]
    registry: Registry
    clock: Callable[[], float]
    heads: Heads = NoHeads()  # noqa: RUF009 - it holds nothing
