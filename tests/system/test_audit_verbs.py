"""`appliance audit` on a real appliance: exported, verified while it runs and after, changes told."""

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path

from demo.state import DemoState
from tests.auditing import edit
from tests.running import CopyState, RunningAppliance


def run(state: DemoState, *words: str) -> subprocess.CompletedProcess[str]:
    return state.run(*words)


def refusal(state: DemoState, *words: str) -> tuple[int, str, str]:
    done = run(state, *words, "--json")
    document = json.loads(done.stdout)
    return done.returncode, document["error"], document["reason"]


def test_the_log_is_proven_with_and_without_a_daemon(copy_state: CopyState, tmp_path: Path) -> None:
    state = copy_state()
    code, _, reason = refusal(state, "audit", "verify")
    assert code == 1
    assert "audit/checkpoint" in reason
    assert refusal(state, "audit", "key")[:2] == (1, "failed")

    with RunningAppliance(state, state.port) as appliance:
        signed = appliance.call("GET", "/appliance/v1/audit/checkpoint", headers=appliance.headers())
        kept = tmp_path / "checkpoint"
        kept.write_bytes(signed.body)
        running = state.ask("audit", "verify", "--checkpoint", str(kept))
        assert running["signed"] <= running["entries"]
        exported = state.ask("audit", "export", str(tmp_path / "audit.jsonl"), "--event", "daemon.start")
        (line,) = (tmp_path / "audit.jsonl").read_bytes().splitlines()
        assert exported["bytes"] == len(line) + 1
        assert json.loads(line)["event"] == "daemon.start"
        assert not [one for one in state.ask("status")["findings"] if one["key"] == "audit.log"]

    key = state.ask("audit", "key")["key"]
    (tmp_path / "key").write_text(f"{key}\n")
    for given in (key, str(tmp_path / "key")):
        stopped = state.ask("audit", "verify", "--checkpoint", str(kept), "--key", given)
        assert stopped["signed"] == stopped["entries"] >= running["entries"]
    assert "each as it was written" in run(state, "audit", "verify").stdout
    assert refusal(state, "audit", "verify", "--key", "nothing")[:2] == (1, "bad_request")
    assert refusal(state, "audit", "verify", "--checkpoint", str(tmp_path / "absent"))[:2] == (1, "failed")

    witness = state.folder / "images" / "witness"
    record = witness.read_bytes()
    witness.write_bytes((1 << 40).to_bytes(8) + record[8:])
    assert f"images were stored up to entry {1 << 40}" in refusal(state, "audit", "verify")[2]
    witness.write_bytes(record)

    edit(state.folder, "UPDATE audit SET actor_id = '1' WHERE seq = 2")
    code, error, reason = refusal(state, "audit", "verify")
    assert (code, error) == (1, "audit_broken")
    assert "entry 2" in reason


def test_a_trigger_that_is_put_in_while_it_runs_stops_the_writing_and_is_told(copy_state: CopyState) -> None:
    def ledger(*statements: str) -> None:
        connection = sqlite3.connect(state.folder / "ledger.db", isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        connection.close()

    def finding() -> list[str]:
        return [one["message"] for one in state.ask("status")["findings"] if one["key"] == "ledger.altered"]

    state = copy_state()
    with RunningAppliance(state, state.port) as appliance:
        tokens = "/appliance/v1/tokens"
        assert appliance.call("GET", tokens).status == 200, "the first use is written down"
        ledger("CREATE TRIGGER t1 AFTER INSERT ON audit BEGIN UPDATE tokens SET expires_at = NULL; END")
        refused = appliance.post(tokens, {"scopes": ["infer"]})
        assert refused.status == 503
        assert "something else has changed the ledger" in refused.body.decode()
        assert appliance.call("GET", tokens).status == 200
        assert appliance.call("GET", "/readyz", headers={}).status == 503
        (message,) = finding()
        assert "trigger t1 is none of its" in message
        ledger("DROP TRIGGER t1")
        assert appliance.post(tokens, {"scopes": ["infer"]}).status == 201
        assert finding() == []
        assert appliance.call("GET", "/readyz", headers={}).status == 200
    (remark,) = state.ask("audit", "verify")["remarks"]
    assert "something else had changed how the ledger is built" in remark


def test_a_state_that_was_put_back_is_told(copy_state: CopyState) -> None:
    state = copy_state()
    with RunningAppliance(state, state.port):
        pass
    older = state.folder / "ledger.older"
    shutil.copy(state.folder / "ledger.db", older)
    state.ask("customer", "add", "Later")
    with RunningAppliance(state, state.port):
        pass
    older.replace(state.folder / "ledger.db")
    with RunningAppliance(state, state.port):
        status = state.ask("status")
        (finding,) = [one for one in status["findings"] if one["key"] == "audit.log"]
        assert finding["severity"] == "degraded"
        assert "move STATE/audit away" in finding["message"]
        assert refusal(state, "audit", "verify")[:2] == (1, "audit_broken")
