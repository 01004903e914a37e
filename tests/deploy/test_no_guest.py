"""`./dev e2e` where no guest can be had: exit code 77 and what is missing, before anything else is tried."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DEV = Path(__file__).parents[2] / "dev"
NOT_ROOT = "echo 1000"
ROOT = "echo 0"
NOTHING_INSTALLED = "exit 1"

Told = subprocess.CompletedProcess[str]


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Told]:
    """Runs `./dev e2e` with a PATH of a few real programs and these scripts by name, no qemu among them."""

    def run(**scripts: str) -> Told:
        for name in ("sh", "dirname", "grep", "cat", "uname", "env"):
            real = shutil.which(name)
            assert real is not None
            (tmp_path / name).symlink_to(real)
        for name, lines in scripts.items():
            script = tmp_path / name.replace("_", "-")
            script.unlink(missing_ok=True)
            script.write_text(f"#!/bin/sh\n{lines}\n")
            script.chmod(0o755)
        return subprocess.run(
            [DEV, "e2e"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30, check=False
        )

    return run


def test_without_root_the_line_to_type_is_printed(machine: Callable[..., Told]) -> None:
    told = machine(id=NOT_ROOT, dpkg_query=NOTHING_INSTALLED)
    assert told.returncode == 77
    assert "sudo apt-get install -y --no-install-recommends qemu-system-x86 " in told.stderr
    assert "no guest can be had on this machine" in told.stderr


def test_where_apt_fails_the_packages_are_named(machine: Callable[..., Told]) -> None:
    told = machine(id=ROOT, dpkg_query=NOTHING_INSTALLED, apt_get="echo no mirror answers >&2; exit 100")
    assert told.returncode == 77
    assert "no mirror answers" in told.stderr
    assert "the packages needed are: qemu-system-x86 " in told.stderr


def test_what_apt_says_of_a_success_is_not_passed_on(machine: Callable[..., Told]) -> None:
    told = machine(id=ROOT, dpkg_query=NOTHING_INSTALLED, apt_get="echo unpacking; echo unpacked >&2")
    assert told.returncode == 77
    assert "installing Debian packages" in told.stderr
    assert "qemu-system-x86_64 is not installed" in told.stderr
    assert "unpack" not in told.stdout + told.stderr


def test_on_another_distribution_the_missing_command_is_named(machine: Callable[..., Told]) -> None:
    told = machine(id=ROOT)
    assert told.returncode == 77
    assert "qemu-system-x86_64 is not installed" in told.stderr


def test_on_another_platform_it_is_named(machine: Callable[..., Told]) -> None:
    told = machine(uname="echo Darwin arm64")
    assert told.returncode == 77
    assert "this is Darwin arm64" in told.stderr


def test_nothing_of_it_runs_with_the_other_tests() -> None:
    """Collected by no run but its own."""
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "tests/e2e"],
        cwd=DEV.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "no tests" in told.stdout, told.stdout + told.stderr
