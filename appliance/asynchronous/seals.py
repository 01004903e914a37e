"""What the rows of asynchronous requests are sealed with: the key that their customer has of its own.

A response holds the caller's ids and fields, tags and vectors; a webhook may hold secrets. Each is bound to
its customer and request, so that nothing opens in another row's place. Destroying the customer's keys is the
erasure, in older backups too.
"""

from appliance.accounts.customers import CustomerId
from appliance.accounts.seals import Seals

_RESPONSE, _WEBHOOK = "requests/response", "requests/webhook"
_HANDLE, _DIGEST = "requests/idempotency key", "requests/digest"


class RequestSeals:
    """The seals of one customer's requests, on any thread; `seals.ready` has been awaited before.

    Everything raises NotFound once the customer's keys are destroyed, SealBroken where that happens
    meanwhile; what opens raises SealBroken for what was changed, or was sealed for another row.
    """

    def __init__(self, seals: Seals, customer: CustomerId) -> None:
        self._seals = seals
        self._customer = customer

    def seal_response(self, request: str, response: bytes) -> bytes:
        return self._seals.keys(self._customer).seal(_RESPONSE, response, self._bound(request))

    def open_response(self, request: str, sealed: bytes) -> bytes:
        return self._seals.keys(self._customer).unseal(_RESPONSE, sealed, self._bound(request))

    def seal_webhook(self, request: str, webhook: bytes) -> bytes:
        return self._seals.keys(self._customer).seal(_WEBHOOK, webhook, self._bound(request))

    def open_webhook(self, request: str, sealed: bytes) -> bytes:
        return self._seals.keys(self._customer).unseal(_WEBHOOK, sealed, self._bound(request))

    def handle(self, sender: str, key: str) -> bytes:
        """What a request is found by: a keyed hash of its Idempotency-Key and of who sent it, 32 bytes."""
        return self._seals.keys(self._customer).mac(_HANDLE, f"{sender}\0{key}".encode())

    def digest(self, content: bytes) -> bytes:
        """A keyed hash of the hash of what was sent, 32 bytes: without the keys no guess is confirmed."""
        return self._seals.keys(self._customer).mac(_DIGEST, content)

    def _bound(self, request: str) -> bytes:
        return f"{self._customer}/{request}".encode()
