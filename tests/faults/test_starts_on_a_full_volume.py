"""The way out of a full volume: a start, and deleting."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.running import CopyState

NAMESPACE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


@pytest.mark.timeout(300)
def test_it_starts_without_a_byte_free_and_deletes(copy_state: CopyState) -> None:
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False).returncode != 0:
        pytest.skip("mount namespaces cannot be made here (unshare --mount)")
    state = copy_state()
    (customer,) = state.ask("customer", "list")["customers"]
    state.ask("agreement", "sign", customer["id"], "training-data")
    command = [*NAMESPACE, sys.executable, "-m", "tests.faults.full_start", str(state.folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
