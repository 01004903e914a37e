"""Resident memory of the whole daemon over many small requests: it neither leaks nor hoards."""

from pathlib import Path

import pytest
from PIL import Image

from tests import bundles, images
from tests.bench.load import Client
from tests.running import CopyState, RunningAppliance

WARM = 3000
MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    "count", [10_000, pytest.param(200_000, marks=[pytest.mark.full, pytest.mark.timeout(1800)])]
)
def test_many_small_requests_leave_nothing(copy_state: CopyState, tmp_path: Path, count: int) -> None:
    state = copy_state()
    state.ask("bundle", "install", str(bundles.tagger(tmp_path / "tagger")))
    body = images.encoded(Image.new("RGB", (40, 30), "red"), "PNG")
    head = (
        f"POST /tagging/fashion/v2/tags HTTP/1.1\r\nHost: x\r\nAuthorization: Token {state.token}\r\n"
        f"Content-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with RunningAppliance(state, state.port) as appliance, Client() as client:
        client.closed(appliance.port, head.encode() + body, at_once=8, count=WARM)
        before = appliance.resident_bytes()
        outcome = client.closed(appliance.port, head.encode() + body, at_once=8, count=count)
        assert outcome.count(200) == count
        grown = appliance.resident_bytes() - before
    assert grown <= MEBIBYTE * count / 10_000, f"{grown / MEBIBYTE:.2f} MiB more after {count} requests"
