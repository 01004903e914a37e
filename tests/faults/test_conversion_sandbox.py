"""A conversion that hostile bytes have taken over gets nothing, and costs the installation of its export."""

import socket
from pathlib import Path

import msgspec
import psutil
import pytest

from appliance.errors import InvalidInput
from appliance.recognition.conversion import from_export
from tests.faults.hostile_conversion import MODEL
from tests.faults.hostile_decoder import DEADLY, STOLEN

HOSTILE = "tests.faults.hostile_conversion"
CRASHED = "the export crashed its conversion, or took 1 s of the processor, or more memory"


async def names(path: Path, target: str) -> list[str]:
    """Of the files that come out of a conversion with a second of the processor."""
    return [name async for name, _ in from_export(path, target=f"{HOSTILE}:{target}", cpu_seconds=1)]


async def refused(folder: Path, content: bytes, target: str = "main") -> InvalidInput:
    """What whoever installs a model of this content is told; the process is gone then."""
    path = folder / MODEL
    path.write_bytes(content)
    before = set(psutil.Process().children())
    with pytest.raises(InvalidInput) as refusal:
        await names(path, target)
    assert set(psutil.Process().children()) <= before
    assert str(refusal.value).startswith(f"{path}: ")
    return refusal.value


async def test_it_reaches_no_file_no_network_and_no_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        told = await refused(tmp_path, f"everything@{canary.getsockname()[1]}".encode())
        assert str(told).endswith("went through: []")
        with pytest.raises(BlockingIOError):
            canary.accept()
    assert not STOLEN.exists()


@pytest.mark.parametrize("act", sorted(DEADLY - {"hang", "sleep"}))
async def test_one_that_dies_is_a_refusal(tmp_path: Path, act: str) -> None:
    assert CRASHED in str(await refused(tmp_path, act.encode()))


async def test_one_that_computes_without_end_is_ended_by_its_own_limit(tmp_path: Path) -> None:
    told = await refused(tmp_path, b"hang")
    assert CRASHED in str(told)
    assert told.__cause__ is not None
    assert "SIGXCPU" in str(told.__cause__.__cause__), "not by the patience of who waits for it"


async def test_a_bundle_that_has_no_room_is_not_cut_off(tmp_path: Path) -> None:
    assert "model.onnx would be much larger" in str(await refused(tmp_path, b"swell"))


NO_NAME, NO_SIZE = "is not a file of a bundle", "with more bytes than there can be"
LIES: dict[str, tuple[list[tuple[str, int]], str]] = {
    "a path": ([("../../etc/passwd", 1)], NO_NAME),
    "a header": ([('model.onnx"\r\nX-More: "', 1)], NO_NAME),
    "too large a manifest": ([("bundle.toml", 1 << 20)], NO_SIZE),
    "more than the memory": ([(MODEL, 1 << 30)], NO_SIZE),
    "more than the memory, together": ([("selftest.png", 1 << 20)] * 20, NO_SIZE),
    "less than nothing": ([("labels.txt", 1000), (MODEL, -1)], NO_SIZE),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_it_says_is_not_believed(tmp_path: Path, lie: str) -> None:
    said, reason = LIES[lie]
    answer = msgspec.msgpack.encode(("model", said))
    assert reason in str(await refused(tmp_path, answer, "liar"))


@pytest.mark.parametrize("answer", [b"\xc1", b"nonsense", msgspec.msgpack.encode((1, 2))])
async def test_nonsense_is_a_crash(tmp_path: Path, answer: bytes) -> None:
    assert CRASHED in str(await refused(tmp_path, answer, "liar"))
