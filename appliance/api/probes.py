"""Liveness, readiness and metrics, for load balancers and scrapers."""

from collections.abc import Callable

from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.health import Readiness
from appliance.metrics import Registry, expose


class Probes:
    """Answers without a token: neither says more than a state word; the findings are in `status`."""

    def __init__(self, readiness: Callable[[], Readiness], registry: Registry) -> None:
        self._readiness = readiness
        self._registry = registry

    async def healthz(self, _: Call) -> Answer:
        """The event loop turns."""
        return Answer({"state": "alive"})

    async def readyz(self, _: Call) -> Answer:
        """Send requests here (200), or elsewhere (503): starting, failed, or draining while still serving."""
        readiness = self._readiness()
        return Answer({"state": readiness.state}, 200 if readiness.serving else 503)

    async def metrics(self, _: Call) -> Answer:
        """Everything measured, in Prometheus' text format."""
        text, content_type = expose(self._registry)
        return Answer(text=text, content_type=content_type)
