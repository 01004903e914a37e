"""How much each token may ask in a minute: requests, and the bytes of their bodies."""

import time
from collections.abc import Callable
from math import ceil

from appliance.accounts.rates import Rates
from appliance.accounts.tokens import Principal
from appliance.config import Api
from appliance.errors import Overloaded

_TOKENS = 100_000


class Throttle:
    """Holds tokens to their rates, and those that have none to the configuration's; 0 is no rate.

    A body is paid with its head where its length is told, and may be larger than what is left: the next one
    waits until it is paid for.
    """

    def __init__(self, config: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._requests = Rates[str](clock, most=_TOKENS)
        self._bytes = Rates[str](clock, most=_TOKENS)

    def rates(self, principal: Principal) -> tuple[int, int]:
        """Its requests and bytes a minute."""
        requests, size = principal.requests_per_minute, principal.bytes_per_minute
        return (
            self.config.requests_per_minute if requests is None else requests,
            self.config.bytes_per_minute if size is None else size,
        )

    def admit(self, principal: Principal, declared: int) -> None:
        """Counts a request whose body is to have so many bytes. Raises Overloaded with the time to wait."""
        token = principal.token_id
        if token is None:
            return
        requests, size = self.rates(principal)
        if requests and (wait := self._requests.wait(token, requests)) > 0:
            raise _reached(f"{requests} requests", wait)
        if size and (wait := self._bytes.wait(token, size)) > 0:
            raise _reached(f"{size} bytes", wait)
        if requests:
            self._requests.spend(token, requests, 1)
        if size:
            self._bytes.spend(token, size, declared)

    def settle(self, principal: Principal, more: int) -> None:
        """So many bytes more have come than were declared; less than 0 for fewer."""
        token, size = principal.token_id, self.rates(principal)[1]
        if token is not None and size and more:
            self._bytes.spend(token, size, more)


def _reached(what: str, wait: float) -> Overloaded:
    seconds = max(1, ceil(wait))
    return Overloaded(f"the token may send {what} a minute: try again in {seconds} s", retry_after=seconds)
