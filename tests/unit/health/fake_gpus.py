"""The fake NVIDIA library, compiled, and the machine that it reports."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAME = "libnvidia-ml.so.1"
SOURCE = Path(__file__).with_name("fake_nvml.c")


def build(folder: Path) -> Path:
    """Compile the library into the folder and return its path; skips the test where no compiler is."""
    if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
        pytest.skip("no C compiler: the fake NVIDIA library cannot be built")
    library = folder / NAME
    flags = ("-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{NAME}")
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return library


def describe(state: Path, *lines: str) -> None:
    """Make the file $FAKE_NVML say this from the library's next call on; fake_nvml.c explains the lines."""
    staged = state.with_suffix(".new")
    staged.write_text("".join(f"{line}\n" for line in lines))
    staged.rename(state)
