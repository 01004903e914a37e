"""What is wrong with stored images stands in the status, where an operator looks."""

import time
from contextlib import closing

import apsw
import pytest

from appliance.datasets.witness import WITNESS
from demo.state import DemoState
from tests import images
from tests.running import CopyState, RunningAppliance
from tests.storing import damage, files, restore
from tests.waiting import eventually

IMAGES = "/recognition/v2/training-image"


@pytest.fixture
def state(copy_state: CopyState) -> DemoState:
    state = copy_state()
    (customer,) = state.ask("customer", "list")["customers"]
    state.ask("agreement", "sign", customer["id"], "training-data")
    return state


def upload(appliance: RunningAppliance, seed: int = 1) -> str:
    headers = appliance.headers(content_type="image/jpeg")
    answer = appliance.call("POST", IMAGES, images.jpeg(256, seed=seed), headers=headers)
    assert answer.status == 201, answer.body
    return str(answer.document["id"])


def findings(state: DemoState) -> dict[str, str]:
    found = state.ask("status")["findings"]
    parts = ("datasets.", "search.")
    return {finding["key"]: finding["message"] for finding in found if finding["key"].startswith(parts)}


def test_a_damaged_image(state: DemoState) -> None:
    with RunningAppliance(state, state.port) as appliance:
        image = upload(appliance)
        assert findings(state) == {}
        (sealed,) = files(state.folder)
        damage(sealed)
        assert appliance.call("GET", f"/files/{image}.jpg").status == 503
    with RunningAppliance(state, state.port) as appliance:
        assert findings(state).keys() == {"datasets.damaged"}
        assert "1 stored images are damaged" in findings(state)["datasets.damaged"]
        assert appliance.call("GET", "/readyz", headers={}).status == 200


def test_a_ledger_of_yesterday(state: DemoState) -> None:
    yesterday = (state.folder / "ledger.db").read_bytes()
    with RunningAppliance(state, state.port) as appliance:
        upload(appliance)
    restore(state.folder, yesterday)
    with RunningAppliance(state, state.port):
        assert any("older than the sealed files" in message for message in findings(state).values())
    assert len(files(state.folder)) == 1


def test_a_ledger_and_a_witness_of_yesterday(state: DemoState) -> None:
    """Put back together they agree; the log that was published of them had gone on."""
    witness = state.folder / "images" / WITNESS
    with RunningAppliance(state, state.port) as appliance:
        upload(appliance)
    yesterday = (state.folder / "ledger.db").read_bytes(), witness.read_bytes()
    with RunningAppliance(state, state.port) as appliance:
        upload(appliance, seed=2)
    restore(state.folder, yesterday[0])
    witness.write_bytes(yesterday[1])
    with RunningAppliance(state, state.port):
        told = findings(state).values()
        assert any("does not go on from the audit log" in message for message in told)
        assert any("1 sealed files" in message for message in told)
    assert len(files(state.folder)) == 2


def damage_vectors(state: DemoState, *, scrubbed_at: int) -> None:
    """Those of a new record; the last scrub began then, in unix milliseconds, and is over."""
    with RunningAppliance(state, state.port) as appliance:
        headers = appliance.headers(content_type="image/jpeg")
        answer = appliance.call("POST", "/similarity/photos/v2/insert", images.jpeg(256), headers=headers)
        assert answer.status == 200, answer.body
    with closing(apsw.Connection(str(state.folder / "ledger.db"))) as ledger:
        ledger.execute("UPDATE frames SET content = zeroblob(length(content))")
        ledger.execute("UPDATE frame_scrub SET position = NULL, began_at = ?", (scrubbed_at,))


def test_damaged_vectors(state: DemoState) -> None:
    damage_vectors(state, scrubbed_at=0)  # as if its days had passed
    with RunningAppliance(state, state.port):
        eventually(lambda: "search.damaged" in findings(state), "the finding")
        assert "1 blocks of stored vectors are damaged" in findings(state)["search.damaged"]


def test_damaged_vectors_that_are_found_in_use(state: DemoState) -> None:
    damage_vectors(state, scrubbed_at=time.time_ns() // 1_000_000)
    with RunningAppliance(state, state.port) as appliance:
        assert "search.damaged" not in findings(state)
        asked = appliance.call("POST", "/similarity/photos/v2/ping", b"{}", headers=appliance.headers())
        assert asked.status == 200, asked.body
        eventually(lambda: "search.damaged" in findings(state), "the finding")


def test_a_time_that_was_damaged(state: DemoState) -> None:
    with RunningAppliance(state, state.port) as appliance:
        upload(appliance)
    with (state.folder / "images" / WITNESS).open("r+b") as witness:
        witness.seek(9)
        witness.write(b"\xff" * 8)
    with RunningAppliance(state, state.port):
        assert "not known how late it was" in findings(state)["datasets.clock"]
        assert state.ask("status")["state"] == "degraded"
