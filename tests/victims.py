"""A customer that others go for: something of everything that there is, and a request for each of it.

The requests are derived from the route table: a new route is asked without a word here, and one whose request
cannot be derived fails the tests.
"""

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from appliance.accounts.agreements import Kind
from appliance.accounts.audit import Actor
from appliance.accounts.contracts import Contract
from appliance.accounts.grants import Access as Asked
from appliance.accounts.rights import Scope
from appliance.api.payload import Form
from appliance.api.routes import ROUTES
from appliance.api.routing import Access, Route, Surface
from appliance.residency import Destination, Residency
from appliance.search.records import CollectionId
from appliance.search.sync.source import Source
from tests import bundles, images
from tests.datasets import TAR, tar
from tests.serving import ACTOR, DIM, Served, Tenant

PHOTOS = "/similarity/photos/v2"
SECRET = "the victim's secret"
OPERATOR = Actor("operator", "0")
SHOP = "http://shop.example:1"
PHOTO = base64.b64encode(images.encoded(Image.new("RGB", (30, 20), "red"), "PNG")).decode()
LISTED = (Scope.INFER, Scope.SEARCH_READ, Scope.SEARCH_WRITE)

PUBLIC = [route for route in ROUTES if Surface.PUBLIC in route.surfaces]
SCOPED = [route for route in PUBLIC if isinstance(route.access, Scope)]
_MEDIA = {Form.ARCHIVE: TAR, Form.VECTORS: "application/x-ndjson"}


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


@dataclass(frozen=True)
class Stored:
    """The ids of what a victim has of training data, by their nouns on the wire; `model` is nobody's."""

    ids: dict[str, str]

    @classmethod
    def nothing(cls) -> "Stored":
        """What nobody has."""
        nouns = ("image", "task", "label", "box-task", "box-label", "object", "verification", "point")
        return cls({noun: str(uuid.uuid4()) for noun in (*nouns, "dataset", "model")})

    def target(self, route: Route) -> str:
        """The path with the id of what is stored, and for lists a query that asks for it."""
        if route.path == "/files/{name}":
            return route.path.replace("{name}", f"{self.ids['image']}.jpg")
        if "{id}" in route.path:
            return route.path.replace("{id}", self.ids[self._noun(route.path)])
        if route.method == "GET":
            image = f"&image={self.ids['image']}" if "/verification" in route.path else ""
            return f"{route.path}?workspace={self.ids['dataset']}{image}"
        return route.path

    def body(self, route: Route) -> dict[str, Any]:
        """All that any route asks for at once: whatever is named is the victim's."""
        detects = route.path.startswith("/detection/") and "/object/" not in route.path
        label = self.ids["box-label" if detects else "label"]
        document = {
            "name": "taken over",
            "workspace": self.ids["dataset"],
            "label_id": label,
            "task_id": self.ids["task"],
            "image_id": self.ids["image"],
            "image": self.ids["image"],
            "detection_label": self.ids["box-label"],
            "data": [1, 1, 2, 2],
            "meta_data": {"note": "overwritten"},
            "user": "somebody else",
        }
        if route.form is Form.UPLOAD:
            return document | {"base64": base64.b64encode(images.plain(uuid.uuid4().bytes)).decode()}
        if route.path.endswith("/update"):
            return {"images": [self.ids["image"]], "mark-test": True, "labels-add": [label]}
        return document

    def _noun(self, path: str) -> str:
        if "/images/" in path:
            return "image"
        noun = path.split("/")[3]
        if path.startswith("/detection/") and noun in {"task", "label"}:
            return f"box-{noun}"
        return {"training-image": "image"}.get(noun, noun)


@dataclass(frozen=True)
class Victim:
    """A customer with a record, a token, a collection, training data, a pending agreement and a pending grant
    that others go for.
    """

    tenant: Tenant
    token_id: str
    request: str
    agreement: str
    grant: str
    stored: Stored
    pin: str = ""
    snapshot: str = field(default_factory=lambda: str(uuid.uuid4()))
    certificate: str = str(uuid.UUID(int=4))

    def target(self, route: Route) -> str:
        """The path with the victim's own id in it."""
        if route.path.startswith("/files/"):
            return f"/files/{self.stored.ids['image']}.jpg"
        if of_training(route) or "/images/" in route.path:
            return self.stored.target(route)
        if "{name}" in route.path:
            return route.path.replace("{name}", "fashion").replace("{version}", "1")
        if route.path.endswith("/audit/proof"):
            return f"{route.path}?from=0"
        if "{id}" not in route.path:
            return route.path
        if "/request/" in route.path:
            return route.path.replace("{id}", self.request)
        if not route.problem:
            return route.path.replace("{id}", "fashion")
        ids = {
            "customers": self.tenant.id,
            "tokens": self.token_id,
            "collections": self.tenant.collection,
            "agreements": self.agreement,
            "grants": self.grant,
            "datasets": self.stored.ids["dataset"],
            "erasures": self.certificate,
        }
        query = {
            "datasets/export": "?format=coco",
            "collections/export": "?format=ndjson",
            "collections/import": "?on_conflict=replace&backbone=" + self.pin,
        }.get(f"{noun(route)}/{route.path.rsplit('/', 1)[1]}", "")
        path = route.path.replace("{id}", ids[noun(route)]).replace("{snapshot}", self.snapshot)
        return path + query

    def body(self, route: Route, task: str) -> bytes | None:
        """What the route needs to act on the victim's things: everything that any route asks for at once."""
        if route.form is Form.NOTHING:
            return None
        if route.form in {Form.ARCHIVE, Form.LINES, Form.VECTORS}:
            return streamed(route.form)
        if route.form is Form.BYTES:
            encoded = {"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [PHOTO]}
            return json.dumps({"id": SECRET, "inputs": [encoded]}).encode()
        if of_training(route):
            return json.dumps(self.stored.body(route)).encode()
        document: dict[str, Any] = {
            "service": "photo-search",
            "type": "dominant-colors-generic",
            "task_id": task,
            "collection_id": self.tenant.collection,
            "query_record": {"_id": SECRET},
            "records": [{"_id": SECRET, "note": "overwritten"}],
            "fields_to_return": ["*"],
        }
        if route.form.takes_images:
            document["records"][0]["_base64"] = PHOTO
        if route.path.endswith("/rank_images"):
            document["query_record"]["_base64"] = PHOTO
        if route.path.endswith("/deleteByFilter"):
            document["filter"] = {"note": SECRET}
        if route.problem:
            owner = {} if "{id}" in route.path else {"customer": self.tenant.id}
            managed: dict[str, dict[str, Any]] = {
                "customers": {"name": "taken over"},
                "tokens": owner,
                "collections": self._of_collection(route, owner),
                "aliases": {"collection": self.tenant.collection},
                "bundles": {"path": "/nowhere"},
                "agreements": {"customer": self.tenant.id, "kind": "training-data"},
                "grants": {}
                if "{id}" in route.path
                else {"operator": "0", "dataset": self.stored.ids["dataset"], "reason": SECRET, **owner},
                "datasets": {"visibility": "public"} if "{id}" in route.path else {"name": str(uuid.uuid4())},
            }
            document = managed[noun(route)]
        return json.dumps(document).encode()

    def _of_collection(self, route: Route, owner: dict[str, Any]) -> dict[str, Any]:
        if route.path.endswith("/source"):
            return {"url": f"{SHOP}/taken-over"}
        if route.path.endswith("/restore"):
            return {"into": "taken over"}
        return {"name": "taken over", **owner}

    def belongings(self, served: Served) -> object:
        """All that the victim can see of itself."""
        site, headers = served.site, self.tenant.headers()
        everything = json.dumps({"fields_to_return": ["*"]}).encode()
        records = site.call("POST", f"{PHOTOS}/allRecords", everything, headers).document["answer_records"]
        lists = (
            "tokens",
            "collections",
            "aliases",
            "customers",
            "agreements",
            "grants",
            "datasets",
            "audit",
            "erasures",
        )
        requests = site.call("GET", "/account/v2/request", headers=headers).document
        stored = [
            site.call("GET", self.target(route), headers=headers).document
            for route in SCOPED
            if route.method == "GET" and of_training(route) and "/model/" not in route.path
        ]
        collection = f"/appliance/v1/collections/{self.tenant.collection}"
        parts = ("source", "snapshots")
        of_it = [site.call("GET", f"{collection}/{part}", headers=headers).document for part in parts]
        listed = {
            name: site.call("GET", f"/appliance/v1/{name}", headers=headers).document
            for name in (*lists, f"datasets/{self.stored.ids['dataset']}")
        }
        for token in listed["tokens"]["tokens"]:
            del token["last_used_at"]  # of its own tokens, which the attacks use
        return (records, requests, stored, of_it), listed


def streamed(form: Form) -> bytes:
    """A body that is read as it comes."""
    if form is Form.LINES:
        return b'[{"id": "mine"}]'
    if form is Form.VECTORS:
        return json.dumps({"_id": SECRET, "note": "overwritten", "_vector": [1] * DIM}).encode()
    return tar({"taken/over.png": images.plain(uuid.uuid4().bytes)})


def of_training(route: Route) -> bool:
    """Whether it is about stored images, in the cloud's words."""
    mine = {Scope.DATASETS_READ, Scope.DATASETS_WRITE, Scope.TRAIN, Access.LINK}
    return route.access in mine and not route.problem


def noun(route: Route) -> str:
    return route.path.split("/")[3]


def new_victim(served: Served, name: str) -> Victim:
    tenant = served.tenant(name)
    record = {"_id": SECRET, "note": SECRET, "_base64": PHOTO}
    body = json.dumps({"records": [record]}).encode()
    assert served.site.call("POST", f"{PHOTOS}/insert", body, tenant.headers()).code == 210
    served.run(
        served.parts.collections.aliases.point(ACTOR, tenant.id, "fashion", CollectionId(tenant.collection))
    )
    (token,) = served.run(served.parts.tokens.list(tenant.id))
    request, _ = served.run(served.parts.requests.add(ACTOR, tenant.id, "dominant-colors-generic"))
    stored = store(served, tenant)
    assert served.parts.synchronisation is not None
    source = Source(f"{SHOP}/feed?key={SECRET.replace(' ', '-')}")
    following = served.parts.synchronisation.set(ACTOR, tenant.id, CollectionId(tenant.collection), source)
    served.run(following)
    paper = Contract(text_sha256=hashlib.sha256(SECRET.encode()).hexdigest())
    agreements = served.parts.agreements
    signing = agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA, paper, await_acceptance=True)
    asking = served.parts.grants.ask(OPERATOR, tenant.id, Asked("0", 1, stored.ids["dataset"]), SECRET)
    copying = served.parts.collections.snapshots.add(ACTOR, tenant.id, CollectionId(tenant.collection))
    agreement, grant, snapshot = served.run(signing).id, served.run(asking).id, served.run(copying).id
    served.run(agreements.attach(ACTOR, agreement, SECRET.encode()))
    return Victim(
        tenant,
        token.id,
        request.id,
        agreement,
        grant,
        stored,
        served.bundle.pin,
        snapshot,
        certified(served, tenant),
    )


def certified(served: Served, tenant: Tenant) -> str:
    """The certificate of a record that the tenant has erased."""
    for action, code, record in (("insert", 210, {"_base64": PHOTO}), ("delete", 220, {})):
        body = json.dumps({"records": [{"_id": "erased", **record}]}).encode()
        assert served.site.call("POST", f"{PHOTOS}/{action}", body, tenant.headers()).code == code
    (certificate,) = served.run(served.parts.certificates.list(tenant.id))
    return certificate.id


def store(served: Served, tenant: Tenant) -> Stored:
    """Something of everything that can be stored, in a dataset of its own; the agreement ends after it."""
    agreements = served.parts.agreements
    agreed = served.run(agreements.sign(ACTOR, tenant.id, Kind.TRAINING_DATA))

    def made(path: str, **document: object) -> str:
        body = json.dumps(document | ({"workspace": dataset} if dataset else {})).encode()
        answer = served.site.call("POST", path, body, tenant.headers())
        assert answer.status in {200, 201}, answer.body
        return str(answer.document.get("id"))

    dataset = ""
    dataset = made("/appliance/v1/datasets", name=SECRET)
    note, pixels = {"note": SECRET}, base64.b64encode(images.plain(uuid.uuid4().bytes)).decode()
    image = made("/recognition/v2/training-image", base64=pixels, meta_data=note)
    task, box_task = made("/recognition/v2/task", name=SECRET), made("/detection/v2/task", name=SECRET)
    label, box_label = made("/recognition/v2/label", name=SECRET), made("/detection/v2/label", name=SECRET)
    box = {"detection_label": box_label, "image": image, "data": [0, 0, 9, 9]}
    thing = made("/detection/v2/object", meta_data=note, **box)
    for path in (f"/recognition/v2/training-image/{image}", f"/detection/v2/object/{thing}"):
        made(f"{path}/add-label", label_id=label)
    ids = {
        "dataset": dataset,
        "image": image,
        "task": task,
        "box-task": box_task,
        "label": label,
        "box-label": box_label,
        "object": thing,
        "verification": made("/annotate/v2/verification", user=SECRET, image_id=image),
        "point": made("/annotate/v2/point", image=image, name=SECRET, data=SECRET),
        "model": str(uuid.uuid4()),
    }
    served.run(agreements.revoke(ACTOR, None, agreed.id))
    return Stored(ids)


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """A server on which every route has something to answer with."""
    declared = Destination.model_validate(
        {
            "name": "shop",
            "host": "shop.example",
            "local": True,
            "cidrs": ["127.0.0.1/32"],
            "port": 1,  # nobody listens
            "country": "CZ",
            "purpose": "feeds",
            "uses": ["feeds"],
            "tls": False,
        }
    )
    with Served(folder, Residency("Prague", "CZ", False, (declared,), ())) as served:
        served.install(bundles.tagger(folder / "tagger"))
        served.install(bundles.detector(folder / "detector"))
        yield served


@dataclass(frozen=True)
class Request:
    """What asks a route for what is the victim's; headers without the authorization."""

    path: str
    body: bytes | None
    headers: dict[str, str]


def aimed(served: Served, route: Route, victim: Victim, form: str = "{}") -> Request:
    """The path is spelt as in `form`, the query apart."""
    headers = victim.tenant.headers(content_type=_MEDIA.get(route.form, "application/json"))
    del headers["authorization"]
    target, _, query = victim.target(route).partition("?")
    path = form.format(target) + (f"?{query}" if query else "")
    kind = "detector" if route.path.startswith("/detection/") else "backbone"
    task = next(bundle.task for bundle in served.parts.bundles.list() if bundle.kind == kind)
    return Request(path, victim.body(route, task), headers)


def names_the_victim(route: Route) -> bool:
    """Whether the request that is derived for it says whose things it is about."""
    if route.problem:
        return "{" in route.path or (route.method == "POST" and noun(route) != "datasets")
    if route.path.startswith("/files/"):
        return True
    if of_training(route):
        return True
    if "/request/" in route.path:
        return True
    return route.access in {Scope.SEARCH_READ, Scope.SEARCH_WRITE} and not only_looks(route)


OF_NO_TASK = ("/dominantcolor", "/visual_hash", "/rank_images", "/remove_duplicates")
"""How the paths of inference end that a token with a list of tasks has nothing of."""


def names_a_task(route: Route) -> bool:
    """Whether it is about a task or model, or a request that may be about any."""
    free = ("/request", "/dominantcolor", "/index")
    return route.access is Scope.INFER and not route.path.endswith(free)


def only_looks(route: Route) -> bool:
    """Whether it answers about the images that it is sent and about nothing that is kept."""
    hashing = ("/visual_hash", "/rank_images", "/remove_duplicates")
    return route.access is Scope.INFER or route.path.endswith(hashing)
