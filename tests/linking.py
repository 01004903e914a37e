"""Every feature that takes a link from a customer, found in the route table, and asked as a customer asks.

A route whose form takes images takes links in their place: a new one is here without a word. What else goes
out is found in the source, by the calls of the gate; a test holds that all of them are known here.
"""

import ast
import base64
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import appliance
from appliance.accounts.agreements import Kind
from appliance.api.asynchronous import PATH as REQUEST
from appliance.api.payload import Form
from appliance.api.routes import MATCHING, ROUTES
from appliance.api.routing import Route, Surface
from tests import bundles, images
from tests.serving import ACTOR, Reply, Served
from tests.waiting import eventually

AT_ONCE = 10  # records in one call
PHOTO = base64.b64encode(images.jpeg()).decode()
ENDED = {"DONE", "FAILED"}

TAKING = [route for route in ROUTES if Surface.PUBLIC in route.surfaces and route.form.takes_images]
"""The routes that fetch images."""

WAYS = {
    ("appliance/api/vision.py", "image"): "TAKING",
    ("appliance/api/training_images.py", "image"): "TAKING",
    ("appliance/asynchronous/webhooks.py", "check"): "Linking.webhooks",
    ("appliance/asynchronous/webhooks.py", "post"): "Linking.webhooks",
    ("appliance/search/sync/source.py", "check"): "Linking.feeds",
    ("appliance/search/sync/running.py", "feed"): "Linking.feeds",
    ("appliance/search/sync/running.py", "image"): "the items of feeds",
}
"""Where the source calls the gate, and what of the tests goes through there."""


def ways_out() -> set[tuple[str, str]]:
    """The modules that call the gate, each with what it calls."""
    package = Path(appliance.__file__).parent
    calls = set()
    for source in package.rglob("*.py"):
        text = source.read_text()
        for node in ast.walk(ast.parse(text)) if "outbound" in text else ():
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            gate, name = ast.unparse(node.func.value), node.func.attr
            if gate.endswith("outbound") and name in {"check", "image", "post", "feed"}:
                calls.add((str(source.relative_to(package.parent)), name))
    return calls


class Linking:
    """A customer whom nothing refuses but the gate: of every kind of bundle one is installed, and agreed is
    that images may be stored.
    """

    def __init__(self, served: Served, folder: Path) -> None:
        self.served = served
        self.detector = served.install(bundles.detector(folder / "detector"))
        served.install(bundles.tagger(folder / "tagger"))
        self.tenant = served.tenant("attacker")
        served.run(served.parts.agreements.sign(ACTOR, self.tenant.id, Kind.TRAINING_DATA))
        hashes = json.dumps({"name": "hashes", "backbone": "phash"}).encode()
        made = served.site.call("POST", "/appliance/v1/collections", hashes, self.tenant.headers())
        self.hashes = str(made.document["id"])

    def ask(self, method: str, path: str, document: object, collection: str | None = None) -> Reply:
        headers = self.tenant.headers(collection_id=collection or self.tenant.collection)
        return self.served.site.call(method, path, json.dumps(document).encode(), headers)

    def images(self, route: Route, links: Sequence[str]) -> list[Reply]:
        """The links as images of a route, wherever it takes one."""
        path, answers = route.path.replace("{id}", "fashion"), list[Reply]()
        collection = self.hashes if path.startswith(MATCHING) else None
        task = self.detector.task if path.startswith("/detection") else self.served.bundle.task
        for document in _documents(route.form, links):
            asked = document | ({"type": "descriptor"} if path == REQUEST else {}) | {"task_id": task}
            if route.form is Form.UPLOAD:
                del asked["task_id"]
            answers.append(self.ask(route.method, path, asked, collection))
        return [self._ended(answer) for answer in answers] if path == REQUEST else answers

    def webhooks(self, links: Sequence[str]) -> list[Reply]:
        """The links as those who are to be told of a request's end."""
        asked = {"type": "descriptor", "records": [{"_base64": PHOTO}]}
        return [self.ask("POST", REQUEST, asked | {"webhook": {"endpoint": link}}) for link in links]

    def feeds(self, links: Sequence[str]) -> list[Reply]:
        """The links as feeds of a collection."""
        path = f"/appliance/v1/collections/{self.tenant.collection}/source"
        return [self.ask("PUT", path, {"url": link}) for link in links]

    def features(self) -> dict[str, Callable[[Sequence[str]], list[Reply]]]:
        """All of them, by names for people."""
        return {
            **{route.path: partial(self.images, route) for route in TAKING},
            "webhooks": self.webhooks,
            "feeds": self.feeds,
        }

    def _ended(self, accepted: Reply) -> Reply:
        """An asynchronous request's answer, when it is there."""
        if accepted.status != 201:
            return accepted
        path, found = f"{REQUEST}/{accepted.document['id']}", list[Reply]()

        def ended() -> bool:
            found.append(self.served.site.call("GET", path, headers=self.tenant.headers()))
            return found[-1].document["status"] in ENDED

        eventually(ended, "the request ends")
        return found[-1]


FEATURES = [*(route.path for route in TAKING), "webhooks", "feeds"]


def _documents(form: Form, links: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The bodies in which links stand for images, each link at every place that there is."""
    batches = [
        [{"_id": str(uuid.uuid4()), "_url": link} for link in links[start : start + AT_ONCE]]
        for start in range(0, len(links), AT_ONCE)
    ]
    match form:
        case Form.UPLOAD:
            yield from ({"_url": link} for link in links)
        case Form.QUERY:
            for link in links:
                yield {"query_record": {"_url": link}, "records": [{"_base64": PHOTO}]}
            for batch in batches:
                records = [{"_url": record["_url"]} for record in batch]  # an id would name a stored one
                yield {"records": records}
                yield {"query_record": {"_base64": PHOTO}, "records": records}
        case _:
            yield from ({"records": batch} for batch in batches)
