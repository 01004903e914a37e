"""The account as the cloud's clients ask for it: may this token use a service, who am I, which workspaces."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from appliance.accounts.customers import Customer, Customers
from appliance.accounts.rights import Scope
from appliance.api.answers import Answer, moment, status
from appliance.api.call import Call
from appliance.datasets.catalogue import Datasets
from appliance.errors import Forbidden, InvalidInput, NotInstalled
from appliance.recognition.bundles import Bundles, Catalogue


@dataclass(frozen=True)
class _Service:
    """Of `scopes` a token needs one; `installed` says whether this appliance can serve it now.

    One that `trains` has stored images too, which tokens for them may use whatever is installed. One that
    is `listed` is served with the tasks of a token's list alone; searches are bounded by collections.
    """

    scopes: frozenset[Scope]
    installed: Callable[[Catalogue], bool]
    trains: bool = False
    listed: bool = True


_STORED = frozenset({Scope.DATASETS_READ, Scope.DATASETS_WRITE})
_INFER = frozenset({Scope.INFER})
_CLASSIFICATION = _Service(
    _INFER, lambda bundles: any(bundle.classifies for bundle in bundles.list()), trains=True
)
_DETECTION = _Service(
    _INFER, lambda bundles: any(bundle.kind == "detector" for bundle in bundles.list()), trains=True
)
_COLOURS = _Service(_INFER, lambda _: True)
_SEARCHING = frozenset({Scope.SEARCH_READ, Scope.SEARCH_WRITE})
_MATCHING = _Service(_SEARCHING, lambda _: True, listed=False)  # hashes need no bundle
_SEARCH = _Service(
    _SEARCHING,
    lambda bundles: any(bundle.kind == "backbone" for bundle in bundles.list()),
    listed=False,
)


def _tagging(route: str) -> _Service:
    return _Service(_INFER, lambda bundles: bundles.route_installed(route))


_TAGGING = re.compile(r"([a-z0-9-]{1,40})-tagging")  # fashion-tagging is served at tagging/fashion/v2/tags

# By the cloud's names. The official client asks for dominant-colors, whichever of the two it is about to use.
_SERVICES = {
    "custom-recognition": _CLASSIFICATION,
    "custom-object-detection": _DETECTION,
    "dominant-colors": _COLOURS,
    "dominant-colors-generic": _COLOURS,
    "dominant-colors-product": _COLOURS,
    "photo-search": _SEARCH,
    "photo-similarity": _SEARCH,
    "product-similarity": _SEARCH,
    "custom-similarity": _SEARCH,
    "visual-search": _SEARCH,
    "image-matching": _MATCHING,
}


class Account:
    """The handlers of `authorization/v2` and `account/v2`."""

    def __init__(self, customers: Customers, bundles: Bundles, datasets: Datasets | None) -> None:
        self._customers = customers
        self._bundles = bundles
        self._datasets = datasets

    async def authorize(self, call: Call) -> Answer:
        """Clients take an answer with `user_id` for yes, and print `detail` of any other."""
        name = call.payload.text("service")
        if name is None:
            raise InvalidInput("service: the name of a service is expected")
        service = _SERVICES.get(name)
        if service is None and (route := tagging_route(name)) is not None:
            service = _tagging(route)
        if service is _COLOURS:
            call.check_all_tasks()
        granting = frozenset[Scope]()
        if service is not None and service.installed(self._bundles_for(service, call)):
            granting |= service.scopes
        if service is not None and service.trains and self._datasets is not None:
            granting |= _STORED
        if not granting:
            raise NotInstalled("no bundle of this appliance serves it")
        if not granting & call.principal.scopes:
            raise Forbidden(f"the token has none of the scopes {', '.join(sorted(granting))}")
        return Answer({"user_id": call.customer, "service": name, "status": status(200, "OK", call.id)})

    def _bundles_for(self, service: _Service, call: Call) -> Catalogue:
        return call.bundles(self._bundles) if service.listed else self._bundles.catalogue(call.customer)

    async def user(self, call: Call) -> Answer:
        customer = await self._customers.get(call.customer)
        return Answer({"id": customer.id, "name": customer.name, "default_workspace": customer.id})

    async def details(self, call: Call) -> Answer:
        """The cloud's keys; what an appliance does not know (a person, credits) is null or zero."""
        customer = await self._customers.get(call.customer)
        return Answer(
            {
                "id": customer.id,
                "email": None,
                "first_name": None,
                "last_name": None,
                "phone": None,
                "organization": customer.name,
                "verified": True,
                "credits_counter": 0,
                "credits_limit": None,
                "default_workspace": customer.id,
                "stats": {},
            }
        )

    async def workspaces(self, call: Call) -> Answer:
        """A bare list, as the cloud answers. The default workspace has the customer's own id.

        The names of others are shown to tokens that may use them.
        """
        customer = await self._customers.get(call.customer)
        found = [_workspace(customer, customer.id, "Default", customer.created_at)]
        if self._datasets is not None and call.principal.scopes & _STORED:
            found += [
                _workspace(customer, dataset.workspace, dataset.name, dataset.created_at)
                for dataset in await self._datasets.list(call.customer)
                if dataset.name is not None
            ]
        search = call.query.get("search", "").casefold()
        return Answer([one for one in found if search in str(one["name"]).casefold()])


def tagging_route(service: str) -> str | None:
    """Where the taggers of a service such as "fashion-tagging" answer; None for any other service."""
    if service == "generic-tagging":
        return "photo/tags/v2/tags"
    found = _TAGGING.fullmatch(service)
    return None if found is None else f"tagging/{found[1]}/v2/tags"


def _workspace(customer: Customer, identity: str, name: str, created_at: int) -> dict[str, object]:
    return {
        "id": identity,
        "name": name,
        "created": moment(created_at),
        "owner": customer.id,
        "meta_data": {},
        "is_default": identity == customer.id,
    }
