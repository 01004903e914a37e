"""One Prometheus registry for the daemon, created once and passed to the parts."""

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Registry = CollectorRegistry


def create() -> Registry:
    """A registry of our own (never the library's global one) that already shows this process."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(namespace="appliance", registry=registry)
    return registry


def expose(registry: Registry) -> tuple[bytes, str]:
    """The registry in the text format, and its Content-Type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST
