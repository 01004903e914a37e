"""What `check-config` passes starts, also at the ends of what a number may be, and tells what it costs."""

import tomllib
from typing import Any

import tomli_w
from annotated_types import Le

from appliance.config import Config, Section
from tests.running import CopyState, RunningAppliance
from tests.system.fake_systemd import edit

# So many processes, threads and slots there would really be, so much of the disk would be taken, and so long
# would the stop at the end of the test last.
TAKEN = {"devices", "decoders", "threads", "max_batch", "ballast_bytes", "lame_duck_seconds"}


def test_the_highest_numbers(copy_state: CopyState) -> None:
    state = copy_state()
    port, document = state.port, tomllib.loads(state.config.read_text())
    for section, values in _highest().items():
        document.setdefault(section, {}).update(values)
    state.config.write_text(tomli_w.dumps(document))
    with RunningAppliance(state, port) as running:
        assert running.call("GET", "/readyz").status == 200


def test_models_that_stay_and_need_more_than_there_is_are_a_notice(copy_state: CopyState) -> None:
    state = copy_state()
    edit(state.config, "[bundles]\n", "[recognition]\nmemory_bytes = 1048576\n\n[bundles]\n")
    with RunningAppliance(state, state.port) as running:
        findings = {one["key"]: one for one in state.ask("status")["findings"]}
        notice = findings["recognition.memory_bytes"]
        assert notice["severity"] == "notice"
        assert "of the 1 MiB for models" in notice["message"]
        assert running.call("GET", "/readyz").status == 200


def _highest() -> dict[str, dict[str, Any]]:
    return {
        name: {
            key: bound.le
            for key, field in type(section).model_fields.items()
            for bound in field.metadata
            if isinstance(bound, Le) and key not in TAKEN
        }
        for name, section in Config()
        if isinstance(section, Section)
    }
