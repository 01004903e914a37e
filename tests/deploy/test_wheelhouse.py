"""`./dev wheelhouse`: an archive that installs with nothing but Debian's Python, and only what it lists."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from appliance.recognition import bundles

ROOT = Path(__file__).parents[2]
BUILT = ROOT / ".cache" / "wheelhouse"  # kept between runs: an unchanged tree is packed once
PIN = re.compile(r"([A-Za-z0-9_.]+)==(\S+) --hash=sha256:([0-9a-f]{64})")
OFFLINE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]

Told = subprocess.CompletedProcess[str]


def wheelhouse(*arguments: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> Told:
    command: list[str | Path] = [cwd / "dev", "wheelhouse", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False, env=os.environ | (env or {})
    )


def pip(house: Path, venv: Path) -> Told:
    """The line that a server runs, without a network."""
    (own,) = (house / "wheels").glob("pip-*.whl")
    install: list[str | Path] = [venv / "bin/python", own / "pip", "--no-cache-dir", "install", "--no-index"]
    install += ["--find-links", house / "wheels", "--require-hashes", "-r", house / "requirements.txt"]
    return subprocess.run([*OFFLINE, *install], capture_output=True, text=True, timeout=100, check=False)


def empty_venv(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


pytestmark = pytest.mark.timeout(900)  # the first one builds what the others look at


@pytest.fixture(scope="module")
def archive() -> Path:
    """The archive of the tree as it is; those of earlier ones go."""
    told = wheelhouse("--to", BUILT)
    assert told.returncode == 0, told.stderr
    path = Path(told.stdout.splitlines()[-1])
    for other in set(BUILT.glob("*.tar")) - {path}:
        other.unlink()
    return path


@pytest.fixture(scope="module")
def house(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked."""
    folder = tmp_path_factory.mktemp("house")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def installed(house: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment, filled from the archive alone."""
    if subprocess.run([*OFFLINE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    venv = empty_venv(tmp_path_factory.mktemp("server") / "venv")
    told = pip(house, venv)
    assert told.returncode == 0, told.stderr
    return venv


def pins(text: str) -> dict[str, str]:
    """Version by name, as a lock or the archive's list says it."""
    found = re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE)
    return {name.replace("_", "-"): version for name, version in found}


def test_its_name_says_what_it_is(archive: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()[:12]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert archive.name == f"appliance-{version}-{digest}-cpu-{python}-{os.uname().machine}.tar"


def test_it_says_nothing_of_who_made_it_and_when(archive: Path) -> None:
    with tarfile.open(archive) as packed:
        members = packed.getmembers()
    for one in members:
        assert (one.uid, one.gid, one.uname, one.gname, one.mtime) == (0, 0, "", "", 315532800), one.name
        assert one.isdir() or one.isfile(), one.name
        assert one.mode == (0o755 if one.isdir() else 0o644), one.name
    assert {one.name.split("/")[0] for one in members} == {"wheels", "bundles", "requirements.txt"}


def test_its_list_has_every_wheel_with_its_hash_and_no_other(house: Path) -> None:
    lines = (house / "requirements.txt").read_text().splitlines()
    listed = set()
    for line in lines:
        found = PIN.fullmatch(line)
        assert found, line
        listed.add(found.groups())
    present = {
        (*path.name.split("-")[:2], hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (house / "wheels").iterdir()
    }
    assert listed == present
    assert len(lines) == len(listed)


def test_it_holds_what_the_lock_names_and_pip_and_the_appliance(house: Path) -> None:
    listed = pins((house / "requirements.txt").read_text())
    locked = pins((ROOT / "config/requirements-cpu.txt").read_text())
    assert listed.keys() - locked.keys() == {"pip", "appliance"}
    assert locked.items() <= listed.items()
    assert listed["pip"] == pins((ROOT / "config/requirements-build.txt").read_text())["pip"]


def test_its_bundle_is_whole(house: Path) -> None:
    assert [folder.name for folder in (house / "bundles").iterdir()] == ["efficientnet-lite0"]
    assert bundles.read(house / "bundles/efficientnet-lite0").name == "efficientnet-lite0"


def test_what_is_installed_offline_runs(installed: Path) -> None:
    def run(*command: str) -> Told:
        full = [*OFFLINE, str(installed / "bin" / command[0]), *command[1:]]
        told = subprocess.run(full, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert told.returncode == 0, told.stderr
        return told

    assert "check-config" in run("appliance", "--help").stdout
    assert "No broken requirements" in run("python", "-m", "pip", "check").stdout
    imports = """
import importlib, importlib.metadata as metadata
found = metadata.packages_distributions()
names = [name.replace("/", ".") for name in found if name[0] != "_" and name != "example"]
for name in names:
    importlib.import_module(name)
print(*names)
"""
    names = run("python", "-I", "-c", imports).stdout.split()
    assert {
        "appliance",
        "faiss",
        "hnswlib",
        "onnxruntime",
        "systemd._daemon",
        "uvloop",
        "pynvml",
        "PIL",
        "onnx",
    } <= set(names)
    assert not {"pytest", "ansible", "sklearn"} & set(names)
    where = run("python", "-I", "-c", "import appliance; print(appliance.__file__)").stdout
    assert where.startswith(str(installed))


def test_every_file_of_the_package_is_installed(installed: Path) -> None:
    """Migrations, openapi.yaml: what is read at run time is not only in the working tree."""
    (packages,) = installed.glob("lib/python*/site-packages")
    ours = {
        path.relative_to(ROOT)
        for path in (ROOT / "appliance").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert ours
    assert not [path for path in ours if not (packages / path).is_file()]


def test_nothing_in_hnswlib_is_beyond_the_level_of_servers(installed: Path) -> None:
    """AVX-512 is where processors differ: its registers and masks appear nowhere, those of AVX2 do."""
    (module,) = installed.glob("lib/python*/site-packages/hnswlib*.so")
    objdump = ["objdump", "--disassemble", "--no-show-raw-insn", str(module)]
    code = subprocess.run(objdump, capture_output=True, text=True, check=True).stdout
    assert not re.findall(r"%zmm\d+|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])", code)
    assert re.search(r"\bvfmadd\w+ .*%ymm", code)


def test_what_was_compiled_looks_for_libraries_nowhere_but_in_the_system(installed: Path) -> None:
    """A path of the builder's home in a module is one that someone on the server may fill."""
    (packages,) = installed.glob("lib/python*/site-packages")
    compiled = [*packages.glob("hnswlib*.so"), *packages.glob("systemd/*.so")]
    assert len(compiled) == 6
    for module in compiled:
        readelf = ["readelf", "--dynamic", str(module)]
        assert "PATH" not in subprocess.run(readelf, capture_output=True, text=True, check=True).stdout, (
            module
        )


def test_a_wheel_that_was_changed_is_refused(house: Path, installed: Path, tmp_path: Path) -> None:
    shutil.copytree(house / "wheels", tmp_path / "wheels")
    shutil.copy(house / "requirements.txt", tmp_path)
    (wheel,) = (tmp_path / "wheels").glob("idna-*.whl")
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    venv = empty_venv(tmp_path / "venv")
    told = pip(tmp_path, venv)
    assert told.returncode == 1
    assert "DO NOT MATCH THE HASHES" in told.stderr
    assert "idna" in told.stderr
    assert not list(venv.glob("lib/python*/site-packages/*"))


def test_an_unchanged_tree_is_packed_once(archive: Path) -> None:
    made = archive.stat()
    told = wheelhouse("--to", os.path.relpath(BUILT))
    assert told.stdout == f"{archive}\n"
    assert told.stderr == ""
    assert archive.stat() == made


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--to",), "--to: a directory is expected"),
        (("--gpus",), "--gpus: not an option (--gpu, --to DIRECTORY)"),
        (("--to", "/dev/null"), "/dev/null: no directory that can be written to"),
        (("--to", "/proc/archives"), "/proc/archives: no directory that can be written to"),
        (("--to", "/proc"), "/proc: no directory that can be written to"),
    ],
)
def test_a_wrong_line_is_refused(arguments: tuple[str, ...], reason: str) -> None:
    told = wheelhouse(*arguments)
    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].endswith(reason)
    assert told.stdout == ""


def scripts(folder: Path, **lines: str) -> dict[str, str]:
    """An environment in which these commands are scripts."""
    folder.mkdir()
    for name, text in lines.items():
        script = folder / name.replace("_", "-")
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_without_a_compiler_the_line_to_type_is_printed(archive: Path, tmp_path: Path) -> None:
    nothing = scripts(tmp_path / "bin", dpkg_query="exit 1", id="echo 1000", sudo="exit 1")
    told = wheelhouse("--to", tmp_path / "to", env=nothing)
    assert told.returncode == 1
    assert re.search(r"sudo apt-get install .* g\+\+ ", told.stderr)
    assert not list((tmp_path / "to").iterdir())


def test_what_fails_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    told = wheelhouse(
        "--to",
        tmp_path / "to",
        env={"PIP_INDEX_URL": "file:///nowhere", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""},
    )
    assert told.returncode == 1
    assert told.stdout == ""
    assert "hnswlib" in told.stderr
    assert told.stderr.splitlines()[-1] == "dev: no archive was made (see above)"
    assert not list((tmp_path / "to").iterdir())


def test_what_is_interrupted_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    stuck = scripts(tmp_path / "bin", awk="echo stuck >&2; exec sleep 60")
    # A shell cannot trap what was ignored when it began, as it is for jobs in the background.
    heard = ["env", "--default-signal=INT"]
    command: list[str | Path] = [*heard, ROOT / "dev", "wheelhouse", "--to", tmp_path / "to"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | stuck,
        process_group=0,
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        while process.stderr.readline() != "stuck\n":
            assert process.poll() is None
        assert list((tmp_path / "to").iterdir())
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(20) == 1
        assert process.stdout.read() == ""
    assert not list((tmp_path / "to").iterdir())


@pytest.mark.full
def test_another_clone_at_another_time_makes_the_same(archive: Path, tmp_path: Path) -> None:
    """Its folder has a space, its files the modes of another umask; its environment is made anew."""
    clone = tmp_path / "another clone"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
            (clone / name).chmod((ROOT / name).stat().st_mode & 0o700)
    told = wheelhouse("--to", tmp_path / "to", env={"TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"}, cwd=clone)
    assert told.returncode == 0, told.stderr
    assert Path(told.stdout.splitlines()[-1]).name == archive.name
