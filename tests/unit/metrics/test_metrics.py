"""The registry: ours alone, showing the process, in the text format."""

from prometheus_client import REGISTRY, Counter

from appliance.metrics import create, expose


def test_two_registries_share_nothing() -> None:
    first, second = create(), create()
    Counter("appliance_tests", "Tests", registry=first).inc(3)
    assert b"appliance_tests_total 3.0" in expose(first)[0]
    assert b"appliance_tests" not in expose(second)[0]
    assert REGISTRY.get_sample_value("appliance_tests_total") is None


def test_the_process_is_shown_and_every_name_is_ours() -> None:
    text, content_type = expose(create())
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    assert any(line.startswith("appliance_process_resident_memory_bytes ") for line in lines)
    assert all(line.startswith("appliance_") for line in lines)
    assert content_type.startswith("text/plain; version=")
