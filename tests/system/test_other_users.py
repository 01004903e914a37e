"""A state folder that belongs to the service's user: what root, the operators' group and others do."""

import grp
import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.state import DemoState
from tests.running import CopyState, RunningAppliance
from tests.system.fake_systemd import edit

SERVICE = pwd.getpwnam("nobody")
GROUP = grp.getgrnam("games")
SECONDS = 60


def becoming(group: int) -> list[str]:
    return ["setpriv", f"--reuid={SERVICE.pw_uid}", f"--regid={group}", "--clear-groups"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may walk to, unlike pytest's own."""
    if os.geteuid() != 0:
        pytest.skip("only root acts for other users")
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import appliance'], check=True)"
    interpreter = [*becoming(SERVICE.pw_gid), sys.executable, "-c", again]
    if subprocess.run(interpreter, capture_output=True, check=False, cwd="/").returncode != 0:
        pytest.skip(f"{sys.executable} cannot be run by {SERVICE.pw_name}")
    made = Path("/tmp") / f"appliance-{secrets.token_hex(6)}"
    made.mkdir(mode=0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def state(copy_state: CopyState, folder: Path) -> DemoState:
    """A state of the service's user under a configuration that is not part of it, as on a server."""
    copied = copy_state()
    state = DemoState(folder)
    shutil.copytree(copied.folder, folder / "state")
    for name in ("appliance.toml", "residency.toml", "demo.token", "demo.collection", "demo.task"):
        (folder / "state" / name).rename(folder / name)
    edit(state.config, 'state = "."', 'state = "state"')
    edit(state.config, 'root_key = "root.key"', 'root_key = "state/root.key"')
    (folder / "run").mkdir()
    edit(state.config, "[operator]", f'[operator]\nsocket = "run/operator.sock"\ngroup = "{GROUP.gr_name}"')
    for path in (folder / "state", *(folder / "state").rglob("*")):
        os.chown(path, SERVICE.pw_uid, SERVICE.pw_gid)
    (folder / "state").chmod(0o700)
    # As tmpfiles makes it: the socket gets the folder's group.
    os.chown(folder / "run", SERVICE.pw_uid, GROUP.gr_gid)
    (folder / "run").chmod(0o2755)
    return state


def run(state: DemoState, *words: str, prefix: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(prefix or []), *state.command(*words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, cwd="/")


def contents(state: DemoState) -> dict[Path, tuple[int, int]]:
    """Every path of the state with its owner and group."""
    found = [state.folder / "state", *(state.folder / "state").rglob("*")]
    return {path: (path.stat().st_uid, path.stat().st_gid) for path in found}


class ServiceAppliance(RunningAppliance):
    """The daemon as the service's user, or as root that becomes this user."""

    @property
    def pid(self) -> int:
        return int((self.state.folder / "state" / "lock").read_text())


def test_what_root_leaves_in_a_state_is_its_owner_s(state: DemoState) -> None:
    made = state.ask("customer", "add", "by root")
    assert state.ask("token", "add", "by root")["token"].startswith("xapp_")
    assert set(contents(state).values()) == {(SERVICE.pw_uid, SERVICE.pw_gid)}
    with ServiceAppliance(state, state.port, wrapper=becoming(SERVICE.pw_gid)) as appliance:
        assert {process.uids().real for process in appliance.processes()} == {SERVICE.pw_uid}
        assert made in state.ask("customer", "list")["customers"]


def test_a_daemon_that_root_starts_is_the_owner_s_too(state: DemoState) -> None:
    with ServiceAppliance(state, state.port) as appliance:
        for process in appliance.processes():
            assert set(process.uids()) == {SERVICE.pw_uid}
            assert set(process.gids()) == {SERVICE.pw_gid}
            # And as unreadable to others of this user as before it was one.
            assert Path(f"/proc/{process.pid}/mem").stat().st_uid == 0
    assert set(contents(state).values()) == {(SERVICE.pw_uid, SERVICE.pw_gid)}


@pytest.mark.parametrize("words", [("customer", "list"), ("token", "add", "demo"), ("collection", "list")])
def test_a_key_that_comes_with_the_unit_needs_the_unit(state: DemoState, words: tuple[str, ...]) -> None:
    edit(state.config, 'root_key = "state/root.key"', "")
    before = contents(state)
    done = run(state, *words, "--json")
    assert done.returncode == 69, done.stderr
    assert json.loads(done.stdout)["error"] == "unavailable"
    assert "start it: systemctl start appliance" in done.stderr
    assert contents(state) == before


@pytest.mark.parametrize("verb", [("serve",), ("customer", "list")])
def test_nothing_is_made_where_there_is_no_key(state: DemoState, verb: tuple[str, ...]) -> None:
    edit(state.config, 'root_key = "state/root.key"', "")
    edit(state.config, 'state = "state"', 'state = "new/state"')
    assert run(state, *verb).returncode == (78 if verb == ("serve",) else 69)
    assert not (state.folder / "new").exists()


def test_an_operator_reaches_the_daemon_whatever_else_is_hidden(state: DemoState) -> None:
    """Neither the state nor the key of the certificate can be read by members of the group."""
    tls = state.folder / "tls.key"
    tls.touch(mode=0o640)
    (state.folder / "vault").mkdir(mode=0o700)
    shutil.copy(state.folder / "state/root.key", state.folder / "vault/root.key")
    operator = becoming(GROUP.gr_gid)
    operator[1] = "--reuid=irc"
    with ServiceAppliance(state, state.port, wrapper=becoming(SERVICE.pw_gid)):
        edit(state.config, "[api]", '[api]\ntls_certificate = "tls.key"\ntls_key = "tls.key"')
        edit(state.config, '"state/root.key"', '"vault/root.key"')
        done = run(state, "status", "--json", prefix=operator)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["profile"] == "demo"
        made = run(state, "customer", "add", "by an operator", "--json", prefix=operator)
        assert made.returncode == 0, made.stderr
        new = state.folder / "root.key.new"
        new.write_bytes(secrets.token_bytes(32))
        new.chmod(0o600)
        os.chown(new, pwd.getpwnam("irc").pw_uid, GROUP.gr_gid)
        # With a root key of its own and the keyring of a backup an operator would need no grant.
        for words in (("key", "rotate", "root", str(new)), ("key", "retire")):
            rotated = run(state, *words, "--json", prefix=operator)
            assert (rotated.returncode, json.loads(rotated.stdout)["error"]) == (1, "forbidden"), words
        stranger = ["setpriv", "--reuid=irc", "--regid=irc", "--clear-groups"]
        refused = run(state, "status", "--json", prefix=stranger)
        assert (refused.returncode, json.loads(refused.stdout)["error"]) == (1, "forbidden")
        assert "the operators' group" in refused.stderr
