"""What goes on without a byte free, in a real kernel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMESPACE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


@pytest.mark.parametrize("what", ["full_search", "full_deletions"])
def test_on_a_full_volume(what: str, tmp_path: Path) -> None:
    """Search refuses at the reserve and deletes on; much is deleted in the room that the ledger keeps."""
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False).returncode != 0:
        pytest.skip("mount namespaces cannot be made here (unshare --mount)")
    command = [*NAMESPACE, sys.executable, "-m", f"tests.faults.{what}", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
