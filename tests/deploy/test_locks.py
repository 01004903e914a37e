"""The lock files agree with each other and with pyproject.toml; a server gets nothing it does not need."""

import re
import tomllib
from importlib.metadata import requires
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
DEVELOPMENT = ["cpu", "starter", "demo", "systemd", "heic", "faiss"]

# Which extras each file locks, beside the dependencies themselves.
LOCKS = {
    "requirements.txt": DEVELOPMENT,
    "requirements-test.txt": [*DEVELOPMENT, "test"],
    "requirements-cpu.txt": ["cpu", "systemd", "heic", "faiss"],
    "requirements-gpu.txt": ["gpu", "systemd", "heic", "faiss"],
}
ALL = [*LOCKS, "requirements-build.txt"]


def locked(file: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes by name. Any line that is not a pin or its hash fails."""
    pins: dict[str, tuple[str, set[str]]] = {}
    hashes: set[str] = set()
    for line in (ROOT / "config" / file).read_text().splitlines():
        if pin := re.fullmatch(r"([a-z0-9.-]+)==(\S+) \\", line):
            hashes = set()
            pins[pin[1]] = (pin[2], hashes)
        else:
            found = re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?", line)
            assert found, f"{file}: {line}"
            hashes.add(found[1])
    return pins


def wanted(extras: list[str]) -> list[Requirement]:
    """What pyproject.toml asks for."""
    asked = [*PROJECT["project"]["dependencies"], *(one for extra in extras for one in EXTRAS[extra])]
    return [Requirement(one) for one in asked]


@pytest.mark.parametrize("file", ALL)
def test_every_pin_has_a_hash(file: str) -> None:
    pins = locked(file)
    assert pins
    assert not [name for name, (_, hashes) in pins.items() if not hashes]


@pytest.mark.parametrize(("one", "other"), list(combinations(ALL, 2)))
def test_two_locks_agree_on_what_both_hold(one: str, other: str) -> None:
    mine, theirs = locked(one), locked(other)
    assert {name: mine[name] for name in mine.keys() & theirs} == {
        name: theirs[name] for name in mine.keys() & theirs
    }


@pytest.mark.parametrize("file", LOCKS)
def test_a_lock_satisfies_the_project(file: str) -> None:
    pins = locked(file)
    for requirement in wanted(LOCKS[file]):
        version, _ = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{file}: {requirement} is locked at {version}"


def test_what_builds_is_locked() -> None:
    pins = locked("requirements-build.txt")
    for line in PROJECT["build-system"]["requires"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name][0]), line


def test_a_server_without_a_gpu_gets_exactly_what_it_needs() -> None:
    needed: set[str] = set()
    following = wanted(LOCKS["requirements-cpu.txt"])
    while following:
        requirement = following.pop()
        name = canonicalize_name(requirement.name)
        if name not in needed:
            needed.add(name)
            further = [Requirement(one) for one in requires(name) or []]
            following += [one for one in further if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert locked("requirements-cpu.txt").keys() == needed


def test_a_server_with_a_gpu_gets_its_libraries_beside() -> None:
    cpu, gpu = locked("requirements-cpu.txt"), locked("requirements-gpu.txt")
    assert cpu.keys() - gpu.keys() == {"onnxruntime"}
    libraries = gpu.keys() - cpu.keys() - {"onnxruntime-gpu"}
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cufft"} <= libraries
    assert {name.partition("-")[0] for name in libraries} == {"nvidia"}
