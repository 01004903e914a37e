"""A bundle whose trial takes its time: only who installs it waits, and it ends with them."""

import socket
from collections.abc import Iterator
from pathlib import Path

import onnx
import psutil
import pytest

from tests import bundles
from tests.api.test_bodies import BOUNDARY, multipart
from tests.serving import SECONDS, Served
from tests.unit.recognition.small_models import SIZE, endless
from tests.waiting import eventually

BUNDLES = "/appliance/v1/bundles"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server of its own, with two versions of a tagger."""
    with Served(tmp_path) as served:
        served.install(bundles.tagger(tmp_path / "one"))
        second = bundles.tagger(tmp_path / "two")
        manifest = (second / "bundle.toml").read_text()
        (second / "bundle.toml").write_text(manifest.replace('version = "1"', 'version = "2"', 1))
        served.install(second)
        yield served


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def test_activation_does_not_wait_for_a_trial_which_ends_with_its_caller(
    served: Served, tmp_path: Path
) -> None:
    model = endless(tmp_path)
    folder = bundles.write(
        tmp_path / "endless",
        onnx.load(model.model),
        name="endless",
        kind="tagger",
        labels=("one",),
        outputs=dict(model.outputs),
        preprocessing={"size": SIZE},
        threshold=0.5,
    )
    parts = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    body = multipart(dict(sorted(parts.items(), reverse=True)))
    head = (
        f"POST {BUNDLES} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    before = children()
    with socket.socket(socket.AF_UNIX) as installer:
        installer.settimeout(SECONDS)
        installer.connect(str(served.site.socket))
        installer.sendall(head.encode() + body)
        eventually(served.parts.bundles._installing.locked, "it is not inspected any more")
        eventually(lambda: len(children() - before) == 1, "a process tries it")
        (trial,) = children() - before
        activated = served.site.operate("POST", f"{BUNDLES}/fashion/2/activate")
        assert activated.status == 200, activated.body
        assert activated.document["active"]
        removed = served.site.operate("DELETE", f"{BUNDLES}/fashion/1")
        assert removed.status == 204, removed.body
        assert trial.is_running()
    eventually(lambda: not trial.is_running(), "the trial ends")
    folders = served.bundle.folder.parent
    eventually(
        lambda: not [path for path in folders.iterdir() if path.name.endswith(".staged")], "its files go"
    )
    listed = served.site.operate("GET", BUNDLES).document["bundles"]
    assert sorted(one["name"] for one in listed) == ["colours", "fashion"]
