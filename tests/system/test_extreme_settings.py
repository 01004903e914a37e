"""What `check-config` passes starts, also where every number is the highest that it may be."""

import tomllib
from typing import Any

import tomli_w
from annotated_types import Le

from appliance.config import Config, Section
from tests.running import CopyState, RunningAppliance

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
