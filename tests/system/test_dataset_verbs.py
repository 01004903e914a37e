"""`appliance dataset`: folders, zip files and tars of a person, through a running daemon."""

import os
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.state import DemoState
from tests import images
from tests.datasets import boxes, folders, tar, untar
from tests.running import RunningAppliance
from tests.waiting import eventually

IMAGES = folders()


@pytest.fixture(scope="module")
def state(appliance: RunningAppliance) -> DemoState:
    return appliance.state


@pytest.fixture
def customer(state: DemoState, request: pytest.FixtureRequest) -> str:
    """A customer of the test's own, which has agreed that images are stored."""
    made = state.ask("customer", "add", request.node.name[:100])["id"]
    state.ask("agreement", "sign", made, "training-data")
    return str(made)


@pytest.fixture
def token(state: DemoState, customer: str, tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(state.ask("token", "add", customer)["token"] + "\n")
    return file


def run(state: DemoState, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = state.command("dataset", *words)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, input=stdin)


def refused(state: DemoState, *words: str) -> str:
    done = run(state, *words)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    return done.stderr.splitlines()[-1]


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def packed(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(tar(files))
    return path


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("make", [unpacked, zipped, packed])
def test_in_and_out_again(
    state: DemoState,
    customer: str,
    token: Path,
    tmp_path: Path,
    make: Callable[[Path, dict[str, bytes]], Path],
) -> None:
    ending = {"unpacked": "", "zipped": ".zip", "packed": ".tar"}[make.__name__]
    source = make(tmp_path / f"source{ending}", IMAGES | {"README.md": b"x"})
    report = state.ask("dataset", "import", customer, str(source), "--task", "fruit")
    assert (report["images"], report["labels"], report["ignored"]) == (5, 5, 1)
    [listed] = state.ask("dataset", "list", customer)["datasets"]
    assert (listed["id"], listed["images"], listed["name"]) == (customer, 5, None)

    target = tmp_path / f"target{ending}"
    words = ("export", customer, str(target), "--format", "imagefolder", "--token-file", str(token))
    done = run(state, *words)
    assert done.returncode == 0, done.stderr
    if ending == ".tar":
        found = untar(target.read_bytes())
    elif ending == ".zip":
        with zipfile.ZipFile(target) as archive:
            assert archive.testzip() is None
            found = {name: archive.read(name) for name in archive.namelist()}
    else:
        found = read(target)
        modes = {stat.S_IMODE(path.stat().st_mode) for path in target.rglob("*")}
        assert modes == {0o600, 0o700}
    assert found == IMAGES
    assert stat.S_IMODE(target.stat().st_mode) in {0o600, 0o700}
    assert list(tmp_path.glob("*.partial")) == []
    assert "exists already" in refused(state, *words)


def test_a_damaged_image_is_named_and_the_others_are_there(
    state: DemoState, customer: str, token: Path, tmp_path: Path
) -> None:
    source = unpacked(tmp_path / "source", IMAGES)
    before = set((state.folder / "images").glob("*/*"))
    assert state.ask("dataset", "import", customer, str(source))["images"] == 5
    file = next(file for file in (state.folder / "images").glob("*/*") if file not in before)
    os.truncate(file, file.stat().st_size - 1)
    target = tmp_path / "target"
    words = ("export", customer, str(target), "--format", "imagefolder", "--token-file", str(token))
    name, _, reason = refused(state, *words).strip().rpartition(": ")
    assert (name in IMAGES, reason) == (True, "damaged")
    found = read(target)
    assert name in found.pop("LEFT_OUT.csv").decode()
    assert found == {path: content for path, content in IMAGES.items() if path != name}

    other = (*words[:2], str(tmp_path / "other.zip"), *words[3:])
    assert "1 images of the dataset are damaged" in refused(state, *other)
    told = state.ask("dataset", *other, "--skip-damaged")
    assert told["left_out"] == [{"name": name, "reason": "damaged"}]


def test_what_is_held_is_not_sent_again(state: DemoState, customer: str, tmp_path: Path) -> None:
    source = unpacked(tmp_path / "source", boxes())
    script = (  # progress is told at once
        "import sys; from appliance.cli import main, progress; progress._TOLD_EVERY = 0;"
        f"sys.exit(main({state.command('dataset', 'import', customer, str(source))[1:]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "4 of 4 files" in done.stderr
    assert "3 images stored" in done.stdout
    [one] = source.rglob("one.png")
    one.write_bytes(one.read_bytes()[:-1] + b"?")  # of the same size: it is not looked into
    again = state.ask("dataset", "import", customer, str(source))
    assert (again["images"], again["present"], again["refused"]) == (0, 3, [])
    report = state.ask("dataset", "import", customer, str(source), "--resend")
    assert (report["present"], [found["name"] for found in report["refused"]]) == (2, ["images/one.png"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_run_again(
    state: DemoState, customer: str, tmp_path: Path, how: signal.Signals
) -> None:
    files = {f"a/{number:03}.png": images.plain(str(number)) for number in range(150)}
    source = unpacked(tmp_path / "source", files)
    command = state.command("dataset", "import", customer, str(source))
    sending = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def stored() -> int:
        [listed] = state.ask("dataset", "list", customer)["datasets"] or [{"images": 0}]
        return int(listed["images"])

    eventually(lambda: stored() > 0 or sending.poll() is not None, "some are stored")
    sending.send_signal(how)
    _, said = sending.communicate(timeout=60)
    if sending.returncode:  # it was not faster than the test
        assert "run it again to go on" in said
    assert "Traceback" not in said

    # The first may still be ending: the second waits for it.
    assert state.ask("dataset", "import", customer, str(source))["refused"] == []
    assert stored() == 150


def test_an_export_needs_the_customers_token_or_a_grant(
    state: DemoState, customer: str, token: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target.tar"
    words = ("export", "Default", str(target), "--format", "coco", "--token-file")
    assert "no live grant" in refused(state, "export", customer, *words[2:-1])
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    assert "token" in refused(state, *words, str(nonsense))
    assert "No such file" in refused(state, *words, str(tmp_path / "nowhere"))
    done = run(state, *words, "-", stdin=token.read_text())
    assert done.returncode == 0, done.stderr
    assert token.read_text().strip() not in done.stderr + done.stdout
    assert tarfile.is_tarfile(target)
    other = state.ask("customer", "add", f"another than {customer}")["id"]
    target.unlink()
    assert "no such dataset" in refused(
        state, "export", other, str(target), "--format", "coco", "--token-file", str(token)
    )
    assert not target.exists()


def test_refusals_of_the_daemon_are_told(state: DemoState, customer: str, tmp_path: Path) -> None:
    nobody = state.ask("customer", "add", f"agreed to nothing {tmp_path.name}")["id"]
    source = unpacked(tmp_path / "source", {"a/1.bmp": os.urandom(30 << 20)})
    assert "agreement" in refused(state, "import", nobody, str(source))
    assert "no such dataset" in refused(state, "import", "nobody", str(source))
    broken = tmp_path / "broken.tar"
    broken.write_bytes(tar(IMAGES)[:3000])
    assert "breaks off" in refused(state, "import", customer, str(broken))
    assert "No such file" in refused(state, "import", nobody, str(tmp_path / "nowhere"))
