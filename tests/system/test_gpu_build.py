"""The GPU build of onnxruntime on a machine without a GPU: it refuses, or serves on the CPU and says so."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import CopyState, RunningAppliance

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "config" / "requirements-gpu.txt"
# Of CUDA's libraries none is installed: a gigabyte, and their absence is what is tested.
CUDA = re.compile(r"nvidia-(?!ml-py)")
LIBRARY = re.compile(r"lib(cu|nv)[a-zA-Z]+\.so\.\d+")


@pytest.fixture(scope="module")
def gpu_python() -> str:
    """An environment of its own with onnxruntime-gpu in place of onnxruntime."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    folder = ROOT / ".cache" / "gpu"
    python = str(folder / "bin" / "python")
    entries = re.split(r"^(?=\S)", LOCK.read_text(), flags=re.MULTILINE)
    pins = "".join(entry for entry in entries if not CUDA.match(entry))
    stamp, made = folder / "stamp", hashlib.sha256(pins.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != made:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        (folder / "lock.txt").write_text(pins)
        install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        build = ["--no-build-isolation", "--require-hashes", "-r"]
        environment = os.environ | {"HNSWLIB_NO_NATIVE": "1"}
        for lock in (ROOT / "config" / "requirements-build.txt", folder / "lock.txt"):
            subprocess.run([*install, *build, str(lock)], check=True, env=environment)
        subprocess.run([*install, "--no-build-isolation", "-e", str(ROOT)], check=True)
        stamp.write_text(made)
    return python


def test_cuda_is_refused_and_the_missing_library_named(gpu_python: str, copy_state: CopyState) -> None:
    state = copy_state()
    state.config.write_text(state.config.read_text() + '\n[recognition]\ndevice = "cuda"\n')
    run = subprocess.run(
        [gpu_python, *state.command("serve")], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 1, run.stderr
    assert 'device = "cuda" cannot be served' in run.stderr
    assert LIBRARY.search(run.stderr), run.stderr


def test_auto_serves_on_the_cpu_and_status_says_why(gpu_python: str, copy_state: CopyState) -> None:
    state = copy_state()
    state.config.write_text(state.config.read_text() + '\n[recognition]\ndevice = "auto"\n')
    with RunningAppliance(state, state.port, wrapper=[gpu_python]) as running:
        (device,) = state.ask("status")["devices"]
        assert device["provider"] == "CPUExecutionProvider"
        assert LIBRARY.search(device["note"]), device["note"]
        assert running.call("GET", "/readyz", headers={}).status == 200
