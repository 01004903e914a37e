"""What the search routes have in common: what they read, the cloud's codes, records shown and left out.

The codes are in TEXTS; HTTP has 200 for every 2xx of them, else the code itself.
"""

from collections.abc import Iterable, Sequence

from appliance.api.answers import Answer, Refused, code_of, http_status, status, status_of
from appliance.api.call import Call
from appliance.api.payload import Payload, Record
from appliance.api.projection import Projection
from appliance.config import Search
from appliance.errors import ApplianceError, CapacityExceeded, InvalidInput, NotFound
from appliance.search import filters
from appliance.search.filters import Filter
from appliance.search.records import Inserted, Metadata, Upserted, encode_id
from appliance.search.records import Record as Stored

TEXTS = {
    200: "OK",
    205: "records found",
    206: "some of the records not found",
    210: "records inserted",
    211: "some records inserted",
    220: "records deleted",
    400: "no record could be used",
    404: "records not found",
    411: "record duplicate",
    412: "hard capacity exceeded",
}


def answer(
    call: Call,
    code: int,
    records: Sequence[Metadata],
    skipped: Sequence[Metadata] | None = None,
    **more: object,
) -> Answer:
    """The family's envelope with these records; `more` are fields beside them."""
    document: dict[str, object] = {"answer_records": records, "answer_count": len(records), **more}
    if skipped is not None:
        document["skipped_records"] = skipped
    return enveloped(call, code, document)


def enveloped(call: Call, code: int, document: dict[str, object]) -> Answer:
    """The document with status and statistics; HTTP says the code too, see `http_status`."""
    document |= {
        "status": status(code, TEXTS[code], call.id),
        "statistics": {"OperationTime": call.elapsed},
    }
    return Answer(document, http_status(code))


def filter_of(payload: Payload) -> Filter | None:
    """The `filter` of a request, None where it has none or an empty one. Raises InvalidInput."""
    document = payload.fields.get("filter")
    return None if document in (None, {}) else filters.compile(document)


def shown(record: Stored, projection: Projection) -> Metadata:
    """What is wanted of a stored record."""
    return projection.of({"_id": record.id, **record.metadata})


def metadata_of(record: Record) -> Metadata:
    """What a caller's record says beside its id."""
    return {name: value for name, value in record.fields.items() if name != "_id"}


def refusal(outcome: Inserted | Upserted) -> ApplianceError | None:
    """Why a record was not stored, None when it was."""
    if outcome in {"inserted", "replaced"}:
        return None
    return Refused(411, TEXTS[411]) if outcome == "duplicate" else CapacityExceeded(TEXTS[412])


def skipped(call: Call, record: Record, why: ApplianceError) -> Metadata:
    """A record that was left out, and the reason where the clients look for it."""
    reason = status_of(why, call.id)
    return record.fields | {"_status": reason, "_reason": {"status": reason}}


def query_of(call: Call) -> Record:
    """The `query_record` of a call. Raises InvalidInput when there is none."""
    if call.payload.query is None:
        raise InvalidInput("query_record: a record with an image or an _id is expected")
    return call.payload.query


def identified(call: Call, limits: Search) -> tuple[list[Record], list[Metadata]]:
    """The records of a call that have a usable `_id`, and the others as skipped.

    Raises InvalidInput when there are none at all.
    """
    usable: list[Record] = []
    left_out: list[Metadata] = []
    if not call.payload.records:
        raise InvalidInput("records: at least one is expected")
    for record in call.payload.records:
        try:
            encode_id(record.id, limits.max_id_bytes)
        except InvalidInput as why:
            left_out.append(skipped(call, record, why))
        else:
            usable.append(record)
    return usable, left_out


def missing(call: Call, records: Iterable[Record], found: Iterable[object]) -> list[Metadata]:
    """The records for which there is None."""
    pairs = zip(records, found, strict=True)
    return [skipped(call, record, NotFound(TEXTS[404])) for record, there in pairs if there is None]


def found_code(complete: int, answers: Sequence[object], left_out: Sequence[object]) -> int:
    """`complete` where nothing was left out, 206 where something was, 404 where all was."""
    if not left_out:
        return complete
    return 206 if answers else 404


def stored_code(stored: int, refusals: Sequence[ApplianceError]) -> int:
    """210 where all were stored, 211 where some were; else what refused them all, 400 for various reasons."""
    if stored:
        return 211 if refusals else 210
    codes = {code_of(one) for one in refusals}
    return codes.pop() if codes in ({411}, {412}) else 400
