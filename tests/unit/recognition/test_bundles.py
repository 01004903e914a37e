"""A bundle is installed whole and verified, or refused with the reason; installed, it survives a restart."""

import asyncio
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from appliance.accounts import audit
from appliance.errors import Conflict, InvalidInput, NotFound, NotInstalled, VolumeOffline
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.recognition import bundles
from appliance.recognition.bundles import Bundles, TaskId
from appliance.recognition.manifest import verify
from appliance.recognition.staging import from_folder

OPERATOR = audit.Actor("operator", "0", "request-1")

HEAD = """\
format = 1
name = "{name}"
version = "{version}"
kind = "{kind}"
routes = ["photo/tags/v2/tags"]
preprocessing = {{ size = 64 }}
outputs = {{ logits = [2], embedding = [4] }}
sources = [{{ name = "made here", version = "1", provides = "all", licence = "MIT", sha256 = "{none}" }}]
"""


def make(
    folder: Path, *, name: str = "tiny", version: str = "1", kind: str = "backbone", model: bytes = b"model"
) -> Path:
    """A bundle that verifies; the model is not one that computes, which is not asked here."""
    (folder / "licences").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    (folder / "labels.txt").write_text("tench\ngreat white shark\n")
    (folder / "licences/MIT.txt").write_text("MIT License")
    seal(folder, HEAD.format(name=name, version=version, kind=kind, none="0" * 64))
    return folder


def seal(folder: Path, head: str) -> None:
    """Write the manifest with the hashes of the files as they are."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    lines = [
        f'"{name}" = "{hashlib.sha256((folder / name).read_bytes()).hexdigest()}"'
        for name in names
        if name != "bundle.toml"
    ]
    (folder / "bundle.toml").write_text("\n".join([head, "[files]", *lines, ""]))


def edit(folder: Path, old: str, new: str) -> None:
    manifest = folder / "bundle.toml"
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new))


def anybody(_: object) -> None:
    """Trusts every maker."""


async def unread(model: Path) -> None:
    """The bundles here hold no real models; `test_inspection` judges those."""


@asynccontextmanager
async def opened(state: Path) -> AsyncIterator[tuple[Bundles, Ledger]]:
    async with (
        Ledger(state, Registry()) as ledger,
        Bundles(
            ledger, state / "bundles", lambda: 1_700_000_000.5, trust=anybody, inspect=unread
        ) as installed,
    ):
        yield installed, ledger


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


async def test_an_installed_bundle_serves_its_task_its_route_and_search(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, _):
        with pytest.raises(NotInstalled):
            installed.backbone()
        bundle = await installed.install(OPERATOR, from_folder(make(tmp_path / "new")))
        assert uuid.UUID(bundle.task).version == 4
        assert [*installed.list()] == [bundle]
        assert installed.catalogue().for_task(bundle.task) is bundle
        assert installed.catalogue().for_route("photo/tags/v2/tags") is bundle
        assert installed.backbone() is bundle
        assert installed.catalogue().route_installed("photo/tags/v2/tags")
        assert not installed.catalogue().route_installed("photo/tags/v2/meta")
        with pytest.raises(NotFound):
            installed.catalogue().for_task(TaskId("7f8ad1a0-0000-4000-8000-000000000000"))
        with pytest.raises(NotInstalled):
            installed.catalogue().for_route("photo/tags/v2/meta")
    assert bundle.model.read_bytes() == b"model"
    assert bundle.sha256 == hashlib.sha256(b"model").hexdigest()
    assert bundle.outputs == {"logits": (2,), "embedding": (4,)}
    assert bundle.preprocessing.size == 64
    assert [label.name for label in bundle.labels] == ["tench", "great white shark"]


async def test_a_restart_finds_the_same_bundle_and_task(tmp_path: Path, state: Path) -> None:
    source = make(tmp_path / "new")
    async with opened(state) as (installed, _):
        before = await installed.install(OPERATOR, from_folder(source))
    shutil.rmtree(source)
    async with opened(state) as (installed, _):
        assert [*installed.list()] == [before]


async def test_the_act_is_audited_with_the_row(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, ledger):
        bundle = await installed.install(OPERATOR, from_folder(make(tmp_path / "new")))
        (entry,) = await ledger.read(audit.entries)
    assert (entry.time, entry.actor, entry.event) == (1_700_000_000_500, OPERATOR, audit.Event.BUNDLE_INSTALL)
    assert entry.subject == bundle.task
    digest = hashlib.sha256((bundle.folder / "bundle.toml").read_bytes()).hexdigest()
    assert entry.details == {"bundle": "tiny@1", "manifest": digest}


async def test_nothing_is_installed_in_or_removed_from_what_covers_the_folder(
    tmp_path: Path, state: Path
) -> None:
    folder, source = state / "bundles", make(tmp_path / "new")
    async with opened(state) as (installed, _):
        bundle = await installed.install(OPERATOR, from_folder(make(tmp_path / "old", name="old")))
        aside = await asyncio.to_thread(folder.rename, state / "aside")
        for absent in (True, False):
            if not absent:
                await asyncio.to_thread(folder.mkdir)
            with pytest.raises(VolumeOffline, match="mount its volume there again"):
                await installed.install(OPERATOR, from_folder(source))
            with pytest.raises(VolumeOffline, match="mount its volume there again"):
                await installed.remove(OPERATOR, "old", "1")
        assert [*installed.list()] == [bundle]
        assert names(folder) == []
        await asyncio.to_thread(folder.rmdir)
        await asyncio.to_thread(aside.rename, folder)
        await installed.install(OPERATOR, from_folder(source))
        await installed.remove(OPERATOR, "old", "1")


async def test_the_same_bundle_again_is_the_same_answer(tmp_path: Path, state: Path) -> None:
    source = make(tmp_path / "new")
    async with opened(state) as (installed, ledger):
        first, second = await asyncio.gather(
            installed.install(OPERATOR, from_folder(source)), installed.install(OPERATOR, from_folder(source))
        )
        assert first == second == await installed.install(OPERATOR, from_folder(source))
        assert len(await ledger.read(audit.entries)) == 1
    assert names(state / "bundles")[0] == "tiny@1"
    assert not [name for name in names(state / "bundles") if name.startswith(".")]


async def test_another_content_under_the_same_version_is_a_conflict(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, _):
        first = await installed.install(OPERATOR, from_folder(make(tmp_path / "one")))
        with pytest.raises(Conflict, match="tiny 1 is installed with another content"):
            await installed.install(OPERATOR, from_folder(make(tmp_path / "two", model=b"other")))
        assert [*installed.list()] == [first]
    assert first.model.read_bytes() == b"model"


async def test_a_later_bundle_changes_nothing_that_is_answered(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, _):
        first = await installed.install(OPERATOR, from_folder(make(tmp_path / "one", version="9")))
        later = await installed.install(OPERATOR, from_folder(make(tmp_path / "two", version="10")))
    async with opened(state) as (installed, _):
        assert installed.backbone() == first
        assert installed.catalogue().for_route("photo/tags/v2/tags") == first
        assert installed.catalogue().for_task(later.task, "10") == later
        assert [bundle.version for bundle in installed.list()] == ["9", "10"]


def test_label_ids_depend_on_name_version_and_index_alone(tmp_path: Path) -> None:
    def ids(bundle: Path) -> list[str]:
        return [label.id for label in verify(bundle).labels]

    one = ids(make(tmp_path / "a"))
    assert one == ids(make(tmp_path / "b", model=b"other", kind="classifier"))
    assert not {*one} & {*ids(make(tmp_path / "c", version="2"))}
    assert not {*one} & {*ids(make(tmp_path / "d", name="other"))}
    assert len({*one}) == 2
    assert all(uuid.UUID(label).version == 4 and label == label.lower() for label in one)


def exchanged(folder: Path) -> None:
    shutil.rmtree(folder)
    make(folder, name="first", model=b"another bundle, whole in itself")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "the model": (
        lambda folder: (folder / "model.onnx").write_bytes(b"mODEL"),
        r"model\.onnx is not the file",
    ),
    "the manifest": (lambda folder: (folder / "bundle.toml").write_text("?"), r"bundle\.toml: "),
    "everything": (shutil.rmtree, "the folder cannot be read"),
    "exchanged": (exchanged, "it is not the bundle that was installed"),
}
PHOTO = "photo/tags/v2/tags"


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_bundle_is_left_out_and_nobody_takes_its_place(
    tmp_path: Path, state: Path, damage: str
) -> None:
    do, reason = DAMAGES[damage]
    source = make(tmp_path / "new", name="first")
    async with opened(state) as (installed, _):
        first = await installed.install(OPERATOR, from_folder(source))
        second = await installed.install(OPERATOR, from_folder(make(tmp_path / "two", name="second")))
    do(first.folder)
    async with opened(state) as (installed, ledger):
        assert [*installed.list()] == [second]
        (left_out,) = installed.damaged()
        assert (left_out.pin, left_out.task, left_out.active) == ("first@1", first.task, True)
        assert re.search(reason, left_out.fault)
        told = "bundle first 1 is damaged: the appliance's operator can install it again"
        asks: list[Callable[[], object]] = [
            lambda: installed.backbone("first@1"),
            lambda: installed.catalogue().for_task(first.task),
            lambda: installed.catalogue().for_task(first.task, "1"),
            lambda: installed.catalogue().for_name("first"),
        ]
        for ask in asks:
            with pytest.raises(NotInstalled, match=told):
                ask()
        assert installed.backbone("second@1") == installed.catalogue().for_task(second.task) == second
        if damage == "the model":  # the manifest says what it served
            with pytest.raises(NotInstalled, match=told):
                installed.catalogue().for_route(PHOTO)
            with pytest.raises(NotInstalled, match=told):
                installed.backbone()
            assert not installed.catalogue().route_installed(PHOTO)
        faults = {bundle.pin: fault for bundle, fault in await installed.verify()}
        assert faults["second@1"] is None
        assert re.search(reason, faults["first@1"] or "")
        with pytest.raises(Conflict, match="first 1 is damaged"):
            await installed.activate(OPERATOR, "first", "1")
        await installed.report(left_out.pin, left_out.fault)
        *_, entry = await ledger.read(audit.entries)
        assert (entry.event, entry.subject) == (audit.Event.BUNDLE_DAMAGED, first.task)
        assert entry.details == {"bundle": "first@1", "reason": left_out.fault}

        assert await installed.install(OPERATOR, from_folder(source)) == first
        assert [*installed.list()] == [first, second]
        assert installed.damaged() == ()
        assert installed.catalogue().for_route(PHOTO) == installed.backbone() == first
        assert [fault for _, fault in await installed.verify()] == [None, None]
        *_, entry = await ledger.read(audit.entries)
        assert entry.event == audit.Event.BUNDLE_INSTALL
        assert entry.details["repaired"] is True
    async with opened(state) as (installed, _):
        assert [*installed.list()] == [first, second]


async def test_a_damaged_bundle_can_be_removed(tmp_path: Path, state: Path) -> None:
    async with opened(state) as (installed, _):
        bundle = await installed.install(OPERATOR, from_folder(make(tmp_path / "new")))
    bundle.model.unlink()
    async with opened(state) as (installed, _):
        await installed.remove(OPERATOR, "tiny", "1")
        assert installed.all() == ()
    assert names(state / "bundles") == []


async def test_the_version_beside_a_damaged_one_answers_once_it_is_activated(
    tmp_path: Path, state: Path
) -> None:
    async with opened(state) as (installed, _):
        first = await installed.install(OPERATOR, from_folder(make(tmp_path / "one")))
        second = await installed.install(OPERATOR, from_folder(make(tmp_path / "two", version="2")))
    first.model.unlink()
    async with opened(state) as (installed, _):
        with pytest.raises(NotInstalled, match="tiny 1 is damaged"):
            installed.catalogue().for_task(first.task)
        await installed.activate(OPERATOR, "tiny", "2")
        assert installed.catalogue().for_task(first.task).version == second.version == "2"
        assert [one.active for one in installed.damaged()] == [False]


async def test_what_is_damaged_while_it_is_served_is_put_right_by_installing_it_again(
    tmp_path: Path, state: Path
) -> None:
    source = make(tmp_path / "new")
    async with opened(state) as (installed, _):
        bundle = await installed.install(OPERATOR, from_folder(source))
        bundle.model.write_bytes(b"exchanged")
        assert [fault is None for _, fault in await installed.verify()] == [False]
        assert await installed.install(OPERATOR, from_folder(source)) == bundle
        assert [fault for _, fault in await installed.verify()] == [None]
    assert bundle.model.read_bytes() == b"model"


async def test_what_an_interrupted_installation_left_makes_way(tmp_path: Path, state: Path) -> None:
    make(state / "bundles/.0a.staged")
    make(state / "bundles/tiny@1", model=b"published, but its row was never committed")
    async with opened(state) as (installed, _):
        assert [*installed.list()] == []
        bundle = await installed.install(OPERATOR, from_folder(make(tmp_path / "new")))
    assert bundle.model.read_bytes() == b"model"
    assert [path.name for path in (state / "bundles").iterdir()] == ["tiny@1"]


async def test_what_somebody_has_put_beside_the_bundles_stops_nothing_and_stays(
    tmp_path: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(state) as (installed, _):
        await installed.install(OPERATOR, from_folder(make(tmp_path / "new")))
    folder = state / "bundles"
    (folder / "notes.txt").write_text("where these came from")
    (folder / "archive").mkdir()
    (folder / "elsewhere@1").symlink_to(tmp_path / "new")
    (folder / ".old@1.0a1b2c.removed").touch()
    for _ in range(2):
        async with opened(state) as (installed, _):
            assert [bundle.pin for bundle in installed.list()] == ["tiny@1"]
    assert {path.name for path in folder.iterdir()} == {"tiny@1", "notes.txt", "archive"}
    assert (tmp_path / "new/model.onnx").exists()
    assert "notes.txt is none of the appliance's" in caplog.text


async def test_a_bundle_that_was_moved_and_linked_to_is_put_right_too(tmp_path: Path, state: Path) -> None:
    source = make(tmp_path / "new")
    async with opened(state) as (installed, _):
        bundle = await installed.install(OPERATOR, from_folder(source))
        moved = bundle.model.parent.rename(tmp_path / "moved")
        bundle.model.parent.symlink_to(moved)
        bundle.model.write_bytes(b"exchanged")
        await installed.install(OPERATOR, from_folder(source))
    assert bundle.model.read_bytes() == b"model"
    assert (moved / "model.onnx").read_bytes() == b"exchanged"


async def test_the_event_loop_never_touches_the_disk(tmp_path: Path, state: Path) -> None:
    source = make(tmp_path / "new")
    async with Ledger(state, Registry()) as ledger:
        with blockbuster_ctx():
            async with Bundles(
                ledger, state / "bundles", lambda: 0.0, trust=anybody, inspect=unread
            ) as installed:
                await installed.install(OPERATOR, from_folder(source))
                installed.backbone()


def a_link(bundle: Path) -> None:
    (bundle / "model.onnx").rename(bundle.parent / "elsewhere")
    (bundle / "model.onnx").symlink_to(bundle.parent / "elsewhere")


def a_linked_folder(bundle: Path) -> None:
    (bundle / "licences").rename(bundle.parent / "licences")
    (bundle / "licences").symlink_to(bundle.parent / "licences")


def a_pipe(bundle: Path) -> None:
    (bundle / "labels.txt").unlink()
    os.mkfifo(bundle / "labels.txt")


def a_huge_label_file(bundle: Path) -> None:
    with (bundle / "labels.txt").open("ab") as file:
        file.truncate(8 * 1024 * 1024 + 1)


def a_huge_manifest(bundle: Path) -> None:
    with (bundle / "bundle.toml").open("a") as file:
        file.write("#" * 256 * 1024)


def many_licences(bundle: Path) -> None:
    for number in range(65):
        (bundle / f"licences/{number}.txt").touch()


def edited(old: str, new: str) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, old, new)


def added(name: str) -> Callable[[Path], None]:
    def add(bundle: Path) -> None:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("x")

    return add


def labelled(text: bytes) -> Callable[[Path], None]:
    def label(bundle: Path) -> None:
        (bundle / "labels.txt").write_bytes(text)
        seal(bundle, (bundle / "bundle.toml").read_text().split("[files]")[0])

    return label


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda bundle: (bundle / "bundle.toml").unlink(), r"bundle\.toml is missing"),
    "missing file": (lambda bundle: (bundle / "labels.txt").unlink(), r"labels\.txt is missing"),
    "unlisted licence": (added("licences/more.txt"), r"licences/more\.txt is not listed"),
    "extra file": (added("run.sh"), r"'run\.sh' is not a file of a bundle"),
    "hidden file": (added(".profile"), r"'\.profile' is not a file of a bundle"),
    "external tensor": (added("model.onnx.data"), r"'model\.onnx\.data' is not a file of a bundle"),
    "extra folder": (added("weights/model.onnx"), "'weights' is not a plain file"),
    "folder in a folder": (
        lambda bundle: (bundle / "licences/deep").mkdir(),
        "'licences/deep' is not a plain",
    ),
    "odd name": (added("licences/a b\n.txt"), r"'licences/a b\\n\.txt' is not a file of a bundle"),
    "altered file": (
        lambda bundle: (bundle / "model.onnx").write_bytes(b"mod3l"),
        r"model\.onnx is not the file",
    ),
    "link": (a_link, r"'model\.onnx' is not a plain file"),
    "linked folder": (a_linked_folder, "'licences' is not a plain file"),
    "pipe": (a_pipe, r"'labels\.txt' is not a plain file"),
    "huge file": (a_huge_label_file, r"labels\.txt has more than 8388608 bytes"),
    "huge manifest": (a_huge_manifest, r"bundle\.toml has more than 262144 bytes"),
    "many files": (many_licences, "more than 64 files"),
    "no licence": (lambda bundle: shutil.rmtree(bundle / "licences"), r"licences/MIT\.txt is missing"),
    "path upwards": (edited('"labels.txt"', '"../labels.txt"'), r"files: '\.\./labels\.txt' is not a file"),
    "path through": (edited('"licences/MIT.txt"', '"licences/../model.onnx"'), "is not a file of a bundle"),
    "absolute path": (edited('"labels.txt"', '"/etc/passwd"'), "files: '/etc/passwd' is not a file"),
    "lists itself": (edited('"labels.txt"', '"bundle.toml"'), r"files: 'bundle\.toml' is not a file"),
    "name upwards": (edited('name = "tiny"', 'name = "../tiny"'), r"`\$\.name`"),
    "name of dots": (edited('name = "tiny"', 'name = ".."'), r"`\$\.name`"),
    "name with a line": (edited('name = "tiny"', 'name = "tiny\\n"'), r"`\$\.name`"),
    "version with a slash": (edited('version = "1"\nkind', 'version = "1/2"\nkind'), r"`\$\.version`"),
    "route upwards": (edited("photo/tags", "photo/../tags"), r"`\$\.routes\[0\]`"),
    "unknown key": (edited("format = 1", 'format = 1\nhook = "x"'), "unknown field `hook`"),
    "unknown nested key": (edited("size = 64", "size = 64, mean = 127"), "unknown field `mean`"),
    "unknown kind": (edited('"backbone"', '"plugin"'), r"`\$\.kind`"),
    "newer format": (edited("format = 1", "format = 2"), r"`\$\.format`"),
    "wrong type": (edited("size = 64", 'size = "64"'), r"`\$\.preprocessing\.size`"),
    "size out of range": (edited("size = 64", "size = 100000"), r"`\$\.preprocessing\.size`"),
    "empty shape": (edited("embedding = [4]", "embedding = []"), r"`\$\.outputs"),
    "no hash": (edited('"model.onnx" = "9', '"model.onnx" = "x9'), r"`\$\.files"),
    "missing key": (edited("format = 1\n", ""), "missing required field `format`"),
    "no toml": (edited("format = 1", "format ="), r"bundle\.toml: Invalid value"),
    "deep toml": (edited("format = 1", "format = " + "[" * 5000), r"bundle\.toml"),
    "no text": (lambda bundle: (bundle / "bundle.toml").write_bytes(b"\xff"), r"bundle\.toml is not UTF-8"),
    "backbone without embedding": (edited(", embedding = [4]", ""), "a backbone has the output embedding"),
    "no logits": (edited("logits = [2], ", ""), "has the output logits"),
    "logits of two dimensions": (edited("logits = [2]", "logits = [2, 1]"), "logits has one dimension"),
    "too many logits": (edited("logits = [2]", "logits = [3]"), r"labels\.txt: 2 labels for 3 logits"),
    "empty label": (labelled(b"tench\n\n"), "line 2"),
    "label with a control": (labelled(b"tench\nshark\x1b[2J\n"), "line 2"),
    "label with a space": (labelled(b"tench \nshark\n"), "line 1"),
    "labels in Latin-1": (labelled(b"tench\nsh\xe4rk\n"), r"labels\.txt is not UTF-8"),
}


@pytest.mark.parametrize(("spoil", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_folder_is_refused_with_the_reason(
    tmp_path: Path, state: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    source = make(tmp_path / "new")
    spoil(source)
    with pytest.raises(InvalidInput, match=reason) as seen:
        bundles.read(source)
    async with opened(state) as (installed, ledger):
        with pytest.raises(InvalidInput, match=reason) as refused:
            await installed.install(OPERATOR, from_folder(source))
        assert [*installed.list()] == []
        assert await ledger.read(audit.entries) == []
    assert names(state / "bundles") == []
    assert str(seen.value) == f"{source}: {str(refused.value).removeprefix(f'{source}: ')}"


async def test_a_path_without_a_bundle_is_refused(tmp_path: Path, state: Path) -> None:
    (tmp_path / "file").write_text("x")
    async with opened(state) as (installed, _):
        with pytest.raises(InvalidInput, match="the folder cannot be read: No such file"):
            await installed.install(OPERATOR, from_folder(tmp_path / "nowhere"))
        with pytest.raises(InvalidInput, match="the folder cannot be read: Not a directory"):
            await installed.install(OPERATOR, from_folder(tmp_path / "file"))


async def test_the_starter_bundle_installs(starter_bundle: Path, state: Path) -> None:
    async with opened(state) as (installed, _):
        bundle = await installed.install(OPERATOR, from_folder(starter_bundle))
        assert installed.catalogue().for_route("photo/tags/v2/tags") is installed.backbone() is bundle
    assert (bundle.name, bundle.version, bundle.kind) == ("efficientnet-lite0", "1", "backbone")
    assert len(bundle.labels) == len({label.id for label in bundle.labels}) == 1000
    assert bundle.labels[967].name == "espresso"
