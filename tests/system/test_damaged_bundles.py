"""A bundle whose files are damaged on the volume: what a start without it serves, says, and how it heals."""

import base64
import json
import shutil
import subprocess

from tests import bundles, images
from tests.running import CopyState, RunningAppliance

PHOTO = base64.b64encode(images.jpeg()).decode()
NAME = "efficientnet-lite0"
TOLD = f"bundle {NAME} 1 is damaged: the appliance's operator can install it again"


def tags(appliance: RunningAppliance) -> tuple[int, str]:
    headers = appliance.headers(content_type="image/jpeg")
    answer = appliance.call("POST", "/photo/tags/v2/tags", images.jpeg(), headers=headers)
    return answer.status, json.dumps(answer.document)


def test_a_damaged_backbone_costs_what_it_served_and_is_healed_while_the_rest_is_served(
    copy_state: CopyState,
) -> None:
    state = copy_state()
    folder, good = state.folder / f"bundles/{NAME}@1", state.folder.parent / "good"
    shutil.copytree(folder, good)
    with (folder / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    with RunningAppliance(state, state.port) as appliance:
        status = state.ask("status")
        assert status["state"] == "degraded"
        (finding,) = [one for one in status["findings"] if one["key"] == f"bundle.{NAME}"]
        assert finding["message"].startswith(f"{NAME} 1 is damaged and left out: model.onnx is not the file")
        (listed,) = state.ask("bundle", "list")["bundles"]
        assert (listed["name"], listed["active"]) == (NAME, True)
        assert listed["fault"].startswith("model.onnx is not the file")
        verified = subprocess.run(state.command("bundle", "verify"), capture_output=True, check=False)
        assert verified.returncode == 1
        assert f"{NAME} 1: model.onnx".encode() in verified.stderr
        damage = [one for one in state.ask("audit", "list")["entries"] if one["event"] == "bundle.damaged"]
        assert [one["details"]["bundle"] for one in damage] == [f"{NAME}@1"]

        code, said = tags(appliance)
        assert code == 404
        assert TOLD in said
        search, query = "/similarity/photos/v2/visualKNN", {"query_record": {"_base64": PHOTO}, "k": 1}
        answer = appliance.post(search, query)
        assert answer.status == 404
        assert TOLD in json.dumps(answer.document)
        records = {"records": [{"_base64": PHOTO}]}
        assert appliance.post("/dom_colors/generic/v2/dominantcolor", records).status == 200, (
            "needs no bundle"
        )

        assert state.ask("bundle", "install", str(good))["active"] is True
        assert tags(appliance)[0] == 200
        assert appliance.post(search, query).status == 200
        keys = [one["key"] for one in state.ask("status")["findings"]]
        assert f"bundle.{NAME}" not in keys
        assert [one["fault"] for one in state.ask("bundle", "list")["bundles"]] == [None]

        source = bundles.tagger(state.folder.parent / "tagger", route="photo/tags/v2/tags")
        done = subprocess.run(
            state.command("bundle", "install", str(source)), capture_output=True, check=True, text=True
        )
        assert f"photo/tags/v2/tags is served by {NAME} 1" in done.stdout
        assert f"`bundle remove {NAME} 1` changes it" in done.stdout
