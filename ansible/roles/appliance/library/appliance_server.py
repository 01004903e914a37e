#!/usr/bin/python
"""Judges whether a server can take the appliance; changes nothing and names everything it misses at once."""

import json
import os
import platform
import pwd
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: appliance_server
short_description: Judges whether a server can take the appliance
description:
  - Looks for the programs it needs, for an encrypted volume and for swap in the clear. Changes nothing.
options:
  release: {description: Name of the archive without its ending., type: str, required: true}
  device: {description: What the models run on., type: str, choices: [cuda, cpu], required: true}
  state: {description: Where the appliance keeps everything., type: path, required: true}
  volume_is_made: {description: Whether the playbook makes the volume., type: bool, required: true}
  has_key: {description: Whether the inventory brings the root key., type: bool, required: true}
  tls_pair: {description: Certificate and key, PEM., type: str, required: true}
  operators: {description: Users who may use the command line., type: list, elements: str, required: true}
author: The appliance's makers
"""

TOOLS = {
    "nft": "nftables",
    "findmnt": "util-linux",
    "lsblk": "util-linux",
    "tar": "tar",
    "systemd-creds": "systemd",
    "systemd-escape": "systemd",
    "systemd-sysusers": "systemd",
}
SYSTEMD_FLOOR = 252
CREDENTIAL = Path("/etc/appliance/root.key.cred")
RELEASES = Path("/opt/appliance/releases")
CONFIGURED = ("/etc/appliance", "/etc/systemd/system/appliance.service.d")
UNIT = Path("/etc/systemd/system/appliance.service")
NVIDIA_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm")


def output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def on_luks(device: str) -> bool:
    """Whether a block device lies on a LUKS mapping; the daemon itself judges every member below."""
    listed = output("lsblk", "--inverse", "--json", "--output", "NAME,TYPE,FSTYPE", device)
    return '"crypto_LUKS"' in listed


def programs(release: str) -> list[str]:
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
    found = [f"{', '.join(missing)}: not installed; on Debian: apt install {packages}"] if missing else []
    version = output("systemctl", "--version").split()
    if len(version) > 1 and int(version[1].split(".")[0]) < SYSTEMD_FLOOR:
        found.append(f"systemd is {version[1]}; {SYSTEMD_FLOOR} or newer is needed (Debian 12)")
    python, machine = f"cp{sys.version_info[0]}{sys.version_info[1]}", platform.machine()
    if not release.endswith(f"-{python}-{machine}"):
        found.append(
            f"the archive {release} is not for this server's Python and processor ({python}-{machine})"
        )
    return found


def devices(device: str) -> list[str]:
    missing = [node for node in NVIDIA_NODES if not Path(node).exists()]
    if device == "cpu" or not missing:
        return []
    how = (
        "install NVIDIA's driver and let nvidia-persistenced and `nvidia-modprobe -c 0 -u` make them at boot"
    )
    return [f"{', '.join(missing)}: no such device; {how}, or set appliance_device: cpu"]


def mounted(state: Path) -> dict[str, str]:
    """Source, target and fstype of the mount that the state lies on."""
    place = state
    while not place.exists():
        place = place.parent
    where = json.loads(
        output("findmnt", "--json", "--output", "SOURCE,TARGET,FSTYPE", "--target", str(place)) or "{}"
    )
    found: dict[str, str] = where.get("filesystems", [{}])[0]
    return found


def mount_unit(state: Path, volume_is_made: bool) -> str:
    """What systemd calls the mount that the state is going to lie on."""
    target = str(state) if volume_is_made else mounted(state).get("target", "/")
    return output("systemd-escape", "--path", "--suffix=mount", target)


def volume(state: Path) -> list[str]:
    mount = mounted(state)
    if on_luks(str(mount.get("source", "")).split("[")[0]):
        return []
    lies = f"{state} lies on {mount.get('source')} ({mount.get('fstype')}, mounted at {mount.get('target')})"
    return [f"{lies}, which is no LUKS volume: mount one there, or name an empty disk as luks_volume_device"]


def swaps() -> list[str]:
    active = [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()[1:]]
    plain = []
    for name in active:
        device = name if name.startswith("/dev/") else output("findmnt", "-no", "SOURCE", "--target", name)
        if not (Path(device).name.startswith("zram") or on_luks(device) or is_crypt(device)):
            plain.append(name)
    return [f"swap on {name} is not encrypted: swapoff it and take it out of /etc/fstab" for name in plain]


def is_crypt(device: str) -> bool:
    return "crypt" in output("lsblk", "--inverse", "--noheadings", "--output", "TYPE", device).split()


def operators(names: list[str]) -> list[str]:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return [
        f"appliance_operators: {name}: no such user on this server" for name in names if name not in known
    ]


def key(state: Path) -> list[str]:
    if not (state / "ledger.db").exists() or CREDENTIAL.exists():
        return []
    lost = f"{state} holds an appliance's data and {CREDENTIAL} is gone"
    return [f"{lost}: set appliance_root_key to its key from your backup"]


def tls(pair: str) -> list[str]:
    """Whether the key is the certificate's; only memory holds the two."""
    held = os.memfd_create("pair")
    os.write(held, pair.encode())
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(f"/proc/self/fd/{held}", password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        return [f"appliance_tls_certificate and appliance_tls_key are no pair of PEM files: {why}"]
    finally:
        os.close(held)
    return []


def is_stale() -> bool:
    """Whether an interrupted run changed something that the running service has not seen."""
    shown = output(
        *("systemctl", "show", "--timestamp=unix", "--property=ActiveState,StateChangeTimestamp"),
        UNIT.name,
    )
    facts = dict(line.split("=", 1) for line in shown.splitlines())
    if facts.get("ActiveState") != "active":
        return False
    files = [
        UNIT,
        RELEASES.parent / "current",
        *(file for name in CONFIGURED for file in Path(name).glob("*")),
    ]
    newest = max(file.lstat().st_mtime for file in files)
    return newest >= int(facts["StateChangeTimestamp"].removeprefix("@")) + 1


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "device": {"type": "str", "choices": ["cuda", "cpu"], "required": True},
            "state": {"type": "path", "required": True},
            "volume_is_made": {"type": "bool", "required": True},
            "has_key": {"type": "bool", "required": True},
            "tls_pair": {"type": "str", "required": True, "no_log": True},
            "operators": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    wanted, state = module.params, Path(module.params["state"])
    findings = programs(wanted["release"]) + devices(wanted["device"]) + tls(wanted["tls_pair"])
    findings += swaps() + operators(wanted["operators"])
    if not wanted["volume_is_made"]:
        findings += volume(state)
    if not wanted["has_key"]:
        findings += key(state)
    if findings:
        module.fail_json(msg="; ".join(findings), findings=findings)
    whole = RELEASES / wanted["release"] / "installed"
    module.exit_json(
        changed=False,
        installed=UNIT.exists(),
        release_is_whole=whole.exists(),
        mount_unit=mount_unit(state, wanted["volume_is_made"]),
        stale=UNIT.exists() and is_stale(),
    )


if __name__ == "__main__":
    main()
