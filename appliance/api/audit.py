"""`/appliance/v1/audit`: the log of what was done with what is a customer's own, and what proves it.

The tree of the log is over the entries of all customers. A proof holds hashes and tells nobody what another
customer's entries are.
"""

import base64
from datetime import datetime

from appliance.accounts.audit import AuditLog, Entry, Event, Selection
from appliance.accounts.customers import Customers
from appliance.accounts.grants import Grants
from appliance.accounts.transparency.tree import AuditTree, Proof
from appliance.api.answers import Answer, Stream, moment, unix_milliseconds
from appliance.api.call import Call
from appliance.api.payload import integer
from appliance.errors import InvalidInput, NotFound

PAGE = 100
MAX_PAGE = 1000
LINES = "application/x-ndjson"
_LAST = (1 << 63) - 1
_LONGEST_SUBJECT = 200


class Audit:
    """The handlers of the audit log."""

    def __init__(self, customers: Customers, log: AuditLog, tree: AuditTree, grants: Grants) -> None:
        self._customers = customers
        self._log = log
        self._tree = tree
        self._grants = grants

    async def list_entries(self, call: Call) -> Answer:
        """Entries after `after`, oldest first; `next` is the `after` of the page that follows, if any.

        The customer sees with each that is about a grant why that was opened: the log itself holds no words.
        """
        chosen = await self._chosen(call)
        limit = integer(call.query.get("limit"), "limit", PAGE, 1, MAX_PAGE)
        found = await self._log.entries(chosen, after=_after(call), limit=limit + 1)
        page = found[:limit]
        following = page[-1].seq if len(found) > limit else None
        shown = [_entry(entry) for entry in page]
        if call.principal.customer is not None:
            about = {_grant(entry) for entry in page} - {""}
            reasons = await self._grants.reasons(call.principal.customer, about)
            for one, entry in zip(shown, page, strict=True):
                if (reason := reasons.get(_grant(entry))) is not None:
                    one["reason"] = reason
        return Answer({"entries": shown, "next": following})

    async def export(self, call: Call) -> Answer:
        """All of them, each the very leaf that the tree has of it."""
        lines = self._tree.lines(await self._chosen(call), after=_after(call))
        headers = {
            "Cache-Control": "private, no-store",
            "Content-Disposition": 'attachment; filename="audit.jsonl"',
        }
        return Answer(headers=headers, content_type=LINES, stream=Stream(None, lines, lambda: None))

    async def checkpoint(self, call: Call) -> Answer:
        """The newest signed head of the log, for the caller to keep."""
        await call.listed(self._customers)
        note = self._tree.checkpoint().note
        return Answer(text=note.encode(), content_type="text/plain; charset=utf-8")

    async def proof(self, call: Call) -> Answer:
        """That an entry of the caller's is in the log, or that the log goes on from an earlier checkpoint."""
        customer = await call.listed(self._customers)
        seq, size = call.query.get("seq"), call.query.get("from")
        if (seq is None) == (size is None):
            raise InvalidInput("seq or from: one is expected, an entry or the size of a checkpoint")
        if seq is None:
            old = integer(size, "from", 0, 0, _LAST)
            return Answer({"from": old, **_proof(await self._tree.consistency(old))})
        asked = integer(seq, "seq", 0, 1, _LAST)
        leaf = await self._tree.leaf(Selection(customer), asked)
        if leaf is None:
            raise NotFound("no such entry")
        proof = await self._tree.inclusion(asked)
        return Answer({"seq": asked, "index": asked - 1, "entry": leaf.decode(), **_proof(proof)})

    async def _chosen(self, call: Call) -> Selection:
        """What the query chooses of whose entries the caller may see. Raises NotFound, InvalidInput."""
        customer = await call.listed(self._customers)
        subject = call.query.get("subject")
        if subject is not None and len(subject) > _LONGEST_SUBJECT:
            raise InvalidInput(f"subject: at most {_LONGEST_SUBJECT} characters")
        return Selection(
            customer,
            events=tuple(_event(name) for name in dict.fromkeys(call.query.getall("event", []))),
            subject=subject,
            since=_milliseconds(call, "since"),
            until=_milliseconds(call, "until"),
        )


def _after(call: Call) -> int:
    return integer(call.query.get("after"), "after", 0, 0, _LAST)


def _event(name: str) -> Event:
    try:
        return Event(name)
    except ValueError:
        raise InvalidInput("event: no such event; one is written like token.add") from None


def _milliseconds(call: Call, name: str) -> int | None:
    """A time in the query as the ledger has it, None where there is none."""
    given = call.query.get(name)
    try:
        when = None if given is None else datetime.fromisoformat(given)
    except ValueError:
        raise InvalidInput(f"{name}: a time with its zone is expected (2027-01-31T12:00:00Z)") from None
    return unix_milliseconds(when, name)


def _proof(proof: Proof) -> dict[str, object]:
    head = proof.checkpoint
    return {
        "size": head.size,
        "root": base64.b64encode(head.root).decode(),
        "hashes": [base64.b64encode(one).decode() for one in proof.hashes],
        "checkpoint": head.note,
    }


def _grant(entry: Entry) -> str:
    """The id of the grant that an entry is about, "" where it is about none."""
    of_its_own = entry.event.startswith("grant.")
    return str(entry.subject if of_its_own else entry.details.get("grant", ""))


def _entry(entry: Entry) -> dict[str, object]:
    return {
        "seq": entry.seq,
        "time": moment(entry.time),
        "event": entry.event,
        "actor": {"kind": entry.actor.kind, "id": entry.actor.id},
        "request": entry.actor.request,
        "customer": entry.customer,
        "subject": entry.subject,
        "details": entry.details,
    }
