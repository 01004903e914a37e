"""All that a customer has, as one zip file: Art. 15 and 20 of the GDPR.

    customer.json, agreements.json, tokens.json, aliases.json   tokens without their secrets
    audit.jsonl, requests.jsonl, erasures.jsonl                 certificates as `erasure verify` takes them
    datasets/ID/dataset.json, coco.tar, imagefolder.tar        as `dataset import` takes them
    collections/ID/collection.json, vectors.zip                as `collection import` takes it
    left_out.json                                               what is not in it, and why

`imagefolder.tar` is there where a folder for each class says all that is known of the images.

Times are unix milliseconds. Nothing is compressed: images and vectors do not shrink.
A piece is held at a time.
"""

import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, cast

import msgspec

from appliance.accounts.agreements import Agreements
from appliance.accounts.audit import Actor, AuditLog, Event, Selection, record
from appliance.accounts.certificates import Certificates
from appliance.accounts.customers import Customer, CustomerId, Customers
from appliance.accounts.tokens import Tokens
from appliance.asynchronous.requests import Requests
from appliance.datasets.images import Images
from appliance.datasets.interchange.exporting import Export
from appliance.datasets.interchange.formats import FORMATS
from appliance.datasets.permits import of_token
from appliance.datasets.records import Dataset
from appliance.errors import Conflict, Forbidden, InvalidInput, NotFound
from appliance.ledger import Ledger
from appliance.search.collections import Collection, Collections
from appliance.search.interchange import exporting
from appliance.search.interchange.exporting import Sink

_FORMATS = ("coco", "imagefolder")
_PAGE = 500

Pieces = AsyncIterator[bytes]


@dataclass(frozen=True)
class Portability:
    """What gives out copies of everything."""

    ledger: Ledger
    customers: Customers
    tokens: Tokens
    agreements: Agreements
    audit: AuditLog
    certificates: Certificates
    requests: Requests
    collections: Collections
    images: Images
    clock: Callable[[], float]

    async def begin(self, actor: Actor, customer: CustomerId) -> "Copy":
        """A copy of all that the customer has, audited before a byte of it leaves; to be closed.

        That `actor` may see all of it is the caller's to prove. Raises NotFound for the customer.
        """
        found = await self.customers.get(customer)
        now = int(self.clock() * 1000)
        await self.ledger.write(
            lambda connection: record(connection, now, actor, Event.CUSTOMER_EXPORT, customer, customer)
        )
        return Copy(self, actor, found)


class Copy:
    """A copy that is ready to go: `pieces` are gone through once; to be closed."""

    def __init__(self, parts: Portability, actor: Actor, customer: Customer) -> None:
        self._parts = parts
        self._actor = actor
        self._customer = customer
        self._left_out: list[dict[str, str]] = []
        self._open: Export | None = None

    async def pieces(self) -> Pieces:
        """The zip file. Raises what reading raises; what came until then is no whole zip file."""
        sink = Sink()
        with zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_STORED) as archive:
            async for name, content in self._members():
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o600 << 16
                # The length of none is known before: it may be more than 4 GiB.
                with archive.open(info, "w", force_zip64=True) as member:
                    async for piece in content:
                        member.write(piece)
                        yield sink.taken()
        yield sink.taken()

    def close(self) -> None:
        """Give back what is open."""
        if self._open is not None:
            self._open.close()
            self._open = None

    async def _members(self) -> AsyncIterator[tuple[str, Pieces]]:
        parts, customer = self._parts, self._customer.id
        yield "customer.json", _whole(self._customer)
        yield "agreements.json", _whole(await parts.agreements.list(customer))
        yield "tokens.json", _whole(await parts.tokens.list(customer))
        yield "aliases.json", _whole(parts.collections.aliases.list(customer))
        yield "audit.jsonl", self._audit()
        yield "requests.jsonl", self._requests()
        yield "erasures.jsonl", self._erasures()
        for dataset in await parts.images.datasets.list(customer):
            async for member in self._dataset(dataset):
                yield member
        for collection in await parts.collections.list(customer):
            async for member in self._collection(collection):
                yield member
        yield "left_out.json", _whole(self._left_out)

    async def _dataset(self, dataset: Dataset) -> AsyncIterator[tuple[str, Pieces]]:
        folder, images = f"datasets/{dataset.id}", self._parts.images
        described = msgspec.to_builtins(dataset)
        del described["number"]  # of all customers
        yield f"{folder}/dataset.json", _whole(described)
        permit = partial(of_token, self._customer.id)
        for name in _FORMATS:
            try:
                self._open = await images.exporting.begin(
                    self._actor, dataset, FORMATS[name], permit, skip_damaged=True
                )
            except (Forbidden, InvalidInput, NotFound) as reason:
                self._leave_out(f"{folder}/{name}.tar", str(reason))
                continue
            yield f"{folder}/{name}.tar", self._open.pieces()
            self.close()

    async def _collection(self, collection: Collection) -> AsyncIterator[tuple[str, Pieces]]:
        folder = f"collections/{collection.id}"
        yield f"{folder}/collection.json", _whole(collection)
        try:
            opened = await self._parts.collections.open(self._customer.id, collection.id)
            pages = await exporting.begin(self._actor, opened, skip_damaged=True)
        except (Conflict, NotFound) as reason:
            self._leave_out(f"{folder}/vectors.zip", str(reason))
            return
        if damaged := opened.damaged:
            self._leave_out(f"{folder}/vectors.zip", f"{damaged} records that are damaged")
        yield f"{folder}/vectors.zip", exporting.as_zip(pages, collection.dim)

    def _leave_out(self, name: str, reason: str) -> None:
        self._left_out.append({"name": name, "reason": reason})

    async def _audit(self) -> Pieces:
        after = 0
        while page := await self._parts.audit.entries(Selection(self._customer.id), after=after, limit=_PAGE):
            after = page[-1].seq
            yield b"".join(map(_line, page))

    async def _requests(self) -> Pieces:
        number = 1
        while page := (await self._parts.requests.list(self._customer.id, number))[0]:
            number += 1
            for one in page:
                response = msgspec.Raw(one.response or b"null")
                yield _line(msgspec.to_builtins(replace(one, response=None)) | {"response": response})

    async def _erasures(self) -> Pieces:
        after = 0
        while page := await self._parts.certificates.list(self._customer.id, after=after, limit=_PAGE):
            after = page[-1].number
            yield b"".join(self._parts.certificates.envelope(one) + b"\n" for one in page)


async def _whole(document: object) -> Pieces:
    yield msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _line(document: object) -> bytes:
    return msgspec.json.encode(document) + b"\n"
