"""What a customer stores rests sealed: a thousand uploads with all that is written about them, and then every
byte of every file that there is.
"""

import base64
import contextlib
import hashlib
import io
import json
import secrets
import shutil
import struct
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw
import pytest
from cryptography.exceptions import InvalidTag
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from appliance.errors import NotFound, SealBroken
from appliance.vault import Keyring
from tests import images, sealed_reader
from tests.ledgers import log_is_empty
from tests.plaintext import Plaintext, is_random
from tests.running import RunningAppliance
from tests.sealed_rows import blobs, blobs_of, collection_blobs, collection_contents, of_images
from tests.tracing import Traced
from tests.waiting import eventually

COUNT = 1000
AT_ONCE = 4
LETTERS = "ěščřžýáíéúůďťň"
LONG = 5 * 256  # in less every histogram is uneven
BOUNDARY = "7MA4YWxkTrZu0gW"
IMAGES, WORKSPACES = "/recognition/v2/training-image", "/appliance/v1/datasets"
PHOTOS, COLLECTIONS = "/similarity/photos/v2", "/appliance/v1/collections"
ALIASES = "/appliance/v1/aliases"
SEARCHED = 60  # images that become records of a collection, ten in one call
# What else lies beside the sealed files, and how large it may be: ids, counters, zeros.
OWN_FILES = {".volume": 33, ".probe": 16, "witness": 89}
LEDGER = ("ledger.db", "ledger.db-wal", "ledger.db-shm")
VIRTUAL = ("/dev/", "/proc/", "/sys/", "/memfd:")


@dataclass
class Stored:
    """A daemon with all that was given to it, and what must be in no file of it."""

    traced: Traced
    before: set[Path]  # files from before the first upload
    plaintext: Plaintext = field(default_factory=Plaintext)
    words: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)  # by the id of the image
    full: str = ""  # the dataset that keeps cameras' metadata
    doomed: str = ""  # the one that is erased
    label: str = ""  # what is wiped
    records: list[str] = field(default_factory=list)  # of the collection, by the caller's id
    collection: str = ""  # what is removed

    @property
    def appliance(self) -> RunningAppliance:
        return self.traced.appliance

    @property
    def folder(self) -> Path:
        return self.appliance.state.folder

    def word(self) -> str:
        """A new word that is nobody else's: letters that each need two bytes, and ASCII."""
        foreign, plain = "".join(secrets.choice(LETTERS) for _ in range(16)), secrets.token_hex(12)
        self.plaintext.add_word(foreign)
        self.plaintext.add_word(plain)
        self.words.append(f"{foreign} {plain}")
        return self.words[-1]

    def post(self, path: str, **document: object) -> str:
        """The id of what was made."""
        answer = self.appliance.post(path, document)
        assert answer.status in {200, 201}, (path, answer.body[:300])
        return str(answer.document["id"])

    def delete(self, path: str) -> None:
        answer = self.appliance.call("DELETE", path)
        assert answer.status == 204, (path, answer.body[:300])


@pytest.mark.timeout(300)
def test_nothing_of_a_customer_rests_in_plain(traced: Traced, tmp_path: Path) -> None:
    appliance = traced.appliance
    (customer,) = appliance.state.ask("customer", "list")["customers"]
    appliance.state.ask("agreement", "sign", customer["id"], "training-data")
    stored = Stored(traced, set(files_below(appliance.state.folder)))
    write_all(stored)
    insert_records(stored)
    while_it_serves(stored)
    after_deletions(stored)
    after_deleted_records(stored)
    assert appliance.stop() == 0
    with opened(stored) as keyring:
        assert findings(stored.folder, stored, keyring) == []
        prove_the_findings(tmp_path / "state", stored, keyring)


def while_it_serves(stored: Stored) -> None:
    assert len(stored.uploads) == COUNT
    eventually(lambda: log_is_searched(stored), "the log is searched before it is cut")
    assert b"training-image" in stored.appliance.state.log.read_bytes(), "the daemon's log tells nothing"
    assert stored.appliance.state.log in everything(stored)
    outside = [path for path in stored.traced.opened_for_writing() if not path.startswith(str(stored.folder))]
    assert [path for path in outside if not path.startswith(VIRTUAL) and "memfd:" not in path] == []
    assert plain_in(everything(stored), stored.plaintext) == []
    eventually(lambda: graphs_at_rest(stored.folder), "the graph of the collection is on the disk")
    with opened(stored) as keyring:
        assert findings(stored.folder, stored, keyring) == []


def log_is_searched(stored: Stored) -> bool:
    """Whether the ledger's log held something, none of it plain; a moment after an erasure it is cut."""
    stored.post("/recognition/v2/label", name=stored.word())
    log = (stored.folder / "ledger.db-wal").read_bytes()
    assert stored.plaintext.places(log) == []
    return len(log) > 0


def after_deletions(stored: Stored) -> None:
    """Of half of the images ids are left, and no more: sealed words and keyed hashes are overwritten.

    All but fragments: where SQLite builds a page anew it leaves what lay between the cells as it was.
    """
    half = COUNT // 2
    kept, deleted = list(stored.uploads)[:half], list(stored.uploads)[half:]
    going, rows = of_images(stored.folder, but=kept), Plaintext()
    staying = len(of_images(stored.folder)) - len(going)
    for written in going:
        rows.add(written)
    assert plain_in(everything(stored), rows) != [], "what is to be deleted was not found while it was there"
    for image in deleted[: COUNT // 20]:
        stored.delete(f"{IMAGES}/{image}")
    stored.delete(f"/recognition/v2/label/{stored.label}/wipe")
    stored.delete(f"{WORKSPACES}/{stored.doomed}")
    sealed = stored.folder / "images"
    eventually(lambda: not (sealed / UUID(stored.doomed).hex).exists(), "the erased dataset has no files")
    eventually(lambda: len(of_images(stored.folder)) == staying, "its rows are gone")
    eventually(lambda: log_is_empty(stored.folder), "the log is emptied")
    assert sorted(path.name for path in sealed.glob("*/*")) == sorted(UUID(image).hex for image in kept)
    ledger = stored.folder / "ledger.db"
    assert len(rows.places(ledger.read_bytes())) < len(rows) / 200
    assert plain_in([path for path in everything(stored) if path != ledger], rows) == []
    assert plain_in(everything(stored), stored.plaintext) == []


def prove_the_findings(state: Path, stored: Stored, keyring: Keyring) -> None:
    """Each of these passes one of the checks, and is found by another one."""
    shutil.copytree(stored.folder, state, ignore=shutil.ignore_patterns("*.sock", ".ballast", "bundles"))
    for superfluous in sorted((state / "images").glob("*/*"))[3:]:
        superfluous.unlink()
    image, upload = next(iter(stored.uploads.items()))
    sample = next((state / "images").glob("*/*"))
    genuine, thumbnail = sample.read_bytes(), unsealed(sample, keyring)[-400:]
    word = next(iter(stored.words))
    planted = sample.with_name(UUID(int=7).hex)

    def found(name: str) -> bool:
        return any(name in one for one in findings(state, stored, keyring))

    assert findings(state, stored, keyring) == []
    for content in (
        upload,
        b"abc" + thumbnail,
        b"abc" + upload[1000:1023],
        base64.b64encode(b"a" + upload),
        upload.hex().encode(),
        word.encode(),
        word[2:].upper().encode("utf-16-le"),
        json.dumps(word).encode(),
        base64.b64encode(f'{{"shelf": "{word}"}}'.encode()),
        zipped(upload),
        bytes(5000),
        genuine,
        genuine[:64] + secrets.token_bytes(len(genuine) - 64),
        genuine + b"more",
    ):
        planted.write_bytes(content)
        assert found(planted.name), content[:40]
    planted.unlink()
    for place in (state / "left over", state / "images" / "left over", state / "images" / ".probe"):
        place.write_bytes(zipped(upload) * 2)
        assert found(place.name)
        place.unlink()
    ledger = state / "ledger.db"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:-2000] + upload[:800] + whole[-1200:])
    assert plain_in([ledger], stored.plaintext) != []
    ledger.write_bytes(whole)
    with closing(apsw.Connection(str(ledger))) as connection:
        connection.execute("UPDATE images SET meta_data = ? WHERE id = ?", (zipped(upload), image))
    assert found(image)


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_an_image_does_not_pass_for_random_bytes(kind: str) -> None:
    """A PNG of noise does: it is found because it does not open as a sealed file."""
    assert not is_random(images.encoded(images.noise(64), kind))
    assert is_random(secrets.token_bytes(4000))


def write_all(stored: Stored) -> None:
    """Words everywhere; the second half of the uploads goes later, with a label or with its dataset."""
    name = stored.word
    stored.full = stored.post(WORKSPACES, name=name(), keep_metadata=True)
    stored.doomed = stored.post(WORKSPACES, name=name())
    stored.label = stored.post("/recognition/v2/label", name=name(), description=name())
    kept = stored.post("/recognition/v2/label", name=name(), output_name=name())
    task = stored.post("/recognition/v2/task", name=name(), description=name())
    stored.post(f"/recognition/v2/task/{task}/add-label", label_id=kept)
    boxes = stored.post("/detection/v2/label", name=name(), description=name(), color="#102030")
    stored.post("/detection/v2/task", name=name(), description=name())
    pictures = [picture(stored, number) for number in range(COUNT)]
    for content in pictures:
        stored.plaintext.add(content)
        for known in ("md5", "sha1", "sha256", "blake2b"):
            stored.plaintext.add(hashlib.new(known, content).digest())

    def write(number: int) -> str:
        image, of_default = upload(stored, number, pictures[number]), workspace(stored, number) is None
        if of_default:
            label = kept if number < COUNT // 2 else stored.label
            stored.post(f"{IMAGES}/{image}/add-label", label_id=label)
        if of_default and number % 10 == 2:
            annotate(stored, image, boxes)
        return image

    with ThreadPoolExecutor(AT_ONCE) as pool:
        stored.uploads = dict(zip(pool.map(write, range(COUNT)), pictures, strict=True))
    with opened(stored) as keyring:
        for path in (stored.folder / "images").glob("*/*"):
            stored.plaintext.add(unsealed(path, keyring))  # as it is served, and its thumbnail


def insert_records(stored: Stored) -> None:
    """Records with words in their ids and metadata, some of them written twice, in a collection named so.

    The images are none that are stored: of them vectors are left.
    """
    for first in range(0, SEARCHED, 10):
        pictures = [images.encoded(images.noise(40, seed=2000 + first + n), "JPEG") for n in range(10)]
        ids = [stored.word() for _ in pictures]
        records = [
            {"_id": one, "_base64": base64.b64encode(picture).decode(), "note": stored.word()}
            for one, picture in zip(ids, pictures, strict=True)
        ]
        answer = stored.appliance.post(f"{PHOTOS}/insert", {"records": records})
        assert answer.document["status"]["code"] == 210, answer.body[:300]
        for picture in pictures:
            stored.plaintext.add(picture)
        stored.records += ids
    changed = [{"_id": one, "note": stored.word()} for one in stored.records[:20]]
    answer = stored.appliance.post(f"{PHOTOS}/update", {"records": changed})
    assert answer.document["status"]["code"] == 200, answer.body[:300]
    stored.collection = stored.post(COLLECTIONS, name=stored.word())
    alias = f"{ALIASES}/{stored.word().split()[1]}"
    pointed = json.dumps({"collection": stored.collection}).encode()
    assert stored.appliance.call("PUT", alias, pointed).status == 200
    replace_and_empty(stored)
    with opened(stored) as keyring:
        contents = list(collection_contents(stored.folder, keyring))
        vectors = [content for noun, content in contents if noun == "frame"]
        assert sum(map(len, vectors)) > SEARCHED * 4 * 256
        for content in vectors:
            stored.plaintext.add(content)


def replace_and_empty(stored: Stored) -> None:
    """Records replaced, answers that are remembered, and a collection that is renamed and emptied.

    Its id and name go on under another key, and nothing is left of what was in it.
    """

    def written(ids: list[str], **headers: str) -> None:
        pictures = [images.encoded(images.noise(40, seed=secrets.randbelow(1 << 30)), "JPEG") for _ in ids]
        records = [
            {"_id": one, "_base64": base64.b64encode(picture).decode(), "note": stored.word()}
            for one, picture in zip(ids, pictures, strict=True)
        ]
        answer = stored.appliance.post(f"{PHOTOS}/upsert", {"records": records}, **headers)
        assert answer.status == 200, answer.body[:300]
        for picture in pictures:
            stored.plaintext.add(picture)

    written(stored.records[5:15], idempotency_key="once")
    change = {"records": [{"_id": stored.records[20], "note": stored.word()}], "fields_to_return": ["note"]}
    for _ in range(2):
        answer = stored.appliance.post(f"{PHOTOS}/update", change, idempotency_key="twice")
        assert answer.document["status"]["code"] == 200, answer.body[:300]
    emptied = stored.post(COLLECTIONS, name=stored.word())
    written([stored.word() for _ in range(10)], collection_id=emptied, idempotency_key="emptied")
    body = json.dumps({"name": stored.word()}).encode()
    assert stored.appliance.call("PATCH", f"{COLLECTIONS}/{emptied}", body).status == 200
    before = blobs_of(stored.folder, emptied)
    assert {noun for noun, _ in before} == {"name", "record", "frame", "reply"}
    assert stored.appliance.call("POST", f"{COLLECTIONS}/{emptied}/empty", b"{}").status == 200
    assert [noun for noun, _ in blobs_of(stored.folder, emptied)] == ["name"]
    with opened(stored) as keyring:  # its first key was known by its own id
        assert UUID(emptied) not in {container for _, container, _ in keyring.containers()}


def after_deleted_records(stored: Stored) -> None:
    """Nothing sealed is left of them either, but for the fragments that `after_deletions` tells of."""
    going = stored.records[::2]
    handles, gone = Plaintext(), json.dumps(list(range(0, SEARCHED, 2)))
    database = stored.folder / "ledger.db"
    with closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)) as ledger:
        for handle, words in ledger.execute(
            "SELECT handle, substr(words, 5) FROM records"
            " WHERE key & 0xffffffff IN (SELECT value FROM json_each(?))",
            (gone,),
        ):
            handles.add(handle)
            handles.add(words)
    assert plain_in(everything(stored), handles) != [], "it was not found while it was there"
    answer = stored.appliance.post(f"{PHOTOS}/delete", {"records": [{"_id": one} for one in going]})
    assert answer.document["status"]["code"] == 220, answer.body[:300]
    stored.delete(f"{COLLECTIONS}/{stored.collection}")
    eventually(lambda: log_is_empty(stored.folder), "the log is emptied")
    assert len(handles.places(database.read_bytes())) < len(handles) / 20
    assert plain_in(everything(stored), stored.plaintext) == []


def workspace(stored: Stored, number: int) -> str | None:
    """None: the default one."""
    if number < COUNT // 2:
        return stored.full if number % 5 == 0 else None
    return stored.doomed if number % 2 else None


def picture(stored: Stored, number: int) -> bytes:
    """Noise in one of three formats, with what cameras and editors write into their files."""
    noise, word = images.noise(40, seed=number), stored.word
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = word(), word()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + word().encode("utf-16-le")
    exif.get_ifd(0x8825).update({1: "N", 2: (50.0, 5.0, number / 100), 3: "E", 4: (14.0, 25.0, 0.5)})
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{word()}</x:xmpmeta>".encode()
    if number % 3 == 0:
        return images.encoded(noise, "JPEG", exif=exif, xmp=xmp, comment=word())
    if number % 3 == 1:
        note = PngInfo()
        note.add_itxt("XML:com.adobe.xmp", xmp.decode())
        note.add_itxt("Comment", word())
        return images.encoded(noise, "PNG", exif=exif, pnginfo=note)
    return images.encoded(noise, "WEBP", exif=exif.tobytes(), xmp=xmp)


def upload(stored: Stored, number: int, content: bytes) -> str:
    """In one of the three forms, each with every format; the id of the image."""
    fields: dict[str, Any] = {"test_image": number % 2 == 0, "meta_data": {"shelf": stored.word()}}
    if (where := workspace(stored, number)) is not None:
        fields["workspace"] = where
    kind, form = ("image/jpeg", "image/png", "image/webp")[number % 3], number // 3 % 3
    if form == 0:
        fields |= {"base64": base64.b64encode(content).decode(), "_file": f"/home/{stored.word()}.jpg"}
        return stored.post(IMAGES, **fields)
    if form == 1:
        more = {"content_type": kind, "x_record": json.dumps(fields)}
    else:
        more = {"content_type": f"multipart/form-data; boundary={BOUNDARY}"}
        content = parts(stored.word(), {"request": json.dumps(fields).encode(), "image-0": content})
    answer = stored.appliance.call("POST", IMAGES, content, headers=stored.appliance.headers(**more))
    assert answer.status == 201, answer.body[:300]
    return str(answer.document["id"])


def parts(file: str, named: dict[str, bytes]) -> bytes:
    """A multipart body, whose parts came from a file of this name."""
    lines = b""
    for name, content in named.items():
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'
        lines += head.encode() + content + b"\r\n"
    return lines + f"--{BOUNDARY}--\r\n".encode()


def annotate(stored: Stored, image: str, label: str) -> None:
    word = stored.word
    box: dict[str, Any] = {"data": [1, 2, 30, 40], "meta_data": {word(): word()}}
    stored.post("/detection/v2/object", detection_label=label, image=image, **box)
    stored.post("/annotate/v2/point", image=image, name=word(), data=word())
    stored.post("/annotate/v2/verification", image_id=image, user=word())


def everything(stored: Stored) -> list[Path]:
    """All files of the state, what was opened for writing anywhere, what is held open without a name."""
    found = {*files_below(stored.folder), *map(Path, stored.traced.opened_for_writing())}
    for process in stored.appliance.processes():
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                target = link.readlink()
                if target not in found and not str(target).startswith(VIRTUAL):
                    found.add(link)
    return sorted(path for path in found if is_file(path))


def files_below(folder: Path) -> list[Path]:
    """Sockets are none."""
    return sorted(path for path in folder.rglob("*") if is_file(path) and not path.is_symlink())


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # closed or removed meanwhile
        return False


def plain_in(files: Iterable[Path], plaintext: Plaintext) -> list[str]:
    """Where in these files something is found."""
    found = []
    for path in files:
        with contextlib.suppress(OSError):
            if places := plaintext.places(path.read_bytes()):
                found.append(f"{path}: {len(places)} pieces, the first at {places[0]}")
    return found


@contextmanager
def opened(stored: Stored) -> Iterator[Keyring]:
    """The keys as they are now, for whoever has the root key."""
    root = bytearray((stored.folder / "root.key").read_bytes())
    keyring = Keyring.open(stored.folder / "keyring", root)
    try:
        yield keyring
    finally:
        keyring.wipe()


def unsealed(file: Path, keyring: Keyring) -> bytes:
    """What another program reads of a sealed file, which must be named by its own header, with its key."""
    sealed = file.read_bytes()
    dataset, customer, generation = UUID(bytes=sealed[24:40]), UUID(bytes=sealed[40:56]), sealed[56:60]
    key = keyring.container(customer, dataset).object_key(int.from_bytes(generation))
    header, content = sealed_reader.read(sealed, key)
    assert (header["object"], dataset) == (UUID(hex=file.name).bytes, UUID(hex=file.parent.name))
    return content


def findings(folder: Path, stored: Stored, keyring: Keyring) -> list[str]:
    """All that is wrong with a state folder: that of `stored`, or a copy."""
    before = {folder / path.relative_to(stored.folder) for path in stored.before}
    return [
        *plain_in(files_below(folder), stored.plaintext),
        *unaccounted(folder, before, keyring),
        *unsealed_words(folder, keyring),
        *not_random(folder),
    ]


def graphs_at_rest(folder: Path) -> bool:
    """Whether there are files of graphs, and none is being written."""
    found = [path for path in files_below(folder) if path.relative_to(folder).parts[0] == "graphs"]
    return bool(found) and not any(path.name.startswith(".") for path in found)


def unaccounted(folder: Path, before: set[Path], keyring: Keyring) -> list[str]:
    """Files that are neither sealed whole, nor known to hold nothing of anybody's; so is the audit log."""
    found = []
    for path in files_below(folder):
        parts = path.relative_to(folder).parts
        of_images, of_log = parts[0] == "images", parts[0] == "audit"
        of_volume = of_images or parts == (".ballast",)
        if (of_images or parts[0] == "graphs") and len(parts) == 3:
            try:
                unsealed(path, keyring)
            except (AssertionError, InvalidTag, NotFound, SealBroken, ValueError, struct.error) as error:
                found.append(f"{path} is not sealed: {error!r}")
        elif not (is_small(path) if of_volume else of_log or path in before or path.name in LEDGER):
            found.append(f"{path} belongs to nothing that is known")
    return found


def is_small(path: Path) -> bool:
    """Whether it is one of the volume's own files, and only as large as these are."""
    if path.name == ".ballast":
        return not any(path.read_bytes())
    return path.stat().st_size <= OWN_FILES.get(path.name, -1)


def unsealed_words(folder: Path, keyring: Keyring) -> list[str]:
    """Rows of the ledger whose words do not open under the key of their dataset."""
    found = []
    for noun, row, customer, dataset, blob in blobs(folder):
        try:
            keyring.container(UUID(customer), UUID(dataset)).unseal(noun, blob, row.encode())
        except SealBroken as error:
            found.append(f"{noun} of {row}: {error}")
    try:
        assert sum(1 for _ in collection_contents(folder, keyring)) > 0
    except SealBroken as error:
        found.append(f"of a collection: {error}")
    return found


def not_random(folder: Path) -> list[str]:
    """Sealed files and blobs that could be told from random bytes; what is before their ciphertext aside."""
    files = [*(folder / "images").glob("*/*"), *(folder / "graphs").glob("*/*")]
    sealed = {str(path): path.read_bytes()[64:] for path in files}
    sealed["all sealed files"] = b"".join(sealed.values())
    sealed["all words"] = b"".join(blob[4:] for *_, blob in blobs(folder))
    sealed["all of collections"] = b"".join(blob[4:] for *_, blob in collection_blobs(folder))
    return [name for name, content in sealed.items() if len(content) >= LONG and not is_random(content)]


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image", content)
    return file.getvalue()
