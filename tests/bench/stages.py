"""What the event loop spends by stage, as the daemon's own metrics tell it."""

import http.client
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from appliance.metrics import CPU_STAGES

STAGES = ("http", *CPU_STAGES)


@dataclass(frozen=True)
class Spent:
    """CPU milliseconds of the event loop so far, by stage."""

    stages: dict[str, float]

    def per_image(self, since: "Spent", images: int) -> dict[str, float]:
        """Of one image."""
        return {stage: (now - since.stages[stage]) / images for stage, now in self.stages.items()}


def spent(operator_port: int) -> Spent:
    """Asks the daemon."""
    connection = http.client.HTTPConnection("127.0.0.1", operator_port, timeout=20)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    (family,) = (
        family
        for family in text_string_to_metric_families(text)
        if family.name == "appliance_loop_cpu_seconds"
    )
    return Spent({sample.labels["stage"]: sample.value * 1000 for sample in family.samples})
