"""The demo's state folder, made through the public command line and completed after an interruption.

Every file is written whole or not at all, and each step asks what is there before it acts, so the next call
goes on where an interrupted one stopped.
"""

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.ledger import holder
from appliance.volume import remove_tree, write_atomically

APPLIANCE = Path(sys.executable).with_name("appliance")
CUSTOMER = "demo"
COLLECTION = "photos"
SCOPES = ("infer", "search:read", "search:write", "datasets:read", "datasets:write", "train", "admin")
LISTEN = re.compile(r'^listen = \["127\.0\.0\.1:(\d+)"\]$', re.MULTILINE)

CONFIG = """\
# Written by ./dev run: a demonstration on loopback. config/appliance.toml documents every key.
profile = "demo"
state = "."
residency = "residency.toml"

[api]
listen = ["127.0.0.1:{port}"]

[operator]
listen = "127.0.0.1:0"

[vault]
root_key = "root.key"

[bundles]
allow_unsigned = true

[datasets]
reserve_bytes = 1_073_741_824
ballast_bytes = 16_777_216

[lifecycle]
lame_duck_seconds = 0
"""

RESIDENCY = """\
# Written by ./dev run. Nothing connects outward: no destination is declared.
site = "demonstration"
country = "CZ"
controller = "demonstration"
processor = "demonstration"

[[clients]]
cidr = "127.0.0.0/8"

[[clients]]
cidr = "::1/128"
"""


class StepFailed(Exception):
    """A command line verb refused; the message is its own."""


@dataclass(frozen=True)
class DemoState:
    """Where the parts of a demo state folder lie; `folder` is absolute."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "appliance.toml"

    @property
    def token_file(self) -> Path:
        return self.folder / "demo.token"

    @property
    def collection_file(self) -> Path:
        return self.folder / "demo.collection"

    @property
    def task_file(self) -> Path:
        return self.folder / "demo.task"

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"

    @property
    def port(self) -> int:
        """The public port in the configuration; raises StepFailed when the owner has changed that line."""
        found = LISTEN.search(self.config.read_text())
        if found is None:
            raise StepFailed(f"{self.config}: api.listen is not one port of 127.0.0.1")
        return int(found[1])

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    @property
    def collection(self) -> str:
        return self.collection_file.read_text().strip()

    @property
    def task(self) -> str:
        return self.task_file.read_text().strip()

    def command(self, *words: str) -> list[str]:
        """The argument list of an `appliance` command that works on this state."""
        return [str(APPLIANCE), "--config", str(self.config), *words]

    def ask(self, *words: str) -> Any:
        """Run a verb with --json and return its document; raises StepFailed with the verb's reason."""
        done = self.run(*words, "--json")
        if done.returncode:
            reason = (done.stderr or done.stdout).strip()
            raise StepFailed(f"appliance {' '.join(words)}: exit {done.returncode}: {reason}")
        return json.loads(done.stdout)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end, whatever that is."""
        command = self.command(*words)
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def prepare(folder: Path, port: int, tell: Callable[[str], None]) -> DemoState:
    """Make or complete the state folder and return it; a complete one costs a few file reads.

    After the return `demo.token` (mode 0600), `demo.collection` and `demo.task` hold one line each. The port
    in `appliance.toml` is set to `port`, all else in an existing file is left as the owner wrote it.
    Raises StepFailed when a daemon holds the folder or a verb refuses, OSError when the folder cannot be
    written.
    """
    state = DemoState(folder.absolute())
    state.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Asked first: a running daemon's configuration and log are not ours to change.
    if (pid := holder(state.folder)) is not None:
        raise StepFailed(f"state folder {state.folder} is held by the daemon with pid {pid}")
    _write_settings(state, port)
    if not state.task_file.exists():
        tell("building the starter backbone")
        _deliver(state.task_file, _install_starter(state))
    if state.token_file.exists() and state.collection_file.exists():
        return state
    tell("creating the customer, its token and its collection")
    customer = _find_or_add(state, ["customer", "list"], ["customer", "add", CUSTOMER], CUSTOMER)
    if not state.token_file.exists():
        scopes = [word for scope in SCOPES for word in ("--scope", scope)]
        _deliver(state.token_file, str(state.ask("token", "add", customer, *scopes)["token"]))
    if not state.collection_file.exists():
        made = _find_or_add(
            state, ["collection", "list"], ["collection", "add", customer, COLLECTION], COLLECTION, customer
        )
        _deliver(state.collection_file, made)
    return state


def _write_settings(state: DemoState, port: int) -> None:
    root_key = state.folder / "root.key"
    if not root_key.exists():
        write_atomically(root_key, secrets.token_bytes(32), 0o600)
    residency = state.folder / "residency.toml"
    if not residency.exists():
        write_atomically(residency, RESIDENCY.encode(), 0o644)
    text = state.config.read_text() if state.config.exists() else CONFIG.format(port=port)
    moved = LISTEN.sub(f'listen = ["127.0.0.1:{port}"]', text, count=1)
    if not state.config.exists() or moved != text:
        write_atomically(state.config, moved.encode(), 0o644)


def _install_starter(state: DemoState) -> str:
    building = state.folder / "starter.building"
    if building.exists():
        remove_tree(building)
    state.ask("bundle", "build", "efficientnet-lite0", "--to", str(building))
    task = str(state.ask("bundle", "install", str(building))["task"])
    remove_tree(building)
    return task


def _find_or_add(
    state: DemoState, listing: list[str], adding: list[str], name: str, customer: str | None = None
) -> str:
    """The id of what a listing shows under `name` (and the customer), or of what is then added."""
    for row in _rows(state.ask(*listing)):
        if row["name"] == name and customer in (None, row.get("customer")):
            return str(row["id"])
    return str(state.ask(*adding)["id"])


def _rows(document: Any) -> list[dict[str, Any]]:
    if isinstance(document, dict):
        (document,) = [value for value in document.values() if isinstance(value, list)]
    return list(document)


def _deliver(path: Path, line: str) -> None:
    write_atomically(path, f"{line}{os.linesep}".encode(), 0o600)
