"""Rows of tokens on a real appliance: those from before they had MACs go on, later changes are told."""

import json
import subprocess

from demo.state import DemoState
from tests.auditing import edit
from tests.running import CopyState, RunningAppliance

LIST = "/appliance/v1/tokens"


def findings(state: DemoState) -> list[str]:
    """What `status` says of tokens."""
    told = state.ask("status")["findings"]
    return [one["message"] for one in told if one["key"] == "tokens.damaged"]


def verify(state: DemoState) -> tuple[int, str]:
    words = state.command("audit", "verify", "--json")
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout).get("reason", "")


def test_a_state_of_the_schema_before_goes_on_and_is_guarded_from_then(copy_state: CopyState) -> None:
    state = copy_state()
    edit(
        state.folder,
        "DROP INDEX audit_of_starts",
        "DROP INDEX audit_of_damaged_tokens",
        "DROP INDEX audit_of_customers",
        "DROP INDEX audit_of_claims",
        "ALTER TABLE tokens DROP COLUMN row_mac",
        "ALTER TABLE clock_corrections DROP COLUMN reached",
        "ALTER TABLE images DROP COLUMN rests_from",
        "DROP INDEX requests_resting",
        "ALTER TABLE requests DROP COLUMN rests_from",
        "CREATE INDEX requests_finished ON requests (finished_at) WHERE finished_at IS NOT NULL",
        "PRAGMA user_version = 30",
    )
    with RunningAppliance(state, state.port) as appliance:
        listed = appliance.call("GET", LIST, headers=appliance.headers())
        assert listed.status == 200
        (token,) = [one["id"] for one in listed.document["tokens"]]
        assert findings(state) == []
    assert verify(state) == (0, "")

    edit(state.folder, "UPDATE tokens SET expires_at = 4102444800000")
    with RunningAppliance(state, state.port) as appliance:
        assert appliance.call("GET", LIST, headers=appliance.headers()).status == 401
        (message,) = findings(state)
        assert token in message
        assert message.startswith("1 tokens are not taken")
    code, reason = verify(state)
    assert code == 1
    assert f"the row of token {token} was not as the appliance had written it" in reason

    edit(state.folder, "UPDATE tokens SET row_mac = x''")
    with RunningAppliance(state, state.port) as appliance:
        assert appliance.call("GET", LIST, headers=appliance.headers()).status == 401
        state.ask("token", "revoke", token)
        assert findings(state) == []
    assert verify(state) == (0, "")
