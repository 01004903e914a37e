"""`/appliance/v1/collections/{id}/source`: the feed that a collection follows, and how its runs went.

A source's URL and headers may hold secrets: nobody is told more of them than the host and the names.
"""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import msgspec

from appliance.api.answers import JSON, Answer, Stream, moment
from appliance.api.call import Call
from appliance.errors import NotInstalled
from appliance.search.sync.feeds import Following
from appliance.search.sync.report import Run
from appliance.search.sync.source import Source
from appliance.search.sync.synchronisation import Synchronisation


class Feeds:
    """The handlers. A process that only manages follows nothing: there they are not installed."""

    def __init__(self, synchronisation: Synchronisation | None) -> None:
        self._given = synchronisation

    async def set(self, call: Call) -> Answer:
        """Follow this source, in the place of another one."""
        source = call.document(Source)
        return Answer(_source(await self._sync.set(call.actor, call.customer, call.collection, source)))

    async def get(self, call: Call) -> Answer:
        return Answer(_source(await self._sync.get(call.customer, call.collection)))

    async def remove(self, call: Call) -> Answer:
        """Follow nothing; records stay."""
        await self._sync.remove(call.actor, call.customer, call.collection)
        return Answer(status=204)

    async def run(self, call: Call) -> Answer:
        """Run now: what comes of it is among the runs."""
        return Answer(_run(await self._sync.run(call.actor, call.customer, call.collection)), 202)

    async def confirm(self, call: Call) -> Answer:
        """Let a run go on that asks whether so many items may go."""
        return Answer(_run(await self._sync.confirm(call.actor, call.customer, call.collection)), 202)

    async def runs(self, call: Call) -> Answer:
        """The last ones with their reports; the one under way as it is now."""
        runs = await self._sync.runs(call.customer, call.collection)
        return Answer({"runs": [_run(run) for run in runs]})

    async def diff(self, call: Call) -> Answer:
        """Which ids are to be inserted, updated and deleted, for the collection to hold those in the body."""
        difference = await self._sync.diff(
            call.customer,
            call.collection,
            call.payload.pieces,
            lines=call.media != JSON,
            hash_field=call.query.get("hash_field", "hash"),
        )
        pieces = difference.document()
        return Answer(stream=Stream(sum(map(len, pieces)), _given(pieces), lambda: None))

    @property
    def _sync(self) -> Synchronisation:
        if self._given is None:
            raise NotInstalled("this process manages the appliance and follows no feeds")
        return self._given


async def _given(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _source(following: Following) -> dict[str, object]:
    source, parts = following.source, urlsplit(following.source.url)
    return {
        "host": f"{parts.scheme}://{parts.netloc}",
        "headers": sorted(source.headers),
        "mapping": msgspec.to_builtins(source.mapping),
        "every_seconds": source.every_seconds,
        "daily_at": source.daily_at,
        "created_at": moment(following.created_at),
        "due_at": moment(following.due_at),
    }


def _run(run: Run) -> dict[str, object]:
    report = msgspec.to_builtins(run.report)
    failures = [{"id": identity, "reason": reason} for identity, reason in run.report.failures]
    return {
        "id": run.id,
        "state": run.state,
        "asked": run.asked,
        "began_at": moment(run.began_at),
        "ended_at": moment(run.ended_at),
        "report": report | {"failures": failures},
    }
