"""`/appliance/v1/collections/{id}/import` and `export`: ready vectors in, whole collections out.

Both of any length. An operator may import for a customer, which only writes. Records go out
to their customer's token alone.
"""

from appliance.api.answers import Answer, Refused, Stream
from appliance.api.call import Call
from appliance.api.fields import truth
from appliance.config import Search
from appliance.errors import Conflict, Forbidden, InvalidInput
from appliance.search.collections import Collections, OpenCollection
from appliance.search.interchange import exporting, importing
from appliance.search.interchange.importing import Candidates, Report

NPY, LINES, MULTIPART, ZIP = (
    "application/x-npy",
    "application/x-ndjson",
    "multipart/form-data",
    "application/zip",
)
_BESIDE = 1 << 20
"""Bytes of a line beside its metadata and its vector."""
_NUMBER = 32
"""Bytes of a number in a line, at most, with its comma."""


class Transfers:
    """The handlers."""

    def __init__(self, collections: Collections, limits: Search) -> None:
        self._collections = collections
        self._limits = limits

    async def receive(self, call: Call) -> Answer:
        """Store vectors that the caller has; see `interchange.importing`."""
        collection = await self._named(call)
        pin, held = call.query.get("backbone"), collection.collection.backbone
        if not pin:
            raise InvalidInput("backbone: NAME@VERSION of the model that made the vectors is expected")
        if pin != held:
            raise Conflict(
                f"the collection holds vectors of {held}: those of another model cannot be compared with them"
            )
        conflict = call.query.get("on_conflict", "keep")
        if conflict not in {"keep", "replace"}:
            raise InvalidInput("on_conflict: keep or replace is expected")
        candidates = self._candidates(call, collection.collection.dim)
        report = await importing.run(call.actor, collection, candidates, replace=conflict == "replace")
        return Answer(_document(report, call.media))

    async def give(self, call: Call) -> Answer:
        """The whole collection; see `interchange.exporting`."""
        if call.principal.customer is None:
            raise Forbidden(
                "an operator sees no customer's records: export with a token of the customer's that has the"
                " scope search:read"
            )
        collection = await self._named(call)
        chosen = call.query.get("format")
        if chosen not in {"npy", "ndjson"}:
            raise InvalidInput("format: npy or ndjson is expected")
        skipping = truth(call, "skip_damaged") or False
        pages = await exporting.begin(call.actor, collection, skip_damaged=skipping)
        if chosen == "npy":
            pieces, media, suffix = exporting.as_zip(pages, collection.collection.dim), ZIP, "zip"
        else:
            pieces, media, suffix = exporting.as_lines(pages), LINES, "jsonl"
        headers = {
            "Cache-Control": "private, no-store",
            "Content-Disposition": f'attachment; filename="{collection.collection.id}.{suffix}"',
            "X-Backbone": collection.collection.backbone,
        }
        return Answer(headers=headers, content_type=media, stream=Stream(None, pieces, lambda: None))

    def _candidates(self, call: Call, dim: int) -> Candidates:
        most = self._limits.max_metadata_bytes + _NUMBER * dim + _BESIDE
        match call.media:
            case "application/x-ndjson":
                return importing.of_lines(call.payload.pieces, dim, most)
            case "application/x-npy":
                return importing.of_array(call.payload.pieces, dim, call.query.get("prefix", ""))
            case "multipart/form-data":
                return importing.of_parts(call.payload.files, dim, most)
            case _:
                raise Refused(415, f"Content-Type: {NPY}, {LINES} or {MULTIPART} is expected")

    async def _named(self, call: Call) -> OpenCollection:
        """A customer's own collection, for an operator anybody's. Raises NotFound."""
        return await self._collections.open(call.principal.customer, call.collection)


def _document(report: Report, media: str) -> dict[str, object]:
    """Rows are told as NumPy counts them, lines as editors do."""
    place, first = ("row", 0) if media == NPY else ("line", 1)
    return {
        "inserted": report.inserted,
        "replaced": report.replaced,
        "kept": report.kept,
        "refused": report.refused,
        "reasons": [{place: number + first, "reason": why} for number, why in report.reasons],
    }
