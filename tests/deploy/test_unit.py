"""The unit files, judged by systemd's own tools. That each directive has its effect is tried in a guest."""

import configparser
import shutil
from pathlib import Path

import pytest

from appliance import config
from appliance.cli.output import CONFIG
from appliance.daemon import running
from tests import units
from tests.units import SYSTEMD, VARIANTS, analyze


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """A kind of server."""
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path, variant: str) -> Path:
    """A server's tree."""
    return units.tree(tmp_path, variant)


def with_debian_s_units(root: Path) -> Path:
    """What ours refer to: targets, and Debian's firewall."""
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    return root


def test_exposure_is_within_its_bound(root: Path, variant: str) -> None:
    bound = units.BOUNDS[variant]
    score, code = units.exposure(root, f"--threshold={round(bound * 10)}")
    assert score <= bound
    assert code == 0
    # The gate can close: a bound below the unit's own score is failed.
    assert units.exposure(root, f"--threshold={round(score * 10) - 1}")[1] == 1


def test_units_verify_without_a_word(root: Path) -> None:
    with_debian_s_units(root)
    done = analyze("verify", f"--root={root}", "--man=no", "appliance.service", "appliance-firewall.service")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("variant", ["gpu"], indirect=True)
def test_verify_would_have_said_something(root: Path) -> None:
    unit = with_debian_s_units(root) / "etc/systemd/system/appliance.service"
    unit.write_text(unit.read_text().replace("Type=notify\n", "Type=notify-reload\nRestartSteps=3\n"))
    done = analyze("verify", f"--root={root}", "--man=no", "appliance.service")
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
    needed = lifecycle.lame_duck_seconds + lifecycle.drain_seconds + running.EXTENSION_SECONDS
    assert int(settings()["TimeoutStopSec"][0]) >= needed


def test_configuration_error_is_not_tried_again() -> None:
    unit = settings()
    assert unit["RestartPreventExitStatus"] == [str(CONFIG)]
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
