"""Only training images are stored, after an agreement: without one no call makes an image rest anywhere.

The files of a real daemon are counted: a stored image is one, whatever else is known of it.
"""

import base64
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests import images
from tests.promises.test_images_are_never_stored import Needles, files_below
from tests.running import CopyState, RunningAppliance

CLASSIFY = "/recognition/v2/classify"


@pytest.fixture
def appliance(copy_state: CopyState) -> Iterator[RunningAppliance]:
    """A daemon of its own, whose customer has agreed to nothing yet."""
    state = copy_state()
    with RunningAppliance(state, state.port) as running:
        yield running


def test_images_rest_by_agreement_and_at_a_calls_own_word(appliance: RunningAppliance) -> None:
    ask, needles = appliance.state.ask, Needles()
    customer = ask("customer", "list")["customers"][0]["id"]

    assert refused(appliance, needles), "without an agreement"
    pending = ask("agreement", "sign", customer, "training-data", "--await-acceptance")["id"]
    assert refused(appliance, needles), "an agreement that waits to be accepted"
    ask("agreement", "revoke", pending)
    assert refused(appliance, needles), "a revoked one"
    assert resting(appliance) == set()

    active = ask("agreement", "sign", customer, "training-data")["id"]
    flagged = [send(appliance, needles, store_images=True) for _ in range(3)]
    for flag in ({}, {"store_images": False}, {"store_images": None}):
        assert "_stored_image_id" not in send(appliance, needles, **flag)
    kept = {uuid.UUID(record["_stored_image_id"]).hex for record in flagged}
    assert len(kept) == 3
    assert resting(appliance) == kept

    ask("agreement", "revoke", active)
    assert refused(appliance, needles), "an agreement that was active once"
    assert resting(appliance) == kept, "what was stored while it was active stays until it is deleted"
    assert [place for file in files_below(appliance.state.folder) if (place := needles.found_in(file))] == []


def refused(appliance: RunningAppliance, needles: Needles) -> bool:
    """Whether a call that wants its image stored answers 403, and the same one without that wish 200."""
    answer = appliance.post(CLASSIFY, call(appliance, needles, store_images=True))
    send(appliance, needles)
    return answer.status == 403 and "agreement" in answer.document["detail"]


def send(appliance: RunningAppliance, needles: Needles, **flag: object) -> dict[str, Any]:
    answer = appliance.post(CLASSIFY, call(appliance, needles, **flag))
    assert answer.status == 200, answer.body[:300]
    (record,) = answer.document["records"]
    assert record["_status"]["code"] == 200
    return dict(record)


def call(appliance: RunningAppliance, needles: Needles, **flag: object) -> dict[str, object]:
    photo = images.jpeg(200, seed=uuid.uuid4().int % (1 << 32))
    needles.add(photo)
    records = [{"_base64": base64.b64encode(photo).decode()}]
    return {"records": records, "task_id": appliance.task, **flag}


def resting(appliance: RunningAppliance) -> set[str]:
    """The names of the sealed files: the ids of images, within folders whose names are ids of datasets."""
    return {
        file.name for file in files_below(appliance.state.folder / "images") if len(file.parent.name) == 32
    }
