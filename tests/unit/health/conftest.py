"""A machine with GPUs that a test describes line by line, behind the real pynvml."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a compiled `libnvidia-ml.so.1`."""
    if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
        pytest.skip("no C compiler: the fake NVIDIA library cannot be built")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    flags = ("-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1")
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return folder


@pytest.fixture
def machine(fake_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`machine(*lines)` describes the GPUs from now on; see fake_nvml.c for the lines."""
    # The loader answers pynvml's later CDLL("libnvidia-ml.so.1") with what has that name in the process.
    ctypes.CDLL(str(fake_library / "libnvidia-ml.so.1"))
    state = tmp_path / "gpus.txt"
    monkeypatch.setenv("FAKE_NVML", str(state))

    def describe(*lines: str) -> None:
        staged = state.with_suffix(".new")
        staged.write_text("".join(f"{line}\n" for line in lines))
        staged.rename(state)

    describe()
    return describe
