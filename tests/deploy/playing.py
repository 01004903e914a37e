"""The playbook's parts run against this machine as if it were servers; nothing of it is ever changed.

Every run is in check mode beside what a test is about: a playbook that went further than it should would only
tell what it would do.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ANSIBLE = Path(__file__).parents[2] / "ansible"
SECONDS = 100.0

Variables = dict[str, object]


@dataclass(frozen=True)
class Played:
    """A playbook that ended."""

    code: int
    output: str

    def said_of(self, host: str) -> str:
        """Why a host failed: its results of every task, as they were printed."""
        parts = re.findall(
            rf"^(?:fatal|failed): \[{re.escape(host)}\](.*?)(?=^\S+: \[|^PLAY |^TASK |\Z)",
            self.output,
            re.DOTALL | re.MULTILINE,
        )
        return re.sub(r"\s+", " ", " ".join(parts))

    @property
    def changed(self) -> set[int]:
        """How many tasks changed something, over all hosts."""
        return {
            int(count) for count in re.findall(r"^\S+\s+: ok=.*\bchanged=(\d+)", self.output, re.MULTILINE)
        }


def play(folder: Path, hosts: dict[str, Variables], file: Path | None = None, *words: str) -> Played:
    """Runs a playbook (site.yml when none is named) on hosts that are all this machine.

    Whatever Ansible keeps, here or "there", it keeps in `folder`.
    """
    local: Variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "ansible_remote_tmp": str(folder / "remote"),
    }
    inventory = folder / "inventory.json"
    inventory.write_text(
        json.dumps({"all": {"hosts": {name: local | variables for name, variables in hosts.items()}}})
    )
    return run(
        folder, "ansible-playbook", "-i", str(inventory), "--check", *words, str(file or ANSIBLE / "site.yml")
    )


def run(folder: Path, program: str, *words: str) -> Played:
    """One of Ansible's programs, with the playbook's own configuration."""
    done = subprocess.run(
        [Path(sys.executable).parent / program, *words],
        cwd=ANSIBLE,
        env=os.environ
        | {
            "ANSIBLE_HOME": str(folder / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
            "LC_ALL": "C.UTF-8",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return Played(done.returncode, done.stdout)
