"""Mounts that go, come, are laid over, turn read-only or fill up under a data folder, in a real kernel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.data_folder_mounts import NEEDS_ROOT, SCENARIOS

ROOT = os.geteuid() == 0
NAMESPACE = ["unshare", "--mount", *([] if ROOT else ["--map-root-user"])]


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False).returncode != 0:
        pytest.skip("mount namespaces cannot be made here (unshare --mount)")


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(tmp_path: Path, name: str) -> None:
    if name in NEEDS_ROOT and not (ROOT and Path("/dev/loop-control").exists() and shutil.which("mkfs.ext4")):
        pytest.skip("needs root on a machine with loop devices and mkfs.ext4")
    command = [*NAMESPACE, sys.executable, "-m", "tests.faults.data_folder_mounts", name, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
