"""`/appliance/v1`: what proves a promise to somebody who need not trust the appliance."""

from collections.abc import Callable

from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.errors import NotFound


class Evidence:
    """The handlers of signed statements; None where this process has nothing to state."""

    def __init__(self, residency_statement: Callable[[], bytes] | None) -> None:
        self._residency_statement = residency_statement

    async def residency(self, call: Call) -> Answer:
        """Byte for byte what `appliance residency verify` takes, and the same for everybody."""
        call.owner(call.query.get("customer"))  # whoever names another customer finds nothing, here too
        if self._residency_statement is None:
            raise NotFound("no daemon runs: there is nothing to state")
        return Answer(text=self._residency_statement())
