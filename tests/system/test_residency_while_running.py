"""A production daemon whose machine changes under it: it says so, stores no image, and goes on when mended.

The machine's own words are replaced where the daemon reads them: it stands on LUKS, and has a plain swap area
for as long as a file exists. All the rest is real.
"""

import base64
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.running import CopyState, RunningAppliance
from tests.system.fake_systemd import edit
from tests.waiting import eventually

LUKS = "3f0c2a4e-6f1b-4a7e-9d55-0b8e1c2d3f4a"
PROGRAM = f"""
import os, sys
from appliance.residency import rules
from appliance.volume import SwapFacts
from appliance.volume.facts import _Walk

def mount(walk, *_):
    walk.mappings.add({LUKS!r})
    return "luks"

_Walk.mount = mount
rules.swaps = lambda: [SwapFacts("/dev/sdz9", "plain")] if os.path.exists(sys.argv[1]) else []
from appliance.cli import main
sys.exit(main(sys.argv[3:]))
"""
IMAGES = "/recognition/v2/training-image/"


@pytest.fixture
def swapping(tmp_path: Path) -> Path:
    """While this file exists there is a plain swap area."""
    return tmp_path / "swapping"


@pytest.fixture
def production(copy_state: CopyState, swapping: Path) -> Iterator[RunningAppliance]:
    state = copy_state()
    state.ask("agreement", "sign", "demo", "training-data")
    edit(state.config, 'profile = "demo"', 'profile = "production"')
    edit(
        state.config,
        "[api]\n",
        '[health]\ninterval_seconds = 0.1\n\n[api]\npublic_url = "https://a.example"\n',
    )
    volume = f'[[volumes]]\nname = "data"\nluks = "{LUKS}"\ncountry = "CZ"\n\n[[clients]]\ncidr = "::1/128"'
    edit(state.folder / "residency.toml", '[[clients]]\ncidr = "::1/128"', volume)
    wrapper = [sys.executable, "-c", PROGRAM, str(swapping)]
    with RunningAppliance(state, state.port, wrapper=wrapper) as running:
        yield running


def upload(running: RunningAppliance) -> Any:
    content = base64.b64encode(images.plain(uuid.uuid4().bytes)).decode()
    return running.post(IMAGES, {"base64": content})


def ready(running: RunningAppliance) -> bool:
    return running.call("GET", "/readyz", headers={}).status == 200


def test_what_is_found_while_it_runs(production: RunningAppliance, swapping: Path) -> None:
    state = production.state
    assert upload(production).status == 201
    swapping.touch()
    eventually(lambda: not ready(production), "readiness turns red")
    refused = upload(production)
    assert refused.status == 503
    assert "swap: /dev/sdz9 is plain" in refused.document["detail"]
    assert production.call("GET", IMAGES).document["count"] == 1
    report = state.ask("residency", "report")["statement"]["predicate"]
    assert report["verdict"] == "broken"
    assert [finding["key"] for finding in report["findings"]] == ["swap"]
    assert report["facts"]["machine"]["volume"]["luks"] == [LUKS]
    swapping.unlink()
    eventually(lambda: ready(production), "readiness turns green")
    assert upload(production).status == 201

    def told() -> list[tuple[str, str]]:
        entries = state.ask("audit", "list", "--limit", "1000")["entries"]
        return [(one["event"], one["subject"]) for one in entries if one["event"].startswith("residency.")]

    eventually(lambda: len(told()) == 2, "both rows")
    assert told() == [("residency.break", "swap"), ("residency.restore", "swap")]
    assert state.ask("residency", "report")["statement"]["predicate"]["verdict"] == "conforming"


def test_a_start_with_a_finding_is_refused(production: RunningAppliance, swapping: Path) -> None:
    production.stop()
    swapping.touch()
    with pytest.raises(AssertionError, match="exit code 78"):
        production.start()
    assert "swap: /dev/sdz9 is plain" in production.state.log.read_text()
    swapping.unlink()
    edit(production.state.folder / "residency.toml", LUKS, "0" * 8 + LUKS[8:])
    with pytest.raises(AssertionError, match="exit code 78"):
        production.start()
    assert f"lies on {LUKS}: the residency file declares 00000000-" in production.state.log.read_text()
    edit(production.state.folder / "residency.toml", "0" * 8 + LUKS[8:], LUKS)
    production.start()
