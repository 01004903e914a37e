"""A tenant's collection as a client sees it, and records that look alike or not."""

import base64
import json
from typing import Any

from PIL import Image

from tests import images
from tests.serving import Reply, Served, Tenant

PHOTOS = "/similarity/photos/v2"


class Shop:
    """A tenant's collection as a client sees it."""

    def __init__(self, served: Served, tenant: Tenant, collection: str) -> None:
        self.served = served
        self.tenant = tenant
        self.collection = collection

    def ask(self, action: str, document: object, family: str = PHOTOS, **headers: str) -> Reply:
        headers = {"collection_id": self.collection, **headers}
        body = json.dumps(document).encode()
        return self.served.site.call("POST", f"{family}/{action}", body, self.tenant.headers(**headers))

    def post(self, action: str, document: object, **headers: str) -> Any:
        answer = self.ask(action, document, **headers)
        assert answer.status == (200 if 200 <= answer.code < 300 else answer.code), answer.body
        return answer.document

    def insert(self, *records: object, **fields: object) -> Any:
        return self.post("insert", {"records": records, **fields})

    def stored(self) -> list[str]:
        return ids(self.post("allRecords", {}))


def grey(level: int) -> str:
    return f"#{level:02x}8040"


def record(name: object, level: int = 0, /, **fields: object) -> dict[str, object]:
    """Neighbouring levels look alike."""
    encoded = images.encoded(Image.new("RGB", (30, 20), grey(level)), "PNG")
    return {"_id": name, "_base64": base64.b64encode(encoded).decode(), **fields}


def ids(document: Any) -> list[str]:
    return [one["_id"] for one in document["answer_records"]]


def code(document: Any) -> int:
    return int(document["status"]["code"])


def reasons(document: Any) -> list[int]:
    return [one["_reason"]["status"]["code"] for one in document["skipped_records"]]
