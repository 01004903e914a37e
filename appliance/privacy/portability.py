"""All that a customer has, as one zip file: Art. 15 and 20 of the GDPR.

    customer.json, usage.json                     who it is; how much it has and may have
    agreements.json, agreements/ID, grants.json   with the papers, and the reasons of grants
    tokens.json, aliases.json                     tokens without their secrets
    audit.jsonl, requests.jsonl, erasures.jsonl   certificates as `erasure verify` takes them
    datasets/ID/dataset.json                      and all that is written about its images, see `written`
    datasets/ID/coco.tar, imagefolder.tar         as `dataset import` takes them
    collections/ID/collection.json, source.json   source.json: the feed that it follows, and how its runs went
    collections/ID/vectors.zip                    as `collection import` takes it
    collections/ID/snapshots.json, snapshots/ID.zip   records of then, as in vectors.zip
    left_out.json                                 what is not in it, and why

`imagefolder.tar` is there where a folder for each class says all that is known of the images.

Times are unix milliseconds. Nothing is compressed: images and vectors do not shrink.
A piece is held at a time.
"""

import logging
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import IO, cast

import msgspec

from appliance.accounts.agreements import Agreement, Agreements
from appliance.accounts.audit import Actor, AuditLog, Event, Selection, record
from appliance.accounts.certificates import Certificates
from appliance.accounts.customers import Customer, CustomerId, Customers
from appliance.accounts.grants import Grants
from appliance.accounts.quotas import Quotas
from appliance.accounts.tokens import Tokens
from appliance.asynchronous.requests import Requests
from appliance.datasets.images import Images
from appliance.datasets.interchange import formats
from appliance.datasets.interchange.exporting import Export
from appliance.datasets.permits import of_token
from appliance.datasets.records import Dataset
from appliance.errors import ApplianceError, Conflict, Forbidden, InvalidInput, NotFound, SealBroken
from appliance.ledger import Ledger
from appliance.privacy.written import written
from appliance.search.collections import Collection, CollectionId, Collections
from appliance.search.interchange import exporting
from appliance.search.interchange.exporting import Pages, Sink
from appliance.search.sync.feeds import Feeds

_log = logging.getLogger(__name__)

COPIED: Mapping[str, str] = {
    "customers": "customer.json",
    "search_usage": "usage.json",
    "agreements": "agreements.json",
    "grants": "grants.json",
    "grant_approvals": "grants.json",
    "tokens": "tokens.json",
    "aliases": "aliases.json",
    "audit": "audit.jsonl",
    "requests": "requests.jsonl",
    "certificates": "erasures.jsonl",
    "tombstones": "erasures.jsonl",
    "datasets": "datasets/*/dataset.json",
    "labels": "datasets/*/labels.jsonl",
    "following_tasks": "datasets/*/labels.jsonl",
    "tasks": "datasets/*/tasks.jsonl",
    "task_labels": "datasets/*/tasks.jsonl",
    "negative_images": "datasets/*/tasks.jsonl",
    "images": "datasets/*/images.jsonl",
    "image_labels": "datasets/*/images.jsonl",
    "verifications": "datasets/*/images.jsonl",
    "objects": "datasets/*/objects.jsonl",
    "object_labels": "datasets/*/objects.jsonl",
    "clear_boxes": "datasets/*/objects.jsonl",
    "points": "datasets/*/points.jsonl",
    "collections": "collections/*/collection.json",
    "records": "collections/*/vectors.zip",
    "frames": "collections/*/vectors.zip",
    "feeds": "collections/*/source.json",
    "feed_runs": "collections/*/source.json",
}
"""Every table of the ledger that has something of customers, and where in a copy that is; the others are in
LEFT_OUT."""
LEFT_OUT: Mapping[str, str] = {
    "search_replies": "answers that an Idempotency-Key remembers for a day: each was given when it was asked",
    "feed_items": "keyed hashes by which changes of a feed are noticed",
    "erased_records": "keyed hashes of the ids of records that no snapshot brings back",
    "dataset_counts": "counts of the images that are in it",
    "label_counts": "counts of the labels that are in it",
    "bundle_tasks": "which installed models answer the customer alone: its lists of tasks have them",
    "headers of feeds": "their values may be secrets of others; the names are in source.json",
    "webhooks of requests": "their addresses and headers may be secrets of others",
    "thumbnails": "they are made from the images",
}
"""What no copy has, and why: tables, and what else there is."""

_FORMATS = ("coco", "imagefolder")
_PAGE = 500

Pieces = AsyncIterator[bytes]
Members = AsyncIterator[tuple[str, Pieces]]


@dataclass(frozen=True)
class Portability:
    """What gives out copies of everything."""

    ledger: Ledger
    customers: Customers
    tokens: Tokens
    quotas: Quotas
    agreements: Agreements
    grants: Grants
    audit: AuditLog
    certificates: Certificates
    requests: Requests
    collections: Collections
    feeds: Feeds
    images: Images
    clock: Callable[[], float]

    async def begin(self, actor: Actor, customer: CustomerId, entitled: Callable[[], None]) -> "Copy":
        """A copy of all that the customer has, audited before a byte of it leaves; to be closed.

        That `actor` may see all of it is the caller's to prove; `entitled` raises when that is over, and is
        asked for each piece. Raises NotFound for the customer.
        """
        found = await self.customers.get(customer)
        now = int(self.clock() * 1000)
        await self.ledger.write(
            lambda connection: record(connection, now, actor, Event.CUSTOMER_EXPORT, customer, customer)
        )
        return Copy(self, actor, found, entitled)


class Copy:
    """A copy that is ready to go: `pieces` are gone through once; to be closed."""

    def __init__(
        self, parts: Portability, actor: Actor, customer: Customer, entitled: Callable[[], None]
    ) -> None:
        self._parts = parts
        self._entitled = entitled
        self._actor = actor
        self._customer = customer
        self._left_out = [{"name": name, "reason": reason} for name, reason in LEFT_OUT.items()]
        self._open: Export | None = None

    async def pieces(self) -> Pieces:
        """The zip file. Raises what reading does, and `entitled`: what came by then is no whole zip file."""
        sink = Sink()
        with zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_STORED) as archive:
            async for name, content in self._members():
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o600 << 16
                # The length of none is known before: it may be more than 4 GiB.
                with archive.open(info, "w", force_zip64=True) as member:
                    async for piece in content:
                        self._entitled()
                        member.write(piece)
                        yield sink.taken()
        yield sink.taken()

    def close(self) -> None:
        """Give back what is open."""
        if self._open is not None:
            self._open.close()
            self._open = None

    async def _members(self) -> Members:
        parts, customer = self._parts, self._customer.id
        yield "customer.json", _whole(self._customer)
        yield "usage.json", _whole(await self._usage())
        agreements = await parts.agreements.list(customer)
        yield "agreements.json", _whole(agreements)
        async for member in self._papers(agreements):
            yield member
        yield "grants.json", _whole(await parts.grants.list(customer))
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

    async def _usage(self) -> dict[str, object]:
        parts, customer = self._parts, self._customer.id
        collections, vectors = await parts.collections.usage(customer)
        images, size = await parts.images.datasets.usage(customer)
        used = {"images": images, "bytes": size, "collections": collections, "vectors": vectors}
        return {"used": used, "most": asdict(parts.quotas.of(customer))}

    async def _papers(self, agreements: list[Agreement]) -> Members:
        for agreement in agreements:
            if agreement.has_document:
                name = f"agreements/{agreement.id}"
                try:
                    yield name, _piece(await self._parts.agreements.document(self._customer.id, agreement.id))
                except (NotFound, SealBroken) as reason:
                    self._leave_out(name, reason)

    async def _dataset(self, dataset: Dataset) -> Members:
        folder, images = f"datasets/{dataset.id}", self._parts.images
        described = msgspec.to_builtins(dataset)
        del described["number"]  # of all customers
        yield f"{folder}/dataset.json", _whole(described)
        for name, lines in written(images, dataset).items():
            yield f"{folder}/{name}", lines
        permit = partial(of_token, self._customer.id)
        for name in _FORMATS:
            try:
                self._open = await images.exporting.begin(
                    self._actor, dataset, formats.FORMATS[name], permit, skip_damaged=True
                )
            except (Conflict, Forbidden, InvalidInput, NotFound) as reason:
                self._leave_out(f"{folder}/{name}.tar", reason)
                continue
            export = self._open
            yield f"{folder}/{name}.tar", export.pieces()
            self.close()
            if export.left_out:
                which = f"{len(export.left_out)} images, which {formats.LEFT_OUT} in it names"
                self._leave_out(f"{folder}/{name}.tar", which)

    async def _collection(self, collection: Collection) -> Members:
        folder = f"collections/{collection.id}"
        yield f"{folder}/collection.json", _whole(collection)
        try:
            yield f"{folder}/source.json", _whole(await self._source(collection.id))
        except NotFound:  # it follows none
            pass
        except SealBroken as reason:
            self._leave_out(f"{folder}/source.json", reason)
        async for member in self._snapshots(collection, folder):
            yield member
        try:
            opened = await self._parts.collections.open(self._customer.id, collection.id)
            pages = await exporting.begin(self._actor, opened, skip_damaged=True)
        except (Conflict, NotFound) as reason:
            self._leave_out(f"{folder}/vectors.zip", reason)
            return
        if damaged := opened.damaged:
            self._leave_out(f"{folder}/vectors.zip", f"{damaged} records that are damaged")
        yield f"{folder}/vectors.zip", exporting.as_zip(pages, collection.dim)

    async def _source(self, collection: CollectionId) -> dict[str, object]:
        following = await self._parts.feeds.get(self._customer.id, collection)
        runs = await self._parts.feeds.runs(self._customer.id, collection)
        source = msgspec.to_builtins(following.source) | {"headers": sorted(following.source.headers)}
        return {**source, "created_at": following.created_at, "due_at": following.due_at, "runs": runs}

    async def _snapshots(self, collection: Collection, folder: str) -> Members:
        snapshots = self._parts.collections.snapshots
        try:
            found = await snapshots.list(self._customer.id, collection.id)
        except NotFound as reason:
            self._leave_out(f"{folder}/snapshots.json", reason)
            return
        yield f"{folder}/snapshots.json", _whole(found)
        for one in found:
            name = f"{folder}/snapshots/{one.id}.zip"
            records = snapshots.stored(self._customer.id, collection.id, one.id)
            yield name, exporting.as_zip(self._as_far_as_sound(name, records), collection.dim)

    async def _as_far_as_sound(self, name: str, pages: Pages) -> Pages:
        try:
            async for page in pages:
                yield page
        except (NotFound, SealBroken) as reason:
            self._leave_out(name, reason, "records from here on: ")

    def _leave_out(self, name: str, reason: ApplianceError | str, which: str = "") -> None:
        if isinstance(reason, ApplianceError):
            if reason.told != str(reason):
                _log.error("%s is left out of the copy for customer %s: %s", name, self._customer.id, reason)
            reason = reason.told
        self._left_out.append({"name": name, "reason": which + reason})

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


async def _piece(content: bytes) -> Pieces:
    yield content


def _line(document: object) -> bytes:
    return msgspec.json.encode(document) + b"\n"
