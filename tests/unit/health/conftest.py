"""A machine with GPUs that a test describes line by line, behind the real pynvml."""

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.unit.health.fake_gpus import build, describe


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled library."""
    return build(tmp_path_factory.mktemp("nvml")).parent


@pytest.fixture
def machine(fake_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`machine(*lines)` describes the GPUs from now on; see fake_nvml.c for the lines."""
    # The loader answers pynvml's later CDLL("libnvidia-ml.so.1") with what has that name in the process.
    ctypes.CDLL(str(fake_library / "libnvidia-ml.so.1"))
    state = tmp_path / "gpus.txt"
    monkeypatch.setenv("FAKE_NVML", str(state))
    describe(state)
    return partial(describe, state)
