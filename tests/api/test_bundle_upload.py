"""A bundle over the operator socket: its files as multipart, read as they come, whole or not at all."""

import json
import socket
from collections.abc import Callable

import pytest

from tests.api.test_bodies import BOUNDARY, multipart
from tests.serving import SECONDS, Reply, Served, Site, colour_bundle

BUNDLES = "/appliance/v1/bundles"
PARTS = f"multipart/form-data; boundary={BOUNDARY}"

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of the bundle that the server has, with another version: to be installed, and refused."""
    folder = colour_bundle(tmp_path_factory.mktemp("upload") / "colours")
    manifest = (folder / "bundle.toml").read_text().replace('version = "1"\nkind', 'version = "2"\nkind')
    (folder / "bundle.toml").write_text(manifest)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"), reverse=True)
        if path.is_file()
    }


def install(site: Site, body: bytes, content_type: str = PARTS) -> Reply:
    return site.operate("POST", BUNDLES, body=body, content_type=content_type)


def installed(served: Served) -> list[str]:
    """The folders on the disk, which are those that the server lists."""
    folders = sorted(path.name for path in served.bundle.folder.parent.iterdir())
    listed = served.site.operate("GET", BUNDLES).document["bundles"]
    assert folders == sorted(f"{one['name']}@{one['version']}" for one in listed)
    return folders


def head(**headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST {BUNDLES} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()


def answer(connection: socket.socket) -> tuple[int, str]:
    """Status and detail of a short answer, which comes in one piece."""
    said = connection.recv(65536)
    return int(said.split(b" ", 2)[1]), json.loads(said.partition(b"\r\n\r\n")[2])["detail"]


def connected(site: Site) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    connection.connect(str(site.socket))
    return connection


def test_the_same_bundle_twice_is_the_same_task(served: Served) -> None:
    folder = served.bundle.folder
    same = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
    answer = install(served.site, multipart(same))
    assert answer.status == 201
    assert answer.document["task"] == served.bundle.task
    assert answer.document["routes"] == ["photo/tags/v2/tags"]
    assert answer.document | {"fault": None} in served.site.operate("GET", BUNDLES).document["bundles"]


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {other: content for other, content in files.items() if other != name}


REFUSED: dict[str, tuple[Callable[[Files], Files], str]] = {
    "nothing": (lambda _: {}, "bundle.toml is missing"),
    "no manifest": (without("bundle.toml"), "bundle.toml is missing"),
    "no model": (without("model.onnx"), "model.onnx is missing"),
    "altered": (lambda files: files | {"model.onnx": b"x"}, "its SHA-256 differs"),
    "unlisted": (lambda files: files | {"licences/more.txt": b"x"}, "licences/more.txt is not listed"),
    "path upwards": (lambda files: files | {"../../x": b"x"}, "'../../x' is not a file of a bundle"),
    "absolute path": (lambda files: files | {"/tmp/x": b"x"}, "tmp/x' is not a file of a bundle"),
    "no name": (lambda files: files | {"": b"x"}, "'' is not a file of a bundle"),
    "many": (lambda files: files | {f"licences/{n}": b"" for n in range(65)}, "more than 64 files"),
    "large": (lambda files: files | {"bundle.toml": b"#" * 262145}, "bundle.toml has more than 262144 bytes"),
}


@pytest.mark.parametrize(("spoil", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_files_that_make_no_bundle(
    served: Served, files: Files, spoil: Callable[[Files], Files], why: str
) -> None:
    before = installed(served)
    answer = install(served.site, multipart(spoil(files)))
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
    assert why in answer.document["detail"]
    assert ".staged" not in answer.document["detail"]
    assert installed(served) == before


def test_a_part_twice(served: Served, files: Files) -> None:
    one = multipart(files)
    answer = install(served.site, one[: -len(f"--{BOUNDARY}--\r\n")] + one)
    assert answer.status == 400
    assert "came twice" in answer.document["detail"]


def test_forms_that_are_not_read(served: Served, files: Files) -> None:
    for body, content_type, status in (
        (b'{"path": "/srv/bundle"}', "application/json", 415),
        (multipart(files, content_encoding="gzip"), PARTS, 415),
        (multipart(files, content_transfer_encoding="base64"), PARTS, 415),
        (multipart(files), "multipart/form-data", 400),
        (multipart(files)[:-40], PARTS, 400),
        (b"", PARTS, 400),
    ):
        assert install(served.site, body, content_type).status == status, (body[:60], content_type)
    assert served.site.operate("POST", BUNDLES).status == 415


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("declared", [True, False])
def test_an_upload_that_breaks_off(served: Served, files: Files, part: float, *, declared: bool) -> None:
    before, body = installed(served), multipart(files)
    sent = body[: int(len(body) * part)]
    # Left once every call has ended.
    with served.another() as (site, _), connected(site) as connection:
        if declared:
            connection.sendall(head(content_type=PARTS, content_length=str(len(body))) + sent)
        else:
            connection.sendall(head(content_type=PARTS, transfer_encoding="chunked"))
            connection.sendall(b"%x\r\n%s\r\n" % (len(sent), sent))
    assert installed(served) == before


def test_an_upload_that_stops_is_given_up_however_much_has_come(served: Served, files: Files) -> None:
    before, body = installed(served), multipart(files)
    with (
        served.another(body_seconds=0.3, body_bytes_per_second=1) as (site, server),
        connected(site) as connection,
    ):
        connection.sendall(head(content_type=PARTS, content_length=str(len(body))) + body[:-50])
        status, detail = answer(connection)
        assert (status, "slower than" in detail) == (408, True)
        assert server.held_bytes == 0
    assert installed(served) == before


def test_what_is_installed_is_what_was_sent_whatever_the_limit_of_bodies(
    served: Served, files: Files
) -> None:
    before = installed(served)
    with served.another(max_body_bytes=1024) as (site, _):
        assert len(multipart(files)) > 1024
        made = install(site, multipart(files))
        assert (made.status, made.document["version"]) == (201, "2")
    assert installed(served) == [*before, "colours@2"]
    folder = served.bundle.folder.with_name("colours@2")
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")} == files
