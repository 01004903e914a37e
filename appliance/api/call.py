"""What a handler gets of a request: who asks, for what, and the stop-watch. Nothing of HTTP's machinery."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import msgspec
from multidict import MultiMapping
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId, Customers
from appliance.accounts.tokens import Principal
from appliance.api.payload import Payload
from appliance.errors import Forbidden, InvalidInput, NotFound
from appliance.metrics import Durations, Registry, Timer
from appliance.recognition.bundles import Bundles
from appliance.recognition.catalogue import Catalogue
from appliance.search.records import CollectionId

T = TypeVar("T")

Stage = Literal["body", "fetch", "decode", "infer", "search", "total"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Measures(Collector):
    """The metrics of requests; labels are route templates and codes, never anything a caller wrote."""

    def __init__(self, registry: Registry) -> None:
        self._durations = Durations(
            "appliance_api_stage_seconds",
            f"Seconds a request spent in a stage: {', '.join(STAGES)}",
            STAGES,
            _SECONDS,
        )
        self._answered: dict[tuple[str, str, str], int] = {}
        self.cpu = registry.cpu
        registry.register(self._durations)
        registry.register(self)

    def stage(self, name: Stage) -> Timer:
        """Measures the block as one observation of the stage."""
        return self._durations.timer(name)

    def answered(self, route: str, method: str, status: str, seconds: float) -> None:
        """Counts one answer, and its time from the head on."""
        key = (route, method, status)
        self._answered[key] = self._answered.get(key, 0) + 1
        self._durations.observe("total", seconds)

    def collect(self) -> Iterator[CounterMetricFamily]:
        told = CounterMetricFamily(
            "appliance_api_requests",
            "Requests answered, by route template, method and HTTP status",
            labels=("route", "method", "status"),
        )
        for key, number in self._answered.items():
            told.add_metric(key, number)
        yield told


@dataclass(slots=True)
class Call:
    """One authenticated, authorised request with its parsed body."""

    id: str  # the request id, a UUID 4
    principal: Principal
    path: str  # as sent, without the prefix /localhost and the query
    parameters: Mapping[str, str]  # of the path template
    query: MultiMapping[str]
    raw_query: str
    headers: MultiMapping[str]
    payload: Payload
    measures: Measures
    began: float  # time.perf_counter
    ending_with_client: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within such a block the call is cancelled when its client leaves: nobody else waits for it."""
    room: bool = True
    """Whether the volume has room for more than the change itself: without, nothing is remembered of it."""

    @property
    def actor(self) -> Actor:
        """The caller as the audit log names it."""
        return self.principal.actor(self.id)

    @property
    def customer(self) -> CustomerId:
        """The customer that the token speaks for. Raises Forbidden for an operator, who is none."""
        if self.principal.customer is None:
            raise Forbidden("an operator has no records of its own: use a customer's token")
        return self.principal.customer

    @property
    def media(self) -> str:
        """The media type of the body, in lower case and without parameters; empty where none was named."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def collection(self) -> CollectionId:
        """The collection in the path. Raises NotFound where the token does not know of it."""
        self.check_collection(self.parameters["id"])
        return CollectionId(self.parameters["id"])

    def check_collection(self, collection: str) -> None:
        """Raises NotFound for one that the token's list leaves out: it is told that there is none."""
        listed = self.principal.collections
        if listed is not None and collection not in listed:
            raise NotFound("no such collection")

    def knows_task(self, task: str) -> bool:
        """Whether the token's list has it; without a list it knows of all."""
        return self.principal.tasks is None or task in self.principal.tasks

    def check_all_tasks(self) -> None:
        """Raises Forbidden for a token with a list of tasks: what answers none of them is not for it."""
        if self.principal.tasks is not None:
            raise Forbidden("the token has a list of tasks, and may use what answers one of them alone")

    def check_unlisted(self) -> None:
        """Raises Forbidden for a token with a list, which does not learn what there is beyond it."""
        if self.principal.collections is not None or self.principal.tasks is not None:
            raise Forbidden("the token has a list of collections or tasks, and this is about all of them")

    def bundles(self, installed: Bundles) -> Catalogue:
        """Those that the customer may use, and whose tasks the token knows of."""
        return installed.catalogue(self.customer).of_tasks(self.principal.tasks)

    @property
    def elapsed(self) -> float:
        """Seconds since the request's head was read."""
        return round(time.perf_counter() - self.began, 6)

    def owner(self, named: str | None) -> CustomerId | None:
        """Whose things a management call is about: its own customer's; for an operator `named`, None for all.

        Raises NotFound when a customer names another one.
        """
        own = self.principal.customer
        if own is None:
            return None if named is None else CustomerId(named)
        if named is not None and named != own:
            raise NotFound("no such customer")
        return own

    async def listed(self, customers: Customers) -> CustomerId | None:
        """Whose things a listing shows, as the query says, None for everybody's.

        Raises NotFound: a mistyped name has none.
        """
        owner = self.owner(self.query.get("customer"))
        if owner is not None:
            await customers.get(owner)
        return owner

    def document(self, kind: type[T]) -> T:
        """The body as a document of this kind. Raises InvalidInput naming the field that does not fit."""
        try:
            return msgspec.convert(self.payload.fields, kind)
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error)) from None
