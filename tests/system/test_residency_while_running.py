"""A production daemon whose machine changes under it: it says so, stores no image, and goes on when mended.

What the machine says of its volume, of swap areas and of the limit of core dumps is replaced where the daemon
reads it, as files of the test say; all the rest is real.
"""

import base64
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.running import CopyState, RunningAppliance
from tests.system.fake_systemd import edit
from tests.waiting import eventually

LUKS = "3f0c2a4e-6f1b-4a7e-9d55-0b8e1c2d3f4a"
OTHER = "00000000-6f1b-4a7e-9d55-0b8e1c2d3f4a"
PROGRAM = f"""
import resource, sys
from pathlib import Path
from appliance.residency import rules
from appliance.volume import SwapFacts
from appliance.volume.facts import _Walk

machine = Path(sys.argv[1])

def mount(walk, *_):
    if (machine / "plain").exists():
        return "plain"
    walk.mappings.add({OTHER!r} if (machine / "other").exists() else {LUKS!r})
    return "luks"

limit = resource.getrlimit

_Walk.mount = mount
resource.getrlimit = lambda which: (-1, -1) if (machine / "dumps").exists() else limit(which)
rules.swaps = lambda: [SwapFacts("/dev/sdz9", "plain")] if (machine / "swap").exists() else []
from appliance.cli import main
sys.exit(main(sys.argv[3:]))
"""
IMAGES = "/recognition/v2/training-image/"
DESTINATION = """
[[destinations]]
name = "new"
host = "new.example"
cidrs = ["127.0.0.1/32"]
local = true
port = 9
country = "CZ"
purpose = "photos"
uses = ["images"]
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A file `swap` in it is a plain swap area, `plain` a plain volume, `other` another LUKS volume, and with
    `dumps` core dumps have no limit.
    """
    folder = tmp_path / "machine"
    folder.mkdir()
    return folder


@pytest.fixture
def production(copy_state: CopyState, machine: Path) -> Iterator[RunningAppliance]:
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
    wrapper = [sys.executable, "-c", PROGRAM, str(machine)]
    with RunningAppliance(state, state.port, wrapper=wrapper) as running:
        yield running


def upload(running: RunningAppliance) -> Any:
    content = base64.b64encode(images.plain(uuid.uuid4().bytes)).decode()
    return running.post(IMAGES, {"base64": content})


def ready(running: RunningAppliance) -> bool:
    return running.call("GET", "/readyz", headers={}).status == 200


def stated(running: RunningAppliance) -> Any:
    """What the appliance states of itself to its customer now."""
    answer = running.call("GET", "/appliance/v1/residency")
    assert answer.status == 200, answer.body
    return json.loads(base64.b64decode(answer.document["payload"]))["predicate"]


@dataclass(frozen=True)
class Break:
    """A change of the machine, how it is undone, and what is said of it."""

    key: str
    said: str
    make: Callable[[], object]
    mend: Callable[[], object]


def breaks(running: RunningAppliance, machine: Path) -> Iterator[Break]:
    for name, key, said in (
        ("swap", "swap", "put right: swap: /dev/sdz9 is plain"),
        ("plain", "state", "which is plain: production needs a LUKS volume"),
        ("dumps", "core_dumps", "are on: a crash would write memory with images to disk"),
        ("other", "volumes", f"lies on {OTHER}: the residency file declares {LUKS}"),
    ):
        yield Break(key, said, (machine / name).touch, (machine / name).unlink)
    file = running.state.folder / "residency.toml"
    here, abroad = 'country = "CZ"\ncontroller', 'country = "US"\ncontroller'
    said = "would be refused by a start"
    yield Break(
        "residency",
        f'{said}: {file}: country: "US"',
        lambda: edit(file, here, abroad),
        lambda: edit(file, abroad, here),
    )
    aside = file.with_suffix(".aside")
    yield Break(
        "residency", f"{said}: {file}: cannot be read", lambda: file.rename(aside), lambda: aside.rename(file)
    )


def test_what_is_found_while_it_runs(production: RunningAppliance, machine: Path) -> None:
    """Readiness turns red, nothing is stored, what is stored is shown; all is well when it is mended."""
    assert upload(production).status == 201
    keys = []
    for number, broken in enumerate(breaks(production, machine), start=1):
        broken.make()
        eventually(lambda: not ready(production), f"readiness turns red: {broken.key}")
        refused = upload(production)
        reason = f"no image is stored until this is put right: {broken.key}"
        assert (refused.status, refused.document["detail"]) == (503, reason)
        assert broken.said in production.state.log.read_text(), "the rest is for operators"
        assert production.call("GET", IMAGES).document["count"] == number
        statement = stated(production)
        assert statement["verdict"] == "broken"
        assert [one["key"] for one in statement["findings"] if one["severity"] == "refuse"] == [broken.key]
        broken.mend()
        eventually(lambda: ready(production), f"readiness turns green: {broken.key}")
        assert upload(production).status == 201
        assert stated(production)["verdict"] == "conforming"
        keys.append(broken.key)

    def told() -> list[tuple[str, str]]:
        entries = production.state.ask("audit", "list", "--limit", "1000")["entries"]
        return [(one["event"], one["subject"]) for one in entries if one["event"].startswith("residency.")]

    eventually(lambda: len(told()) == 2 * len(keys), "both rows of each")
    assert told() == [(f"residency.{end}", key) for key in keys for end in ("break", "restore")]


def test_another_file_is_told_of_and_opens_nothing(production: RunningAppliance) -> None:
    """What was read at the start is held to: what the file adds is not reached, and not stated."""
    file = production.state.folder / "residency.toml"
    before, statement = file.read_text(), stated(production)
    assert statement["facts"]["machine"]["file"]["wrong"] == []
    file.write_text(before + DESTINATION)
    eventually(lambda: "residency" in {one["key"] for one in stated(production)["findings"]}, "it is told of")
    changed = stated(production)
    assert changed["facts"]["machine"]["file"]["sha256"] != statement["facts"]["machine"]["file"]["sha256"]
    assert changed["declared"] == statement["declared"]
    assert changed["verdict"] == "conforming"
    assert ready(production)
    assert upload(production).status == 201
    wanted = {"task_id": production.task, "records": [{"_url": "https://new.example:9/a.png"}]}
    answer = production.post("/recognition/v2/classify", wanted).document["records"][0]["_status"]
    assert (answer["code"], "no destination declared" in answer["text"]) == (400, True)
    file.write_text(before)
    eventually(lambda: stated(production)["findings"] == statement["findings"], "it is as it was")


def test_a_start_with_a_finding_is_refused(production: RunningAppliance, machine: Path) -> None:
    production.stop()
    (machine / "swap").touch()
    with pytest.raises(AssertionError, match="exit code 78"):
        production.start()
    assert "swap: /dev/sdz9 is plain" in production.state.log.read_text()
    (machine / "swap").unlink()
    edit(production.state.folder / "residency.toml", LUKS, "0" * 8 + LUKS[8:])
    with pytest.raises(AssertionError, match="exit code 78"):
        production.start()
    assert f"lies on {LUKS}: the residency file declares 00000000-" in production.state.log.read_text()
    edit(production.state.folder / "residency.toml", "0" * 8 + LUKS[8:], LUKS)
    production.start()
