"""`/appliance/v1/agreements`: what a customer has agreed to."""

from datetime import date, datetime

import msgspec

from appliance.accounts.agreements import Agreement, AgreementId, parse_kind
from appliance.accounts.agreements import Agreements as Register
from appliance.accounts.contracts import Contract
from appliance.accounts.customers import CustomerId, Customers
from appliance.api.answers import Answer, moment, unix_milliseconds
from appliance.api.call import Call
from appliance.api.datasets import AWAY
from appliance.api.fields import truth
from appliance.errors import Forbidden, NotInstalled
from appliance.privacy.erasure import Erasure


class NewAgreement(msgspec.Struct, forbid_unknown_fields=True):
    customer: str
    kind: str
    await_acceptance: bool = False
    parties: str | None = None
    text_sha256: str | None = None
    signed_on: date | None = None
    valid_until: datetime | None = None


class Agreements:
    """The handlers. Without `erasure` nothing is erased here."""

    def __init__(self, customers: Customers, agreements: Register, erasure: Erasure | None) -> None:
        self._customers = customers
        self._register = agreements
        self._erasure = erasure

    async def sign_agreement(self, call: Call) -> Answer:
        asked = call.document(NewAgreement)
        valid_until = unix_milliseconds(asked.valid_until, "valid_until")
        signed = await self._register.sign(
            call.actor,
            CustomerId(asked.customer),
            parse_kind(asked.kind),
            Contract(asked.parties, asked.text_sha256, asked.signed_on, valid_until),
            await_acceptance=asked.await_acceptance,
        )
        return Answer(_agreement(signed), 201)

    async def list_agreements(self, call: Call) -> Answer:
        agreements = await self._register.list(await call.listed(self._customers))
        return Answer({"agreements": [_agreement(agreement) for agreement in agreements]})

    async def accept_agreement(self, call: Call) -> Answer:
        """By the customer alone: an operator who could accept would have agreed with itself."""
        customer = call.principal.customer
        if customer is None:
            raise Forbidden("the customer itself accepts, with a token of its own that has the scope admin")
        accepted = await self._register.accept(call.actor, customer, AgreementId(call.parameters["id"]))
        return Answer(_agreement(accepted))

    async def attach_document(self, call: Call) -> Answer:
        await self._register.attach(call.actor, AgreementId(call.parameters["id"]), bytes(call.payload.body))
        return Answer(status=204)

    async def get_document(self, call: Call) -> Answer:
        """The bytes of the paper that was signed."""
        owner = call.owner(call.query.get("customer"))
        document = await self._register.document(owner, AgreementId(call.parameters["id"]))
        return Answer(content_type="application/octet-stream", text=document)

    async def revoke_agreement(self, call: Call) -> Answer:
        """With `erase` also all that it has allowed to be stored, as the customer alone may ask."""
        owner = call.owner(call.query.get("customer"))
        identity = AgreementId(call.parameters["id"])
        if not truth(call, "erase"):
            await self._register.revoke(call.actor, owner, identity)
            return Answer(status=204)
        if owner is None or call.principal.customer is None:
            raise Forbidden("erase: the customer itself asks for it, with a token of its own")
        if self._erasure is None:
            raise NotInstalled(AWAY)
        await self._erasure.erase_agreed(call.actor, owner, identity)
        return Answer(status=204)


def _agreement(agreement: Agreement) -> dict[str, object]:
    return {
        "id": agreement.id,
        "customer": agreement.customer,
        "kind": agreement.kind,
        "state": agreement.state,
        "parties": agreement.contract.parties,
        "text_sha256": agreement.contract.text_sha256,
        "signed_on": None
        if agreement.contract.signed_on is None
        else agreement.contract.signed_on.isoformat(),
        "valid_until": moment(agreement.contract.valid_until),
        "has_document": agreement.has_document,
        "signed_at": moment(agreement.signed_at),
        "active_at": moment(agreement.active_at),
        "revoked_at": moment(agreement.revoked_at),
    }
