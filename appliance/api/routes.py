"""The route table: what is served where, who may call it, and what the audit log keeps of it.

The table is data. The server, the OpenAPI document's test and the attacks of the promise tests all read it:
a new row is served, documented and attacked, or the tests fail.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from appliance.accounts.audit import Event
from appliance.accounts.tokens import Scope
from appliance.api.account import Account
from appliance.api.aliases import Aliases
from appliance.api.annotate import Annotate
from appliance.api.answers import Answer, Refused
from appliance.api.asynchronous import PATH as REQUEST
from appliance.api.asynchronous import Asynchronous
from appliance.api.backups import Backups
from appliance.api.call import Call
from appliance.api.collections import Collections
from appliance.api.colours import Colours
from appliance.api.datasets import Datasets
from appliance.api.feeds import Feeds
from appliance.api.files import Files
from appliance.api.image_matching import ImageMatching
from appliance.api.interchange import Interchange
from appliance.api.keys import KeyManagement
from appliance.api.labels import Labels
from appliance.api.management import Management
from appliance.api.objects import Objects
from appliance.api.open_inference import OpenInference
from appliance.api.oversight import Oversight
from appliance.api.payload import Form
from appliance.api.probes import Probes
from appliance.api.recognition import Recognition
from appliance.api.similarity import Similarity
from appliance.api.similarity_changes import SimilarityChanges
from appliance.api.tasks import Tasks
from appliance.api.training_images import TrainingImages
from appliance.api.transfers import Transfers
from appliance.errors import NotInstalled

PREFIX = "/localhost"  # the official client posts its token to the cloud unless its endpoint holds this word
MANAGEMENT = "/appliance/"
MATCHING = "/image_matching/v2"

# Nothing for the audit log: the route changes nothing. The store itself logs what `store_images` has it keep.
READ: Literal["read"] = "read"


class Access(Enum):
    """Who may call a route that no scope guards."""

    OPEN = "open"
    LINK = "a signed link, or a token"
    TOKEN = "any valid token"  # noqa: S105
    OPERATOR = "operator"  # peers of the operator socket only


class Surface(Enum):
    """Where a listener stands."""

    PUBLIC = "public"  # `[api] listen`: customers, by token
    OPERATOR = "operator"  # `[operator] listen`: probes and scrapers
    SOCKET = "socket"  # the operator socket: people on this machine, by peer credentials


PUBLIC = frozenset({Surface.PUBLIC})
MANAGED = frozenset({Surface.PUBLIC, Surface.SOCKET})
EVERYWHERE = frozenset(Surface)
OPERATORS = frozenset({Surface.OPERATOR})
LOCAL = frozenset({Surface.SOCKET})


@dataclass(frozen=True)
class Route:
    """One row. `path` holds {id}, {name} or {version} for a segment; `handler` is a method of a family."""

    method: str
    path: str
    handler: Callable[[Any, Call], Awaitable[Answer]]
    access: Scope | Access
    audit: Event | Literal["read"]
    form: Form = Form.NOTHING
    surfaces: frozenset[Surface] = PUBLIC

    @property
    def ends_with_client(self) -> bool:
        """Whether a client that leaves ends its call: it changes nothing, and takes long."""
        return self.audit == Event.DATASET_EXPORT or (self.audit == READ and self.form.carries_images)

    @property
    def problem(self) -> bool:
        """Whether its refusals are problem+json."""
        return self.path.startswith(MANAGEMENT)


def _search(prefix: str) -> tuple[Route, ...]:
    read, write, changes = Scope.SEARCH_READ, Scope.SEARCH_WRITE, SimilarityChanges
    erase = Event.SEARCH_DELETE
    return (
        Route("POST", f"{prefix}/insert", changes.insert, write, Event.SEARCH_INSERT, Form.RECORDS),
        Route("POST", f"{prefix}/upsert", changes.upsert, write, Event.SEARCH_UPSERT, Form.RECORDS),
        Route("POST", f"{prefix}/update", changes.update, write, Event.SEARCH_UPDATE, Form.IDS),
        Route("POST", f"{prefix}/delete", changes.delete, write, erase, Form.IDS),
        Route("POST", f"{prefix}/deleteByFilter", changes.delete_by_filter, write, erase, Form.FIELDS),
        Route("POST", f"{prefix}/get", Similarity.get, read, READ, Form.IDS),
        Route("POST", f"{prefix}/visualKNN", Similarity.visual_knn, read, READ, Form.QUERY),
        Route("POST", f"{prefix}/visualRankRecords", Similarity.visual_rank_records, read, READ, Form.QUERY),
        Route("POST", f"{prefix}/nearDuplicates", Similarity.near_duplicates, read, READ, Form.QUERY),
        Route("POST", f"{prefix}/random", Similarity.random, read, READ, Form.FIELDS),
        Route("POST", f"{prefix}/allRecords", Similarity.all_records, read, READ, Form.FIELDS),
        Route("POST", f"{prefix}/ping", Similarity.ping, read, READ, Form.FIELDS),
    )


def _model(path: str) -> tuple[Route, ...]:
    infer = Scope.INFER
    return (
        Route("GET", path, OpenInference.model, infer, READ),
        Route("GET", f"{path}/ready", OpenInference.model_ready, infer, READ),
        Route("POST", f"{path}/infer", OpenInference.infer, infer, READ, Form.BYTES),
    )


def _tasks_and_labels(family: str) -> tuple[Route, ...]:
    """What recognition and detection have in common."""
    read, write = Scope.DATASETS_READ, Scope.DATASETS_WRITE
    task, label = f"/{family}/v2/task", f"/{family}/v2/label"
    change, relabel = Event.TASK_CHANGE, Event.LABEL_CHANGE
    return (
        Route("GET", task, Tasks.list, read, READ),
        Route("POST", task, Tasks.add, write, Event.TASK_ADD, Form.FIELDS),
        Route("GET", f"{task}/{{id}}", Tasks.get, read, READ),
        Route("DELETE", f"{task}/{{id}}", Tasks.delete, write, Event.TASK_DELETE),
        Route("POST", f"{task}/{{id}}/train", Tasks.train, Scope.TRAIN, READ, Form.FIELDS),
        Route("POST", f"{task}/{{id}}/add-label", Tasks.add_label, write, change, Form.FIELDS),
        Route("POST", f"{task}/{{id}}/remove-label", Tasks.remove_label, write, change, Form.FIELDS),
        Route("GET", label, Labels.list, read, READ),
        Route("POST", label, Labels.add, write, Event.LABEL_ADD, Form.FIELDS),
        Route("GET", f"{label}/{{id}}", Labels.get, read, READ),
        Route("DELETE", f"{label}/{{id}}", Labels.delete, write, Event.LABEL_DELETE),
        Route("POST", f"{label}/{{id}}/add-task", Labels.add_task, write, relabel, Form.FIELDS),
        Route("POST", f"{label}/{{id}}/remove-task", Labels.remove_task, write, relabel, Form.FIELDS),
    )


def _training() -> tuple[Route, ...]:
    """The cloud's routes to stored images and all that is written about them."""
    read, write = Scope.DATASETS_READ, Scope.DATASETS_WRITE
    image, thing = "/recognition/v2/training-image", "/detection/v2/object"
    verification, point = "/annotate/v2/verification", "/annotate/v2/point"
    update, change, fields = Event.IMAGE_UPDATE, Event.OBJECT_CHANGE, Form.FIELDS
    return (
        *_tasks_and_labels("recognition"),
        Route("DELETE", "/recognition/v2/label/{id}/wipe", Labels.wipe, write, Event.LABEL_WIPE),
        Route("GET", "/recognition/v2/model/{id}", Tasks.model, read, READ),
        Route("DELETE", "/recognition/v2/model/{id}", Tasks.model, write, READ),
        Route("GET", image, TrainingImages.list, read, READ),
        Route("POST", image, TrainingImages.upload, write, Event.IMAGE_ADD, Form.UPLOAD),
        Route("POST", f"{image}/update", TrainingImages.update, write, update, fields),
        Route("GET", f"{image}/{{id}}", TrainingImages.get, read, READ),
        Route("PUT", f"{image}/{{id}}", TrainingImages.put, write, update, fields),
        Route("DELETE", f"{image}/{{id}}", TrainingImages.delete, write, Event.IMAGE_DELETE),
        Route("POST", f"{image}/{{id}}/add-label", TrainingImages.add_label, write, update, fields),
        Route("POST", f"{image}/{{id}}/update-label", TrainingImages.update_label, write, update, fields),
        Route("POST", f"{image}/{{id}}/remove-label", TrainingImages.remove_label, write, update, fields),
        *_tasks_and_labels("detection"),
        Route("POST", "/detection/v2/task/{id}/add-image", Tasks.add_image, write, Event.TASK_CHANGE, fields),
        Route("GET", thing, Objects.list, read, READ),
        Route("POST", thing, Objects.add, write, Event.OBJECT_ADD, fields),
        Route("GET", f"{thing}/{{id}}", Objects.get, read, READ),
        Route("PUT", f"{thing}/{{id}}", Objects.put, write, change, fields),
        Route("DELETE", f"{thing}/{{id}}", Objects.delete, write, Event.OBJECT_DELETE),
        Route("POST", f"{thing}/{{id}}/add-label", Objects.add_label, write, change, fields),
        Route("POST", f"{thing}/{{id}}/update-label", Objects.update_label, write, change, fields),
        Route("POST", f"{thing}/{{id}}/remove-label", Objects.remove_label, write, change, fields),
        Route("GET", verification, Annotate.list_verifications, read, READ),
        Route("POST", verification, Annotate.verify, write, Event.VERIFICATION_ADD, fields),
        Route("DELETE", f"{verification}/{{id}}", Annotate.unverify, write, Event.VERIFICATION_DELETE),
        Route("GET", point, Annotate.list_points, read, READ),
        Route("POST", point, Annotate.add_point, write, Event.POINT_ADD, fields),
        Route("DELETE", f"{point}/{{id}}", Annotate.delete_point, write, Event.POINT_DELETE),
    )


def _feeds(source: str) -> tuple[Route, ...]:
    """What a collection follows."""
    write = Scope.SEARCH_WRITE
    return (
        Route("PUT", source, Feeds.set, write, Event.FEED_SET, Form.FIELDS),
        Route("GET", source, Feeds.get, write, READ),
        Route("DELETE", source, Feeds.remove, write, Event.FEED_REMOVE),
        Route("POST", f"{source}/run", Feeds.run, write, Event.FEED_RUN),
        Route("GET", f"{source}/runs", Feeds.runs, write, READ),
        Route("POST", f"{source}/confirm", Feeds.confirm, write, Event.FEED_CONFIRM),
    )


_V1 = "/appliance/v1"
_ADMIN, _OPERATOR, _READ_SEARCH = Scope.ADMIN, Access.OPERATOR, Scope.SEARCH_READ

ROUTES: tuple[Route, ...] = (
    Route("POST", "/authorization/v2/authorize", Account.authorize, Access.TOKEN, READ, Form.FIELDS),
    Route("GET", "/account/v2/user", Account.user, Access.TOKEN, READ),
    Route("GET", "/account/v2/details", Account.details, Access.TOKEN, READ),
    Route("GET", "/account/v2/workspace", Account.workspaces, Access.TOKEN, READ),
    Route("POST", "/recognition/v2/classify", Recognition.classify, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/photo/tags/v2/tags", Recognition.tags, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/tagging/{id}/v2/tags", Recognition.tags, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/detection/v2/detect", Recognition.detect, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/photo/v2/descriptor", Recognition.descriptor, Scope.INFER, READ, Form.RECORDS),
    Route(
        "POST", "/similarity/training/v2/descriptor", Recognition.descriptor, Scope.INFER, READ, Form.RECORDS
    ),
    Route("POST", "/dom_colors/generic/v2/dominantcolor", Colours.generic, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/dom_colors/product/v2/dominantcolor", Colours.product, Scope.INFER, READ, Form.RECORDS),
    Route("POST", REQUEST, Asynchronous.submit, Scope.INFER, Event.REQUEST_ADD, Form.RECORDS),
    Route("GET", REQUEST, Asynchronous.list, Scope.INFER, READ),
    Route("GET", f"{REQUEST}/{{id}}", Asynchronous.get, Scope.INFER, READ),
    Route("GET", f"{REQUEST}/{{id}}/status", Asynchronous.status, Scope.INFER, READ),
    Route("POST", f"{REQUEST}/{{id}}/cancel", Asynchronous.cancel, Scope.INFER, Event.REQUEST_CANCEL),
    *_search("/similarity/photos/v2"),
    *_search("/similarity/products-new/v2"),
    *_search("/similarity/custom/v2"),
    *_search("/photo/search/v2"),
    *_search("/similarity/products/v2"),
    *_search(MATCHING),
    Route("POST", f"{MATCHING}/visual_hash", ImageMatching.visual_hash, _READ_SEARCH, READ, Form.RECORDS),
    Route("POST", f"{MATCHING}/rank_images", ImageMatching.rank_images, _READ_SEARCH, READ, Form.QUERY),
    Route(
        "POST",
        f"{MATCHING}/remove_duplicates",
        ImageMatching.remove_duplicates,
        _READ_SEARCH,
        READ,
        Form.RECORDS,
    ),
    *_training(),
    Route("GET", "/v2", OpenInference.server, Access.TOKEN, READ),
    Route("GET", "/v2/health/live", OpenInference.live, Access.OPEN, READ),
    Route("GET", "/v2/health/ready", OpenInference.ready, Access.OPEN, READ),
    Route("POST", "/v2/repository/index", OpenInference.index, Scope.INFER, READ, Form.FIELDS),
    *_model("/v2/models/{name}"),
    *_model("/v2/models/{name}/versions/{version}"),
    Route(
        "POST",
        f"{_V1}/customers",
        Management.add_customer,
        _OPERATOR,
        Event.CUSTOMER_ADD,
        Form.FIELDS,
        MANAGED,
    ),
    Route("GET", f"{_V1}/customers", Management.list_customers, _ADMIN, READ, surfaces=MANAGED),
    Route("GET", f"{_V1}/customers/{{id}}", Management.get_customer, _ADMIN, READ, surfaces=MANAGED),
    Route(
        "POST",
        f"{_V1}/customers/{{id}}/suspend",
        Management.suspend_customer,
        _OPERATOR,
        Event.CUSTOMER_SUSPEND,
        surfaces=MANAGED,
    ),
    Route(
        "POST",
        f"{_V1}/customers/{{id}}/resume",
        Management.resume_customer,
        _OPERATOR,
        Event.CUSTOMER_RESUME,
        surfaces=MANAGED,
    ),
    Route("POST", f"{_V1}/tokens", Management.add_token, _ADMIN, Event.TOKEN_ADD, Form.FIELDS, MANAGED),
    Route("GET", f"{_V1}/tokens", Management.list_tokens, _ADMIN, READ, surfaces=MANAGED),
    Route(
        "POST",
        f"{_V1}/tokens/{{id}}/rotate",
        Management.rotate_token,
        _ADMIN,
        Event.TOKEN_ROTATE,
        Form.FIELDS,
        MANAGED,
    ),
    Route(
        "DELETE",
        f"{_V1}/tokens/{{id}}",
        Management.revoke_token,
        _ADMIN,
        Event.TOKEN_REVOKE,
        surfaces=MANAGED,
    ),
    Route(
        "POST",
        f"{_V1}/collections",
        Collections.add,
        _ADMIN,
        Event.COLLECTION_ADD,
        Form.FIELDS,
        MANAGED,
    ),
    Route("GET", f"{_V1}/collections", Collections.list, _ADMIN, READ, surfaces=MANAGED),
    Route(
        "GET",
        f"{_V1}/collections/{{id}}",
        Collections.get,
        _ADMIN,
        READ,
        surfaces=MANAGED,
    ),
    Route(
        "PATCH",
        f"{_V1}/collections/{{id}}",
        Collections.change,
        _ADMIN,
        Event.COLLECTION_RENAME,
        Form.FIELDS,
        MANAGED,
    ),
    Route(
        "POST",
        f"{_V1}/collections/{{id}}/empty",
        Collections.empty,
        _ADMIN,
        Event.COLLECTION_EMPTY,
        surfaces=MANAGED,
    ),
    Route(
        "GET",
        f"{_V1}/collections/{{id}}/stats",
        Collections.stats,
        _ADMIN,
        READ,
        surfaces=MANAGED,
    ),
    Route(
        "POST",
        f"{_V1}/collections/{{id}}/import",
        Transfers.receive,
        Scope.SEARCH_WRITE,
        Event.SEARCH_IMPORT,
        Form.VECTORS,
        MANAGED,
    ),
    Route(
        "GET",
        f"{_V1}/collections/{{id}}/export",
        Transfers.give,
        Scope.SEARCH_READ,
        Event.SEARCH_EXPORT,
        surfaces=MANAGED,
    ),
    Route(
        "DELETE",
        f"{_V1}/collections/{{id}}",
        Collections.remove,
        _ADMIN,
        Event.COLLECTION_REMOVE,
        surfaces=MANAGED,
    ),
    Route("GET", f"{_V1}/aliases", Aliases.list, _ADMIN, READ, surfaces=MANAGED),
    Route("PUT", f"{_V1}/aliases/{{name}}", Aliases.point, _ADMIN, Event.ALIAS_SET, Form.FIELDS, MANAGED),
    Route("DELETE", f"{_V1}/aliases/{{name}}", Aliases.remove, _ADMIN, Event.ALIAS_REMOVE, surfaces=MANAGED),
    *_feeds(f"{_V1}/collections/{{id}}/source"),
    Route("POST", f"{_V1}/collections/{{id}}/diff", Feeds.diff, _READ_SEARCH, READ, Form.LINES),
    Route(
        "POST",
        f"{_V1}/bundles",
        Management.install_bundle,
        _OPERATOR,
        Event.BUNDLE_INSTALL,
        Form.FILES,
        MANAGED,
    ),
    Route("GET", f"{_V1}/bundles", Management.list_bundles, _OPERATOR, READ, surfaces=MANAGED),
    Route("GET", f"{_V1}/bundles/verification", Management.verify_bundles, _OPERATOR, READ, surfaces=MANAGED),
    Route(
        "POST",
        f"{_V1}/bundles/{{name}}/{{version}}/activate",
        Management.activate_bundle,
        _OPERATOR,
        Event.BUNDLE_ACTIVATE,
        surfaces=MANAGED,
    ),
    Route(
        "DELETE",
        f"{_V1}/bundles/{{name}}/{{version}}",
        Management.remove_bundle,
        _OPERATOR,
        Event.BUNDLE_REMOVE,
        surfaces=MANAGED,
    ),
    Route(
        "POST",
        f"{_V1}/agreements",
        Oversight.sign_agreement,
        _OPERATOR,
        Event.AGREEMENT_SIGN,
        Form.FIELDS,
        MANAGED,
    ),
    Route("GET", f"{_V1}/agreements", Oversight.list_agreements, _ADMIN, READ, surfaces=MANAGED),
    Route(
        "POST",
        f"{_V1}/agreements/{{id}}/accept",
        Oversight.accept_agreement,
        _ADMIN,
        Event.AGREEMENT_ACCEPT,
        surfaces=MANAGED,
    ),
    Route(
        "DELETE",
        f"{_V1}/agreements/{{id}}",
        Oversight.revoke_agreement,
        _ADMIN,
        Event.AGREEMENT_REVOKE,
        surfaces=MANAGED,
    ),
    Route("GET", f"{_V1}/audit", Oversight.list_audit, _ADMIN, READ, surfaces=MANAGED),
    Route("GET", f"{_V1}/keys", KeyManagement.list_keys, _OPERATOR, READ, surfaces=LOCAL),
    Route(
        "POST",
        f"{_V1}/keys/customers/{{id}}/rotate",
        KeyManagement.rotate_customer_key,
        _OPERATOR,
        Event.KEY_ROTATE,
        surfaces=LOCAL,
    ),
    Route(
        "POST",
        f"{_V1}/keys/containers/{{id}}/rotate",
        KeyManagement.rotate_container_key,
        _OPERATOR,
        Event.KEY_ROTATE,
        Form.FIELDS,
        LOCAL,
    ),
    Route(
        "POST",
        f"{_V1}/keys/root/rotate",
        KeyManagement.rotate_root,
        _OPERATOR,
        Event.KEY_ROTATE,
        Form.KEY,
        LOCAL,
    ),
    Route(
        "POST",
        f"{_V1}/keys/root/retire",
        KeyManagement.retire_root,
        _OPERATOR,
        Event.KEY_RETIRE,
        surfaces=LOCAL,
    ),
    Route("GET", f"{_V1}/webhook-secret", Management.webhook_secret, _ADMIN, READ, surfaces=MANAGED),
    Route("GET", f"{_V1}/status", Management.status, _OPERATOR, READ, surfaces=MANAGED),
    Route("POST", f"{_V1}/backup", Backups.make, _OPERATOR, Event.BACKUP_MAKE, surfaces=LOCAL),
    Route("POST", f"{_V1}/datasets", Datasets.add, Scope.DATASETS_WRITE, Event.DATASET_ADD, Form.FIELDS),
    Route("GET", f"{_V1}/datasets", Datasets.list, Scope.DATASETS_READ, READ, surfaces=MANAGED),
    Route("GET", f"{_V1}/datasets/{{id}}", Datasets.get, Scope.DATASETS_READ, READ),
    Route(
        "PATCH",
        f"{_V1}/datasets/{{id}}",
        Datasets.change,
        Scope.DATASETS_WRITE,
        Event.DATASET_CHANGE,
        Form.FIELDS,
    ),
    Route("DELETE", f"{_V1}/datasets/{{id}}", Datasets.erase, Scope.DATASETS_WRITE, Event.DATASET_ERASE),
    Route(
        "POST",
        f"{_V1}/datasets/{{id}}/import",
        Interchange.receive,
        Scope.DATASETS_WRITE,
        Event.DATASET_IMPORT,
        Form.ARCHIVE,
        MANAGED,
    ),
    Route(
        "GET",
        f"{_V1}/datasets/{{id}}/export",
        Interchange.give,
        Scope.DATASETS_READ,
        Event.DATASET_EXPORT,
        surfaces=MANAGED,
    ),
    Route(
        "GET", f"{_V1}/datasets/{{id}}/held", Interchange.held, Scope.DATASETS_WRITE, READ, surfaces=MANAGED
    ),
    Route("GET", "/files/{name}", Files.get, Access.LINK, READ),
    Route("GET", f"{_V1}/images/{{id}}/key", Files.key, Scope.DATASETS_READ, READ),
    Route("GET", "/healthz", Probes.healthz, Access.OPEN, READ, surfaces=EVERYWHERE),
    Route("GET", "/readyz", Probes.readyz, Access.OPEN, READ, surfaces=EVERYWHERE),
    Route("GET", "/metrics", Probes.metrics, Access.OPEN, READ, surfaces=OPERATORS),
)


def _segment(named: re.Match[str]) -> str:
    letters = "[A-Za-z0-9-]" if named[1] == "id" else "[A-Za-z0-9.-]"  # of bundles' names and versions
    return f"(?P<{named[1]}>{letters}{{1,64}})"


@dataclass(frozen=True)
class Match:
    """The row that a request meant, the segments for its {id}, and the path without the prefix."""

    route: Route
    parameters: dict[str, str]
    path: str


class Table:
    """The rows of one surface, looked up by method and path."""

    def __init__(self, routes: Iterable[Route], surface: Surface) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[re.Pattern[str], dict[str, Route]] = {}
        for route in routes:
            if surface not in route.surfaces:
                continue
            if "{" in route.path:
                pattern = re.compile(re.sub(r"\{(\w+)\}", _segment, route.path))
                self._patterns.setdefault(pattern, {})[route.method] = route
            else:
                self._exact.setdefault(route.path, {})[route.method] = route

    def find(self, method: str, path: str) -> Match:
        """The row for a request, with or without the prefix and one trailing slash; never a redirect.

        Raises NotInstalled for a path that is not in the table, Refused (405) for another method.
        """
        path = strip_prefix(path)
        bare = path[:-1] if len(path) > 1 and path.endswith("/") else path
        methods, parameters = self._exact.get(bare), dict[str, str]()
        if methods is None:
            for pattern, rows in self._patterns.items():
                if (found := pattern.fullmatch(bare)) is not None:
                    methods, parameters = rows, found.groupdict()
                    break
            else:
                raise NotInstalled("nothing is served at this path")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            raise Refused(405, "the method is not allowed here", {"Allow": ", ".join(sorted(methods))})
        return Match(route, parameters, bare)


def strip_prefix(path: str) -> str:
    """The path without `/localhost`, under which every route is served a second time."""
    return path[len(PREFIX) :] if path.startswith(PREFIX + "/") else path
