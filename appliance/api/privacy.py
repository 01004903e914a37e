"""`/appliance/v1`: erasure, certificates of every erasure, a copy of all that a customer has, the report."""

import asyncio
from datetime import UTC, datetime
from functools import partial

import msgspec

from appliance.accounts.certificates import Certificate, Certificates
from appliance.accounts.customers import CustomerId
from appliance.accounts.rights import Scope
from appliance.api.answers import Answer, Stream, moment
from appliance.api.call import Call
from appliance.api.datasets import AWAY
from appliance.api.payload import integer
from appliance.errors import Forbidden, NotInstalled
from appliance.privacy.erasure import Erasure
from appliance.privacy.portability import Portability
from appliance.privacy.records import Records
from appliance.privacy.report import html

PAGE = 100
MAX_PAGE = 1000
_LAST = (1 << 63) - 1
_SEEING = (Scope.DATASETS_READ, Scope.SEARCH_READ)


class Privacy:
    """The handlers. A process that only manages reaches no images: it neither erases customers nor copies."""

    def __init__(
        self,
        certificates: Certificates,
        records: Records,
        erasure: Erasure | None,
        portability: Portability | None,
    ) -> None:
        self._certificates = certificates
        self._records = records
        self._erasure = erasure
        self._portability = portability

    async def erase_customer(self, call: Call) -> Answer:
        """By an operator, who says its name as well; answered when all of it is gone."""
        if self._erasure is None:
            raise NotInstalled(AWAY)
        customer, name = CustomerId(call.parameters["id"]), call.query.get("name", "")
        return Answer(self._shown(await self._erasure.erase(call.actor, customer, name)))

    async def list_erasures(self, call: Call) -> Answer:
        """Certificates after `after`, oldest first, without their envelopes; `next` as in the log.

        An operator's query may name a customer that was erased.
        """
        after = integer(call.query.get("after"), "after", 0, 0, _LAST)
        limit = integer(call.query.get("limit"), "limit", PAGE, 1, MAX_PAGE)
        owner = call.owner(call.query.get("customer"))
        about = call.query.get("about")
        found = await self._certificates.list(owner, about=about, after=after, limit=limit + 1)
        following = found[limit - 1].number if len(found) > limit else None
        return Answer({"erasures": [_listed(one) for one in found[:limit]], "next": following})

    async def get_erasure(self, call: Call) -> Answer:
        """A certificate whole, with the key that proves it."""
        owner = call.owner(call.query.get("customer"))
        return Answer(self._shown(await self._certificates.get(owner, call.parameters["id"])))

    async def export(self, call: Call) -> Answer:
        """All that the token's customer has; see `privacy.portability`."""
        if call.principal.customer is None:
            raise Forbidden(
                "an operator sees nothing of what a customer stores: export with a token of the customer's"
            )
        if self._portability is None:
            raise NotInstalled(AWAY)
        call.owner(call.query.get("customer"))
        for scope in _SEEING:
            if scope not in call.principal.scopes:
                raise Forbidden(f"the token lacks the scope {scope}, which a copy of everything needs too")
        entitled = partial(self._portability.tokens.require_live, call.principal)
        copy = await self._portability.begin(call.actor, call.customer, entitled)
        day = datetime.fromtimestamp(self._portability.clock(), UTC)
        headers = {
            "Cache-Control": "private, no-store",
            "Content-Disposition": f'attachment; filename="{call.customer}-{day:%Y%m%d}.zip"',
        }
        return Answer(
            headers=headers, content_type="application/zip", stream=Stream(None, copy.pieces(), copy.close)
        )

    async def report(self, _: Call) -> Answer:
        """Records of processing and the control matrix, as they are now, to be printed."""
        facts = await self._records.facts()
        page = await asyncio.to_thread(html, facts)
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
        return Answer(headers=headers, content_type="text/html; charset=utf-8", text=page.encode())

    def _shown(self, certificate: Certificate) -> dict[str, object]:
        return _listed(certificate) | {
            "statement": msgspec.Raw(certificate.statement),
            "envelope": msgspec.Raw(self._certificates.envelope(certificate)),
            "public_key": self._certificates.public_key,
        }


def _listed(certificate: Certificate) -> dict[str, object]:
    return {
        "id": certificate.id,
        "kind": certificate.kind,
        "customer": certificate.customer,
        "subject": certificate.subject,
        "erased_at": moment(certificate.erased_at),
    }
