"""`/appliance/v1/agreements`: what a customer has agreed to."""

import msgspec

from appliance.accounts.agreements import Agreement, AgreementId, Agreements, parse_kind
from appliance.accounts.customers import CustomerId, Customers
from appliance.api.answers import Answer, moment
from appliance.api.call import Call
from appliance.errors import Forbidden


class NewAgreement(msgspec.Struct, forbid_unknown_fields=True):
    customer: str
    kind: str
    await_acceptance: bool = False


class Oversight:
    """The handlers of agreements."""

    def __init__(self, customers: Customers, agreements: Agreements) -> None:
        self._customers = customers
        self._agreements = agreements

    async def sign_agreement(self, call: Call) -> Answer:
        asked = call.document(NewAgreement)
        signed = await self._agreements.sign(
            call.actor,
            CustomerId(asked.customer),
            parse_kind(asked.kind),
            await_acceptance=asked.await_acceptance,
        )
        return Answer(_agreement(signed), 201)

    async def list_agreements(self, call: Call) -> Answer:
        agreements = await self._agreements.list(await call.listed(self._customers))
        return Answer({"agreements": [_agreement(agreement) for agreement in agreements]})

    async def accept_agreement(self, call: Call) -> Answer:
        """By the customer alone: an operator who could accept would have agreed with itself."""
        customer = call.principal.customer
        if customer is None:
            raise Forbidden("the customer itself accepts, with a token of its own that has the scope admin")
        accepted = await self._agreements.accept(call.actor, customer, AgreementId(call.parameters["id"]))
        return Answer(_agreement(accepted))

    async def revoke_agreement(self, call: Call) -> Answer:
        owner = call.owner(call.query.get("customer"))
        await self._agreements.revoke(call.actor, owner, AgreementId(call.parameters["id"]))
        return Answer(status=204)


def _agreement(agreement: Agreement) -> dict[str, object]:
    return {
        "id": agreement.id,
        "customer": agreement.customer,
        "kind": agreement.kind,
        "state": agreement.state,
        "signed_at": moment(agreement.signed_at),
        "active_at": moment(agreement.active_at),
        "revoked_at": moment(agreement.revoked_at),
    }
