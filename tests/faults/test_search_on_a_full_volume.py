"""Search on a volume without a byte free, in a real kernel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def test_it_refuses_at_the_reserve_and_deletes_on(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False).returncode != 0:
        pytest.skip("mount namespaces cannot be made here (unshare --mount)")
    command = [*NAMESPACE, sys.executable, "-m", "tests.faults.full_search", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
