"""`/appliance/v1/datasets/{id}/import`, `export` and `held`: whole datasets as tars in known formats.

An operator may import for a customer, which only writes. Images go out to their customer's token, and to an
operator under a grant: the right to see each is minted from the one or the other.
"""

from collections.abc import AsyncIterator
from functools import partial

from appliance.accounts.grants import Grants
from appliance.accounts.tokens import Principal, Tokens
from appliance.api.answers import Answer, Stream
from appliance.api.call import Call
from appliance.api.datasets import AWAY
from appliance.api.fields import truth, word
from appliance.datasets import permits
from appliance.datasets.images import Images
from appliance.datasets.interchange.exporting import Granted, Permit
from appliance.datasets.interchange.formats import FORMATS
from appliance.datasets.interchange.importing import Report
from appliance.datasets.records import Dataset, Image, ReadPermit
from appliance.datasets.words import checked_name
from appliance.errors import InvalidInput, NotInstalled

_TAR = "application/x-tar"


class Interchange:
    """The handlers. A process that only manages has no images: there they are not installed."""

    def __init__(self, images: Images | None, grants: Grants, tokens: Tokens) -> None:
        self._open = images
        self._grants = grants
        self._tokens = tokens

    async def receive(self, call: Call) -> Answer:
        """Take an archive in; see `interchange.importing`."""
        dataset = await self._named(call)
        chosen, task = word(call, "format") or "auto", word(call, "task")
        if chosen != "auto" and chosen not in FORMATS:
            raise InvalidInput(f"format: auto or one of {', '.join(FORMATS)} is expected")
        report = await self._images.importing.run(
            call.actor,
            dataset,
            call.payload.pieces,
            format_name=chosen,
            task=None if task is None else checked_name(task),
        )
        return Answer(_document(report))

    async def give(self, call: Call) -> Answer:
        """The dataset as a tar; see `interchange.exporting`. An operator needs a grant over all of it."""
        dataset = await self._named(call)
        chosen = word(call, "format") or ""
        if chosen not in FORMATS:
            raise InvalidInput(f"format: one of {', '.join(FORMATS)} is expected")
        permit: Permit = partial(self._of_token, call.principal, dataset)
        granted: Granted | None = None
        if call.principal.customer is None:
            permit = partial(permits.of_grant, self._grants, call.actor, dataset)
            granted = self._grants.over(call.actor, dataset.customer, dataset.id)
        export = await self._images.exporting.begin(
            call.actor,
            dataset,
            FORMATS[chosen],
            permit,
            granted=granted,
            skip_damaged=truth(call, "skip_damaged") or False,
        )
        headers = {
            "Cache-Control": "private, no-store",
            "Content-Disposition": f'attachment; filename="{dataset.workspace}-{chosen}.tar"',
        }
        stream = Stream(None, export.pieces(), export.close)
        return Answer(headers=headers, content_type=_TAR, stream=stream)

    async def _of_token(self, principal: Principal, dataset: Dataset, image: Image) -> ReadPermit:
        """For each image anew: whoever has a stolen token reads as slowly as it likes."""
        self._tokens.require_live(principal)
        return await permits.of_token(dataset.customer, image)

    async def held(self, call: Call) -> Answer:
        """What was imported, as digests that tell whoever has a file that it need not be sent."""
        dataset = await self._named(call)
        return Answer(content_type="text/plain", stream=Stream(None, self._digests(dataset), lambda: None))

    async def _digests(self, dataset: Dataset) -> AsyncIterator[bytes]:
        async for some in self._images.sources.all(dataset):
            yield "".join(f"{source.digest.hex()}\n" for _, source in some).encode()

    async def _named(self, call: Call) -> Dataset:
        """The dataset of this id: a customer's own, for an operator anybody's. Raises NotFound."""
        catalogue, identity = self._images.datasets, call.parameters["id"]
        owner = call.owner(word(call, "customer"))
        if owner is None:
            owner = await catalogue.owner(identity)
        return await catalogue.get(owner, identity)

    @property
    def _images(self) -> Images:
        if self._open is None:
            raise NotInstalled(AWAY)
        return self._open


def _document(report: Report) -> dict[str, object]:
    return {
        "format": report.format,
        "images": report.images,
        "present": report.present,
        "labels": report.labels,
        "objects": report.objects,
        "ignored": report.ignored,
        "left_out": dict(report.left_out),
        "refused": [{"name": name, "reason": reason} for name, reason in report.reasons],
        "refused_count": report.refused,
    }
