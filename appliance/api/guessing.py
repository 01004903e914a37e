"""Tokens that are refused, by where they come from: whoever sends many is slowed."""

import logging
import time
from collections.abc import Callable
from math import ceil

from appliance.accounts.rates import Rates
from appliance.api.sources import source
from appliance.errors import Overloaded

_SOURCES = 10_000

log = logging.getLogger("appliance.api")


class Guessing:
    """Counts refused tokens of each `source`.

    Every token is verified all the same, as a genuine one must pass whoever shares its address (NAT, a
    proxy): nobody can lock others out by guessing beside them. Nothing is lost by that: 256 bits are not
    found at any rate. What is slowed is the noise: each guess beyond the limit costs its sender a connection.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._refused = Rates[str](clock, most=_SOURCES)

    def refused(self, address: str) -> None:
        """Counts one token of this source. Raises Overloaded where it has sent too many in a minute."""
        client = source(address)
        wait = self._refused.wait(client, self.per_minute)
        if wait > 0:
            raise Overloaded(
                "too many tokens that are not valid came from this address: try again later",
                retry_after=ceil(wait),
            )
        self._refused.spend(client, self.per_minute, 1)
        if self._refused.wait(client, self.per_minute) > 0:
            log.warning("%s sends tokens that are not valid: further ones are answered 429", client)
