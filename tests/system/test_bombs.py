"""Small things that unfold into large ones: a real daemon answers each, in the memory of a few images."""

import base64
import gzip
import io
import json
import struct
import tarfile
import threading
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pytest
import tomli_w
import zstandard

from demo.state import DemoState
from tests import images
from tests.datasets import TAR, tar
from tests.fuzz.corpus import chunk, pages, scans, with_chunk
from tests.hosts import Host
from tests.running import Answer, CopyState, RunningAppliance
from tests.system.test_dataset_verbs import packed, unpacked, zipped
from tests.unit.recognition.test_decode import HEIC
from tests.waiting import eventually

MIB = 1 << 20
ABOVE_IDLE = 300 * MIB
SEARCH = "/similarity/photos/v2"


class Peak:
    """The most that a daemon and its children, those that come and go too, had resident while in the block:
    of each process what the kernel has seen at most, from the block's begin on (VmHWM; proc(5), clear_refs).
    """

    def __init__(self, appliance: RunningAppliance) -> None:
        self._appliance = appliance
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self.bytes = 0

    def __enter__(self) -> Self:
        for process in self._appliance.processes():
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._ended.wait(0.05):
            self._look()

    def _look(self) -> None:
        try:
            processes = self._appliance.processes()
        except psutil.NoSuchProcess:
            return
        self.bytes = max(self.bytes, sum(_high_water(process.pid) for process in processes))


def _high_water(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def appliance(copy_state: CopyState, host: Host) -> Iterator[RunningAppliance]:
    """A daemon of the module's own: what others made of its memory does not count."""
    state = copy_state()
    residency = tomllib.loads((state.folder / "residency.toml").read_text())
    residency["destinations"] = [host.declaration]
    (state.folder / "residency.toml").write_text(tomli_w.dumps(residency))
    with RunningAppliance(state, state.port) as running:
        agree(state)
        yield running


def agree(state: DemoState) -> None:
    (customer,) = (one["id"] for one in state.ask("customer", "list")["customers"])
    state.ask("agreement", "sign", customer, "training-data")


@pytest.fixture(scope="module")
def idle(appliance: RunningAppliance) -> int:
    """Resident bytes after some ordinary requests."""
    for seed in range(8):
        assert classified(appliance, images.jpeg(seed=seed)) == 200
    return appliance.resident_bytes()


def classified(appliance: RunningAppliance, image: bytes) -> int:
    """The code of an image's record."""
    record = {"_base64": base64.b64encode(image).decode()}
    answer = appliance.post("/recognition/v2/classify", {"task_id": appliance.task, "records": [record]})
    assert answer.status == 200, answer.body[:300]
    return int(answer.document["records"][0]["_status"]["code"])


# Images that say that they are huge, or are.


def swollen(kind: str, at: int, size: bytes) -> bytes:
    """A small image with another size in its header."""
    whole = bytearray(images.encoded(images.noise(48), kind))
    whole[at : at + len(size)] = size
    return bytes(whole)


def swollen_jpeg() -> bytes:
    whole = images.encoded(images.noise(48), "JPEG")
    start = whole.index(b"\xff\xc0") + 5
    return whole[:start] + struct.pack(">HH", 65_500, 65_500) + whole[start + 4 :]


def swollen_gif() -> bytes:
    whole = images.encoded(images.noise(48), "GIF")
    side, small = struct.pack("<HH", 65_535, 65_535), struct.pack("<HH", 48, 48)
    return whole.replace(small, side)


def swollen_tiff() -> bytes:
    tags = [(256, 100_000), (257, 100_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 100_000)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (279, 1000)])
    return b"II*\0" + struct.pack("<I", 1008) + bytes(1000) + struct.pack("<H", 9) + entries + bytes(4)


def swollen_heic() -> bytes:
    side = struct.pack(">I", 64)
    return HEIC.replace(b"ispe" + bytes(4) + side + side, b"ispe" + bytes(4) + b"\0\0\x7f\xff" * 2)


def packed_text() -> bytes:
    return with_chunk(
        images.encoded(images.noise(48), "PNG"), b"zTXt", b"x\0\0" + zlib.compress(bytes(64 * MIB))
    )


def packed_profile() -> bytes:
    return with_chunk(
        images.encoded(images.noise(48), "PNG"), b"iCCP", b"x\0\0" + zlib.compress(bytes(64 * MIB))
    )


def endless_png() -> bytes:
    """A small PNG whose pixels go on for 64 MiB."""
    head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(64 * MIB))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


PICTURES: dict[str, Callable[[], bytes]] = {
    "png of 484 megapixels": lambda: images.blank_png(22_000),
    "png that unpacks to more than its pixels": endless_png,
    "png with a packed text": packed_text,
    "png with a packed profile": packed_profile,
    "jpeg of 65,500 x 65,500": swollen_jpeg,
    "jpeg of a million scans": lambda: scans(
        images.encoded(images.noise(48), "JPEG", progressive=True), 1_000_000
    ),
    "gif of 65,535 x 65,535": swollen_gif,
    "webp of 16,383 x 16,383": lambda: swollen("WEBP", 26, struct.pack("<HH", 16_383, 16_383)),
    "bmp of 30,000 x 30,000": lambda: swollen("BMP", 18, struct.pack("<ii", 30_000, 30_000)),
    "tiff of 100,000 x 100,000": swollen_tiff,
    "tiff of 10,000 pages": lambda: pages(10_000),
    "heic of 32,767 x 32,767": swollen_heic,
}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_pictures(appliance: RunningAppliance, idle: int, picture: Callable[[], bytes]) -> None:
    encoded = picture()
    with Peak(appliance) as peak:
        assert classified(appliance, encoded) in {200, 400, 413, 422}
        stored = appliance.call(
            "POST",
            "/recognition/v2/training-image",
            encoded,
            headers=appliance.headers(content_type="image/png"),
        )
        assert stored.status in {201, 400, 413, 422}, stored.body[:300]
        assert classified(appliance, images.jpeg()) == 200
    assert peak.bytes - idle < ABOVE_IDLE, f"{(peak.bytes - idle) / MIB:.0f} MiB"


# Bodies in JSON, and packed ones.


def metadata(value: bytes) -> bytes:
    return b'{"records":[{"_id":"x","own":' + value + b"}]}"


BODIES: dict[str, Callable[[], bytes]] = {
    "lists within lists": lambda: b"[" * 4_000_000,
    "objects within objects": lambda: b'{"a":' * 1_000_000,
    "a record within itself": lambda: metadata(b'{"a":' * 500_000 + b"1" + b"}" * 500_000),
    "a million keys": lambda: metadata(b"{" + b",".join(b'"%d":0' % n for n in range(1_000_000)) + b"}"),
    "a million records": lambda: b'{"records":[' + b"{}," * 1_000_000 + b"{}]}",
    "an integer of a million digits": lambda: metadata(b"9" * 1_000_000),
    "an exponent of a million digits": lambda: metadata(b"1e" + b"9" * 1_000_000),
    "escapes": lambda: metadata(b'"' + rb"\u0001" * 1_000_000 + b'"'),
    "base64 of nothing": lambda: b'{"records":[{"_base64":"' + rb"\/" * 2_000_000 + b'"}]}',
    "gzip without a word": lambda: gzip.compress(bytes(64 * MIB), 1),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies(appliance: RunningAppliance, idle: int, body: Callable[[], bytes]) -> None:
    sent = body()
    with Peak(appliance) as peak:
        for path in (f"{SEARCH}/insert", f"{SEARCH}/update", f"{SEARCH}/visualKNN", "/v2/models/x/infer"):
            answer = appliance.call("POST", path, sent, headers=appliance.headers())
            assert answer.status in {400, 404, 413} or not_stored(answer), (path, answer.body[:300])
    assert peak.bytes - idle < ABOVE_IDLE, f"{(peak.bytes - idle) / MIB:.0f} MiB"


def not_stored(answer: Answer) -> bool:
    document = answer.document
    return answer.status == 200 and document["skipped_records"] and not document["answer_records"]


def test_a_packed_body(appliance: RunningAppliance, idle: int) -> None:
    packed = {
        "gzip": gzip.compress(bytes(64 * MIB), 1),
        "zstd": zstandard.compress(bytes(64 * MIB)),
        "deflate": zlib.compress(bytes(64 * MIB), 1),
    }
    with Peak(appliance) as peak:
        for encoding, sent in packed.items():
            headers = appliance.headers(content_encoding=encoding)
            assert appliance.call("POST", f"{SEARCH}/insert", sent, headers=headers).status == 415
    assert peak.bytes - idle < ABOVE_IDLE, f"{(peak.bytes - idle) / MIB:.0f} MiB"


# Arrays and archives.


def header_of_array(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return np.lib.format.magic(1, 0) + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "array",
    [
        header_of_array("(1000000000000000, 1280)"),
        header_of_array("(9" + "9" * 80 + ", 1280)"),
        header_of_array("(1, " * 20 + "1" + ")" * 20),
        np.lib.format.magic(2, 0) + struct.pack("<I", 0xFFFFFFFF) + b" " * 100_000,
        np.lib.format.magic(1, 0) + struct.pack("<H", 9_999) + b"(" * 9_999,
    ],
    ids=["rows", "digits", "nested", "a long header", "brackets"],
)
def test_arrays(appliance: RunningAppliance, idle: int, array: bytes) -> None:
    collection = appliance.add_collection()
    of_it = f"/appliance/v1/collections/{collection}"
    backbone = appliance.call("GET", of_it, headers=appliance.headers()).document["backbone"]
    with Peak(appliance) as peak:
        headers = appliance.headers(content_type="application/x-npy")
        answer = appliance.call(
            "POST", f"{of_it}/import?backbone={backbone}", array + bytes(MIB), headers=headers
        )
        assert answer.status == 400, answer.body[:300]
        assert "array" in answer.document["detail"]
    assert peak.bytes - idle < ABOVE_IDLE, f"{(peak.bytes - idle) / MIB:.0f} MiB"


def coco(count: int) -> bytes:
    """So many annotations, of a thousand images."""
    annotations = b",".join(
        b'{"id":%d,"image_id":%d,"category_id":1,"bbox":[1,2,3,4]}' % (number, number % 1000)
        for number in range(count)
    )
    named = b",".join(b'{"id":%d,"file_name":"%d.png"}' % (number, number) for number in range(1000))
    categories = b'[{"id":1,"name":"thing"}]'
    return (
        b'{"images":[' + named + b'],"annotations":[' + annotations + b'],"categories":' + categories + b"}"
    )


def extended(size: int) -> bytes:
    """A header that announces so much of an extended header."""
    member = tarfile.TarInfo("long")
    member.type, member.size = tarfile.XHDTYPE, size
    return member.tobuf(tarfile.GNU_FORMAT) + b" " * MIB


def announced(size: int) -> bytes:
    member = tarfile.TarInfo("0.png")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(MIB)


def sparse() -> bytes:
    member = tarfile.TarInfo("0.png")
    member.type = tarfile.GNUTYPE_SPARSE
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(MIB)


def zip_file() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", bytes(64 * MIB))
    return written.getvalue()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "zip": zip_file,
    "gzip": lambda: gzip.compress(tar({"0.png": bytes(64 * MIB)}), 1),
    "zstd": lambda: zstandard.compress(tar({"0.png": bytes(64 * MIB)})),
    "an endless extended header": lambda: extended(1 << 40),
    "a file of an exabyte": lambda: announced(1 << 60),
    "a sparse file": sparse,
    "folders in folders": lambda: tar({"/".join("a" * 500) + "/0.png": b"x"}),
    "forty thousand folders": lambda: tar((f"{n}/x/y/z/0.txt", b"") for n in range(10_000)),
    "an annotation without end": lambda: tar(
        {"instances.json": b'{"annotations":[{"x":"' + b"x" * 50_000_000}
    ),
    "annotations within annotations": lambda: tar({"instances.json": b'{"images":' + b"[" * 5_000_000}),
}


FORMS = {"source.tar": packed, "source.zip": zipped, "source": unpacked}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.full)])
def test_annotations_are_read_as_they_come(
    appliance: RunningAppliance, tmp_path: Path, form: str, count: int
) -> None:
    """A process that reads them, and of each what is kept of it: some hundred bytes with its copy."""
    state = appliance.state
    customer = state.ask("customer", "add", f"{form} of {count}")["id"]
    state.ask("agreement", "sign", customer, "training-data")
    there = {f"{number}.png": images.encoded(images.noise(32, seed=number), "PNG") for number in range(10)}
    source = FORMS[form](tmp_path / form, {"instances.json": coco(count), **there})
    before = appliance.resident_bytes()
    with Peak(appliance) as peak:
        report = state.ask("dataset", "import", customer, str(source))
    assert (report["images"], report["objects"]) == (10, count // 100)
    assert report["left_out"] == {
        "images that are not there": 990,
        "annotations of images that are not there": count - count // 100,
    }
    most = 130 * MIB + 150 * count
    assert most <= ABOVE_IDLE
    assert peak.bytes - before < most, f"{(peak.bytes - before) / MIB:.0f} MiB"


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES)
def test_archives(appliance: RunningAppliance, idle: int, archive: Callable[[], bytes]) -> None:
    sent = archive()
    with Peak(appliance) as peak:
        answer = imported(appliance, sent)
        assert answer.status in {200, 400, 413}, answer.body[:300]
    assert peak.bytes - idle < ABOVE_IDLE, f"{(peak.bytes - idle) / MIB:.0f} MiB"


def imported(appliance: RunningAppliance, sent: bytes) -> Answer:
    """The answer to an archive for a new dataset."""
    made = appliance.post("/appliance/v1/datasets", {"name": f"{zlib.crc32(sent)}"})
    path = f"/appliance/v1/datasets/{made.document['id']}/import"
    headers = appliance.headers(content_type=TAR)
    return appliance.call("POST", path, sent, headers=headers, seconds=100)


# Feeds.


def laughs() -> bytes:
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return f'<?xml version="1.0"?><!DOCTYPE r [<!ENTITY l0 "ha">{entities}]><r>&l9;</r>'.encode()


def item(number: int) -> bytes:
    return b'{"id":"%d","image_link":"http://x/%d","words":"%s"}' % (number, number, b"x" * 900)


FEEDS: dict[str, Callable[[], bytes]] = {
    "entities": laughs,
    "entities of others": lambda: b'<!DOCTYPE r SYSTEM "file:///etc/passwd"><r/>',
    "elements within elements": lambda: b"<a>" * 1_000_000,
    "attributes": lambda: b"<r><item " + b"".join(b'a%d="" ' % n for n in range(300_000)) + b"/></r>",
    "lists within lists": lambda: b"[" * 5_000_000,
    "an item without end": lambda: b'[{"id":"' + b"x" * 50_000_000,
    "an item of brackets": lambda: b'[{"id":' + b"[" * 900_000,
    "packed blanks": lambda: gzip.compress(b"[" + b" " * (64 * MIB), 1),
    "packed text": lambda: gzip.compress(b'[{"id":"' + b"x" * (64 * MIB), 1),
    "columns": lambda: b",".join(b"c%d" % n for n in range(300_000)) + b"\n",
    "five thousand items": lambda: gzip.compress(b"\n".join(item(n) for n in range(5000)), 1),
}


def ran(appliance: RunningAppliance, collection: str) -> Any:
    """The report of the feed's run, when it is over."""
    path, found = f"/appliance/v1/collections/{collection}/source", list[Any]()
    started = appliance.call("POST", f"{path}/run", headers=appliance.headers())
    assert started.status == 202, started.body

    def over() -> bool:
        listed = appliance.call("GET", f"{path}/runs", headers=appliance.headers())
        found.append(listed.document["runs"][0])
        return found[-1]["state"] not in {"waiting", "running"}

    eventually(over, "the run ends")
    return found[-1]


@pytest.mark.parametrize("feed", FEEDS.values(), ids=FEEDS)
def test_feeds(appliance: RunningAppliance, idle: int, host: Host, feed: Callable[[], bytes]) -> None:
    host.pictures["/feed"] = feed()
    collection = appliance.add_collection()
    path = f"/appliance/v1/collections/{collection}/source"
    given = json.dumps({"url": f"{host.address}/feed"}).encode()
    assert appliance.call("PUT", path, given, headers=appliance.headers()).status == 200
    with Peak(appliance) as peak:
        run = ran(appliance, collection)
        assert (run["state"], run["report"]["added"]) in {("failed", 0), ("done", 0)}, run["report"]
        assert run["report"]["reason"] or run["report"]["failed"]
    assert peak.bytes - idle < ABOVE_IDLE, f"{(peak.bytes - idle) / MIB:.0f} MiB"
