"""Images sent for recognition or search are never stored: nothing of them is found in any file afterwards."""

import base64
import json
import os
import secrets
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from demo.state import DemoState
from tests import images
from tests.hosts import Host
from tests.running import RunningAppliance
from tests.tracing import Traced, opened_for_writing
from tests.waiting import eventually

PHOTOS = "/similarity/photos/v2"
# Written by the kernel or thrown away by it; a read would give nothing back.
DEVICES = ("/dev/null", "/dev/tty", "/proc/", "/sys/", "/dev/nvidia", "/dev/pts/", "pipe:", "socket:")


@pytest.mark.timeout(300)  # every route, each in several forms
def test_nothing_of_an_image_is_found_in_any_file(traced: Traced, host: Host) -> None:
    appliance = traced.appliance
    began = appliance.state.log.stat().st_mtime
    needles = Needles()
    send_every_way(appliance, needles)
    send_links(appliance, needles, host)
    send_feed(appliance, needles, host)
    send_to_be_seen_later(appliance, needles, host)
    log = appliance.state.log.read_bytes()
    assert b"classify" in log, "the log does not show the requests: nothing was proved by searching it"

    places = set(files_below(appliance.state.folder)) | traced_files(traced)
    places |= set(files_below(Path("/tmp"), since=began)) | set(files_below(Path("/dev/shm"), since=began))
    places |= open_files(appliance)
    assert Path(appliance.state.log) in places
    assert [hit for place in sorted(places) if (hit := needles.found_in(place))] == []
    outside = [
        path
        for path in traced.opened_for_writing()
        if not path.startswith((str(appliance.state.folder), *DEVICES)) and "memfd:" not in path
    ]
    assert outside == [], "files were written outside the state folder"
    assert list(traced.home.iterdir()) == []

    prove_the_search(appliance.state, needles)


class Needles:
    """What is searched for: pieces of every image sent, as they are and in each alignment of base64."""

    def __init__(self) -> None:
        self.pieces: set[bytes] = set()

    def add(self, data: bytes, *exact: bytes) -> None:
        """Remember `exact` and five 32-byte pieces of `data` that are not all alike."""
        spread = range(0, len(data) - 32, max(1, (len(data) - 32) // 5))
        pieces = [*exact, *(data[start : start + 32] for start in spread)]
        for piece in pieces:
            if len(set(piece)) < 12:
                continue  # padding would be found anywhere
            self.pieces.add(piece)
            for shift in range(3):
                whole = base64.b64encode(bytes(shift) + piece)
                self.pieces.add(whole[4 if shift else 0 : -4])

    def found_in(self, place: Path) -> str | None:
        """The place, when it holds a piece; files are read in slices that overlap."""
        try:
            with place.open("rb") as file:
                tail = b""
                while piece := file.read(1 << 24):
                    text = tail + piece
                    if any(needle in text for needle in self.pieces):
                        return str(place)
                    tail = text[-64:]
        except OSError:  # gone meanwhile, or a device of another process
            return None
        return None


def send_every_way(appliance: RunningAppliance, needles: Needles) -> None:
    for path in (
        "/recognition/v2/classify",
        f"{PHOTOS}/insert",
        f"{PHOTOS}/visualKNN",
        "/photo/tags/v2/tags",
        "/dom_colors/product/v2/dominantcolor",
    ):
        send_raw(appliance, needles, path)
        send_base64(appliance, needles, path)
        send_multipart(appliance, needles, path)
        send_broken(appliance, needles, path)
        send_half(appliance, needles, path)
    send_tensors(appliance, needles)
    send_base64(appliance, needles, "/photo/v2/descriptor")
    send_base64(appliance, needles, "/dom_colors/generic/v2/dominantcolor")
    send_base64(appliance, needles, f"{PHOTOS}/nearDuplicates")
    send_base64(appliance, needles, f"{PHOTOS}/upsert", idempotency_key=secrets.token_hex(8))
    send_base64(appliance, needles, "/image_matching/v2/visual_hash")
    send_base64(appliance, needles, "/image_matching/v2/remove_duplicates")
    assert appliance.call("GET", "/readyz", headers={}).status == 200


def marked_png(needles: Needles, side: int = 224) -> bytes:
    """A PNG of random pixels, small enough not to be scaled, with a random marker in a text chunk."""
    marker = secrets.token_bytes(24).hex()
    pixels = np.frombuffer(secrets.token_bytes(side * side * 3), np.uint8).reshape(side, side, 3)
    note = PngInfo()
    note.add_text("Comment", marker)
    encoded = images.encoded(Image.fromarray(pixels), "PNG", pnginfo=note)
    needles.add(encoded, marker.encode())
    needles.add(pixels.tobytes())
    return encoded


def query(path: str, appliance: RunningAppliance) -> str:
    return f"{path}?task_id={appliance.task}" if path.endswith("classify") else path


def one_record(path: str, appliance: RunningAppliance, record: dict[str, str]) -> dict[str, object]:
    if path.endswith(("visualKNN", "nearDuplicates")):
        return {"query_record": record}
    return {"task_id": appliance.task, "records": [record]}


def send_raw(appliance: RunningAppliance, needles: Needles, path: str) -> None:
    encoded = marked_png(needles)
    headers = appliance.headers(content_type="image/png", x_record=json.dumps({"_id": secrets.token_hex(8)}))
    answer = appliance.call("POST", query(path, appliance), encoded, headers=headers)
    assert answer.status == 200, (path, answer.body[:300])


def send_base64(appliance: RunningAppliance, needles: Needles, path: str, **headers: str) -> None:
    record = {"_id": secrets.token_hex(8), "_base64": base64.b64encode(marked_png(needles)).decode()}
    record["_file"] = marker = f"/home/person/{secrets.token_hex(16)}.png"
    needles.add(b"", marker.encode())
    answer = appliance.post(path, one_record(path, appliance, record), **headers)
    assert answer.status == 200, (path, answer.body[:300])


def send_multipart(appliance: RunningAppliance, needles: Needles, path: str) -> None:
    """20 MB: far above the size at which HTTP libraries spool uploads into files."""
    pixels = np.frombuffer(secrets.token_bytes(2600 * 2600 * 3), np.uint8).reshape(2600, 2600, 3)
    encoded = images.encoded(Image.fromarray(pixels), "BMP")
    needles.add(encoded)
    boundary = secrets.token_hex(16)
    request = json.dumps(one_record(path, appliance, {"_id": secrets.token_hex(8)}))
    body = (
        f"--{boundary}\r\nContent-Disposition: form-data; name=request\r\n\r\n{request}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image-0"; filename="x.bmp"\r\n'
        f"Content-Type: image/bmp\r\n\r\n"
    ).encode()
    body += encoded + f"\r\n--{boundary}--\r\n".encode()
    headers = appliance.headers(content_type=f"multipart/form-data; boundary={boundary}")
    answer = appliance.call("POST", path, body, headers=headers, seconds=60)
    assert answer.status == 200, (path, answer.body[:300])


def send_broken(appliance: RunningAppliance, needles: Needles, path: str) -> None:
    """An image that fails to decode: its first half, then other random bytes."""
    encoded = marked_png(needles)
    broken = encoded[: len(encoded) // 2] + secrets.token_bytes(50_000)
    needles.add(broken)
    record = {"_id": secrets.token_hex(8), "_base64": base64.b64encode(broken).decode()}
    answer = appliance.post(path, one_record(path, appliance, record))
    assert answer.status < 500, (path, answer.body[:300])
    assert b"400" in answer.body


def send_tensors(appliance: RunningAppliance, needles: Needles) -> None:
    """Encoded, then as the pixels themselves, which random bytes are."""
    models = appliance.post("/v2/repository/index", {}).document
    path = f"/v2/models/{models[0]['name']}"
    about = appliance.call("GET", path, headers=appliance.headers()).document
    shape = about["inputs"][0]["shape"][1:]
    pixels = secrets.token_bytes(shape[0] * shape[1] * 3)
    needles.add(pixels)
    encoded = marked_png(needles)
    for name, datatype, shape_, data in (
        ("encoded", "BYTES", [1], len(encoded).to_bytes(4, "little") + encoded),
        ("image", "UINT8", [1, *shape], pixels),
    ):
        size = {"binary_data_size": len(data)}
        text = json.dumps(
            {"inputs": [{"name": name, "datatype": datatype, "shape": shape_, "parameters": size}]}
        ).encode()
        headers = appliance.headers(inference_header_content_length=str(len(text)))
        answer = appliance.call("POST", f"{path}/infer", text + data, headers=headers)
        assert answer.status == 200, answer.body[:300]


def send_half(appliance: RunningAppliance, needles: Needles, path: str) -> None:
    """An upload that is cut off in the middle, raw and as multipart."""
    encoded = marked_png(needles, side=1000)
    for kind in ("image/png", "multipart/form-data; boundary=b"):
        start = (
            b"" if kind == "image/png" else b'--b\r\nContent-Disposition: form-data; name="image-0"\r\n\r\n'
        )
        head = (
            f"POST {query(path, appliance)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(encoded) + 500}\r\n"
        )
        head += "".join(
            f"{name}: {value}\r\n" for name, value in appliance.headers(content_type=kind).items()
        )
        with socket.create_connection(("127.0.0.1", appliance.port), timeout=20) as connection:
            connection.sendall(head.encode() + b"\r\n" + start + encoded[: len(encoded) // 2])


def send_links(appliance: RunningAppliance, needles: Needles, host: Host) -> None:
    for path in ("/recognition/v2/classify", f"{PHOTOS}/insert", f"{PHOTOS}/visualKNN"):
        name = f"/{secrets.token_hex(8)}.png"
        host.pictures[name] = marked_png(needles)
        record = {"_url": host.address + name}
        if path.endswith("insert"):
            record["_id"] = secrets.token_hex(8)
        answer = appliance.post(path, one_record(path, appliance, record))
        assert answer.status == 200, (path, answer.body[:300])


def send_feed(appliance: RunningAppliance, needles: Needles, host: Host) -> None:
    """A collection follows a feed, whose images nobody sends: they are fetched."""
    items = []
    for number in range(2):
        name = f"/{secrets.token_hex(8)}.png"
        host.pictures[name] = marked_png(needles) if number else b"no image"
        items.append(json.dumps({"id": str(number), "image": host.address + name}))
    host.pictures["/feed"] = "\n".join(items).encode()
    source = f"/appliance/v1/collections/{appliance.add_collection()}/source"
    body = json.dumps({"url": f"{host.address}/feed"}).encode()
    headers = appliance.headers(content_type="application/json")
    assert appliance.call("PUT", source, body, headers=headers).status == 200
    assert appliance.call("POST", f"{source}/run", headers=headers).status == 202

    def newest() -> dict[str, Any]:
        run: dict[str, Any] = appliance.call("GET", f"{source}/runs", headers=headers).document["runs"][0]
        return run

    eventually(lambda: newest()["ended_at"] is not None, "the run of the feed")
    assert (newest()["report"]["added"], newest()["report"]["failed"]) == (1, 1)


def send_to_be_seen_later(appliance: RunningAppliance, needles: Needles, host: Host) -> None:
    """Answered after their calls have ended: the images wait in memory, the answers go to a webhook."""
    path = "/account/v2/request"
    for number in range(6):
        asked = one_record(path, appliance, {"_base64": base64.b64encode(marked_png(needles)).decode()})
        asked |= {"type": "custom-recognition", "webhook": {"endpoint": f"{host.address}/{number}"}}
        headers = appliance.headers(idempotency_key=str(number), content_type="application/json")
        answer = appliance.call("POST", path, json.dumps(asked).encode(), headers=headers)
        assert answer.status == 201, answer.body[:300]
    for _ in range(6):
        told = host.told.get(timeout=60)
        assert json.loads(told.body)["status"] == "DONE"
        assert not any(piece in told.body for piece in needles.pieces)


def files_below(folder: Path, since: float = 0) -> Iterator[Path]:
    """Regular files, those changed after `since` only."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= since:
                    yield path
            except OSError:
                continue


def traced_files(traced: Traced) -> set[Path]:
    return {Path(path) for path in traced.opened_for_writing() if not path.startswith(DEVICES)}


def open_files(appliance: RunningAppliance) -> set[Path]:
    """What the processes hold open and can be read as a file, deleted ones included; memory files aside,
    which are checked to be wiped by the tests of their owner."""
    found = set()
    for process in appliance.processes():
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("/") and not target.startswith((*DEVICES, "/memfd:")):
                found.add(link)
    return found


def prove_the_search(state: DemoState, needles: Needles) -> None:
    """The same search finds a piece that is planted, as it is, in base64, and across two slices."""
    planted = state.folder / "planted"
    samples: Iterable[bytes] = [min(needles.pieces, key=len), max(needles.pieces, key=len)]
    for needle in samples:
        for before in (0, 1000, (1 << 24) - 10):
            planted.write_bytes(bytes(before) + needle + b"rest")
            assert planted in set(files_below(state.folder))
            assert needles.found_in(planted) == str(planted)
    secret = secrets.token_bytes(3000)
    needles.add(secret)
    for shift in range(3):
        planted.write_bytes(base64.b64encode(bytes(shift) + secret))
        assert needles.found_in(planted) == str(planted)
    planted.unlink()


def test_the_trace_is_read_as_strace_writes_it() -> None:
    calls = [
        '7 openat(AT_FDCWD</srv>, "a", O_WRONLY|O_CREAT, 0600) = 3</srv/a>',
        '7 openat(5</tmp>, "b", O_RDWR|O_CLOEXEC <unfinished ...>',
        '7 openat(AT_FDCWD</srv>, "/tmp", O_RDWR|O_TMPFILE, 0600) = 4</tmp/#12 (deleted)>',
        '7 creat("/c", 0600) = 5</c>',
        '7 openat(AT_FDCWD</srv>, "/etc/passwd", O_RDONLY) = 6</etc/passwd>',
        '7 openat(AT_FDCWD</srv>, "/dev/tty", O_RDWR) = -1 ENXIO (No such device or address)',
    ]
    assert opened_for_writing(calls) == {"/srv/a", "/tmp/b", "/tmp", "/c"}


@pytest.mark.parametrize("name", ["post", "read", "text"])
def test_handlers_leave_bodies_to_their_one_reader(name: str) -> None:
    """aiohttp's Request.post() spools uploads over 1 MiB into a file; api.body reads the stream instead."""
    for path in Path("appliance").rglob("*.py"):
        assert f"request.{name}(" not in path.read_text(), path
