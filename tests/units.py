"""The project's units in a system's tree of their own, for systemd's tools to judge offline."""

import shutil
import subprocess
from pathlib import Path

from appliance import firewall, residency

ROOT = Path(__file__).parents[1]
SYSTEMD = ROOT / "systemd"
# The drop-ins of each kind of server, and the exposure that its unit may have.
VARIANTS = {"gpu": (), "no-gpu": ("no-gpu.conf",)}
BOUNDS = {"gpu": 1.4, "no-gpu": 1.2}


def tree(folder: Path, variant: str) -> Path:
    """`folder` as the playbook leaves a server: units and drop-ins, clients among them."""
    units = folder / "etc/systemd/system"
    drop_ins = units / "appliance.service.d"
    drop_ins.mkdir(parents=True)
    for unit in SYSTEMD.glob("*.service"):
        shutil.copy(unit, units)
    for name in VARIANTS[variant]:
        shutil.copy(SYSTEMD / "appliance.service.d" / name, drop_ins)
    rendered = firewall.systemd(residency.load(ROOT / "config/residency.toml"))
    assert "IPAddressAllow=10.20.0.0/16" in rendered
    (drop_ins / "residency.conf").write_text(rendered)
    for program in ("opt/appliance/current/venv/bin/appliance", "usr/sbin/nft", "usr/bin/kill"):
        (folder / program).parent.mkdir(parents=True, exist_ok=True)
        (folder / program).touch(mode=0o755)
    return folder


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    """systemd-analyze, which needs no running systemd for what is asked of it here."""
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


def exposure(folder: Path, *words: str) -> tuple[float, int]:
    """The exposure of appliance.service in a tree, from 0 (none) to 10, and the exit code."""
    judged = ("security", f"--root={folder}", "--offline=true", "--no-pager")
    done = analyze(*judged, *words, "appliance.service")
    overall = done.stdout.rpartition("appliance.service: ")[2]
    return float(overall.split()[0]), done.returncode
