"""The unit files, judged by systemd's own tools. That each directive has its effect is tried in a guest."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance import cli, config, daemon, firewall
from appliance.residency import load

SYSTEMD = Path(__file__).parents[2] / "systemd"
EXAMPLE = Path(__file__).parents[2] / "config" / "residency.toml"
VARIANTS = {"gpu": (), "no-gpu": ("no-gpu.conf",)}
# Tenths, as systemd-analyze takes its threshold.
BOUNDS = {"gpu": 14, "no-gpu": 12}


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system's tree as the playbook leaves it: units, and the drop-in of a residency file with clients."""
    units = tmp_path / "etc/systemd/system"
    (units / "appliance.service.d").mkdir(parents=True)
    for unit in SYSTEMD.glob("*.service"):
        shutil.copy(unit, units)
    # What the units refer to: targets, and Debian's own firewall.
    shutil.copytree("/usr/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    rendered = firewall.systemd(load(EXAMPLE))
    assert "IPAddressAllow=10.20.0.0/16" in rendered
    (units / "appliance.service.d/residency.conf").write_text(rendered)
    for program in ("opt/appliance/current/venv/bin/appliance", "usr/sbin/nft", "usr/bin/kill"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).touch(mode=0o755)
    return tmp_path


def with_variant(root: Path, variant: str) -> Path:
    for drop_in in VARIANTS[variant]:
        shutil.copy(
            SYSTEMD / "appliance.service.d" / drop_in, root / "etc/systemd/system/appliance.service.d"
        )
    return root


@pytest.mark.parametrize("variant", VARIANTS)
def test_exposure_is_within_its_bound(root: Path, variant: str) -> None:
    tree = with_variant(root, variant)
    judged = ("security", f"--root={tree}", "--offline=true", "--no-pager", "appliance.service")
    done = analyze(*judged, f"--threshold={BOUNDS[variant]}")
    assert done.returncode == 0, done.stdout[-3000:]
    print(variant, done.stdout.splitlines()[-1])
    # The gate can close: the same unit fails a bound below its own score.
    assert analyze(*judged, "--threshold=5").returncode == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_units_verify_without_a_word(root: Path, variant: str) -> None:
    tree = with_variant(root, variant)
    done = analyze("verify", f"--root={tree}", "--man=no", "appliance.service", "appliance-firewall.service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verify_would_have_said_something(root: Path) -> None:
    unit = root / "etc/systemd/system/appliance.service"
    unit.write_text(unit.read_text().replace("Type=notify\n", "Type=notify-reload\nRestartSteps=3\n"))
    done = analyze("verify", f"--root={root}", "--man=no", "appliance.service")
    assert "notify-reload" in done.stderr
    assert "RestartSteps" in done.stderr


def settings(name: str = "appliance.service") -> dict[str, list[str]]:
    """The directives of a unit file, each with its values in order."""
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_manager_waits_longer_than_a_drain_may_take() -> None:
    lifecycle = config.Lifecycle()
    needed = lifecycle.lame_duck_seconds + lifecycle.drain_seconds + daemon.EXTENSION_SECONDS
    assert int(settings()["TimeoutStopSec"][0]) >= needed


def test_configuration_error_is_not_tried_again() -> None:
    unit = settings()
    assert unit["RestartPreventExitStatus"] == [str(cli.CONFIG)]
    assert unit["Restart"] == ["always"]


def test_memory_with_pixels_reaches_no_disk() -> None:
    unit = settings()
    assert (unit["MemorySwapMax"], unit["LimitCORE"]) == (["0"], ["0"])


def test_root_key_is_a_credential_and_no_file_of_the_service() -> None:
    assert settings()["LoadCredentialEncrypted"] == ["root.key:/etc/appliance/root.key.cred"]


def test_calls_that_children_lock_themselves_in_with_are_named() -> None:
    allowed = " ".join(settings()["SystemCallFilter"])
    for call in ("seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"):
        assert f" {call}" in allowed


def test_service_reads_what_it_is_started_from_and_writes_only_its_state() -> None:
    unit = settings()
    read_only = " ".join(unit["BindReadOnlyPaths"])
    assert unit["RootDirectory"] == ["/run/appliance-root"]
    assert unit["BindPaths"] == ["/run/appliance"]
    assert unit["StateDirectory"] == ["appliance"]
    for path in ("/usr", "/opt/appliance", "/etc/appliance"):
        assert path in read_only.split()
    assert not {"ReadWritePaths", "RuntimeDirectory", "CacheDirectory", "LogsDirectory"} & unit.keys()


def test_no_daemon_without_its_wall() -> None:
    wall = settings("appliance-firewall.service")
    assert wall["RequiredBy"] == ["appliance.service"]
    assert wall["Before"] == ["appliance.service"]


def test_drop_ins_and_units_are_well_formed() -> None:
    for path in [*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.d/*.conf")]:
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(path.read_text())
        assert set(parser.sections()) <= {"Unit", "Service", "Install"}
