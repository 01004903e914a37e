"""The project's playbook run against a guest as an operator runs it, and a right inventory's variables."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.e2e.guest import Guest

ANSIBLE = Path(__file__).parents[2] / "ansible"
SECONDS = 1500.0
GATEWAY = "10.0.2.2"  # where connections from this machine come from, in the guest's eyes
PORT = 8443
OPERATOR = "olga"  # a member of appliance-operators
STRANGER = "eve"  # a user of the server who is not
DEVICE = "/dev/disk/by-id/virtio-data"
OCCUPIED = "/dev/disk/by-id/virtio-occupied"  # holds a filesystem with somebody's file
STATE = "/var/lib/appliance"

Variables = dict[str, object]


@dataclass(frozen=True)
class Played:
    """A playbook that ended."""

    code: int
    output: str

    @property
    def changed(self) -> int:
        """How many tasks changed something; -1 where the playbook did not get to its end."""
        found = re.search(r"^guest\s+:.*\bchanged=(\d+)", self.output, re.MULTILINE)
        return int(found[1]) if found else -1

    def succeeded(self) -> "Played":
        """Itself; fails with the end of the output unless every task was well."""
        assert self.code == 0, self.output[-6000:]
        return self


@dataclass(frozen=True)
class Playbook:
    """Runs site.yml on one guest; files for it are kept in `folder`."""

    guest: Guest
    folder: Path

    def run(self, variables: Variables, *words: str, file: Path = ANSIBLE / "site.yml") -> Played:
        """One run with these variables; does not judge its outcome."""
        with self._start(variables, *words, file) as playing:
            try:
                output, _ = playing.communicate(timeout=SECONDS)
            finally:
                playing.kill()
        return Played(playing.returncode, output)

    def interrupt(self, variables: Variables, task: str) -> None:
        """A run that is killed, with its ssh connections, as soon as it says that `task` has begun."""
        with self._start(variables, ANSIBLE / "site.yml") as playing:
            assert playing.stdout is not None
            try:
                said = list(itertools.takewhile(lambda line: task not in line, playing.stdout))
                assert playing.poll() is None, "".join(said)[-6000:]
            finally:
                os.killpg(playing.pid, signal.SIGKILL)

    def _start(self, variables: Variables, *words: str | Path) -> subprocess.Popen[str]:
        inventory = self.folder / "inventory.json"
        inventory.write_text(json.dumps(self.guest.inventory(**variables)))
        return subprocess.Popen(
            [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, *words],
            cwd=ANSIBLE,  # its ansible.cfg
            env=os.environ
            | {
                "ANSIBLE_HOME": str(self.folder / "home"),
                "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
                "ANSIBLE_NOCOLOR": "1",
                "LC_ALL": "C.UTF-8",
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def certificate(folder: Path) -> trustme.CA:
    """A test CA, and a certificate of it for localhost: FOLDER/tls.crt, tls.key and the CA's own ca.crt."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    (folder / "tls.crt").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(folder / "tls.key"))
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    return authority


def variables(archive: Path, certificates: Path, device: str) -> Variables:
    """A right inventory: the volume on `device`, this machine as the only client."""
    return {
        "appliance_archive": str(archive),
        "appliance_device": "cpu",
        "appliance_listen": [f"0.0.0.0:{PORT}"],
        "appliance_public_url": f"https://localhost:{PORT}",
        "appliance_tls_certificate": str(certificates / "tls.crt"),
        "appliance_tls_key": str(certificates / "tls.key"),
        "appliance_residency": {
            "site": 'Žižkov, the "second" cellar',  # text that a careless template breaks on
            "country": "CZ",
            "eea": False,
            "clients": [f"{GATEWAY}/32"],
            "destinations": [],
        },
        "appliance_settings": {
            # A disk of 4 GiB is less than what a server keeps free of images.
            "datasets": {"reserve_bytes": 64 << 20, "ballast_bytes": 64 << 20},
            # An emulated processor translates a model at its first use: half a minute is not enough.
            "recognition": {"infer_seconds": 300, "decode_seconds": 60},
        },
        "appliance_operators": [OPERATOR],
        "luks_volume_device": device,
    }
