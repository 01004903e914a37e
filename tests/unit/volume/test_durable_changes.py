"""Atomic writes, published and removed trees: what is there afterwards, and what was synced."""

import os
from pathlib import Path

import pytest

from appliance.errors import StorageFailed
from appliance.volume import AtomicFile, publish_tree, remove_tree, write_atomically

Calls = list[tuple[str, Path]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The durable calls in their order, made for real: ("sync", file or folder), ("rename", new name)."""
    made: Calls = []
    fsync, rename = os.fsync, os.rename

    def sync(fd: int) -> None:
        made.append(("sync", Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    def renamed(source: Path, target: Path, **folders: int) -> None:
        folder = folders.get("dst_dir_fd")
        within = Path() if folder is None else Path(f"/proc/self/fd/{folder}").readlink()
        made.append(("rename", within / target))
        rename(source, target, **folders)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", renamed)
    return made


def listed(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def tree(folder: Path) -> Path:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "top").write_text("1")
    (folder / "a" / "b" / "deep").write_text("2")
    return folder


def test_a_write_replaces_the_content_and_sets_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o644)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    write_atomically(path, b"", 0o640)
    assert path.read_bytes() == b""
    assert path.stat().st_mode & 0o777 == 0o640
    assert listed(tmp_path) == ["key"]


def test_a_file_in_pieces_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"old")
    given_up = AtomicFile(path)
    given_up.write(b"half")
    assert path.read_bytes() == b"old"
    given_up.close()
    assert (path.read_bytes(), listed(tmp_path)) == (b"old", ["large"])
    file = AtomicFile(path)
    for piece in (b"new ", b"", memoryview(b"content")):
        file.write(piece)
    file.publish()
    for _ in range(2):
        file.close()
    assert (path.read_bytes(), listed(tmp_path)) == (b"new content", ["large"])
    with pytest.raises(StorageFailed, match="No such file"):
        AtomicFile(tmp_path / "absent" / "file")


def test_a_write_is_synced_before_and_after_it_gets_its_name(tmp_path: Path, calls: Calls) -> None:
    write_atomically(tmp_path / "key", b"new")
    (first, draft), *rest = calls
    assert (first, draft.parent) == ("sync", tmp_path)
    assert draft.name != "key"
    assert rest == [("rename", tmp_path / "key"), ("sync", tmp_path)]


def test_a_failed_sync_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "key"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageFailed, match="Input/output error"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert listed(tmp_path) == ["key"]


def test_a_write_into_a_missing_folder_fails_as_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="No such file"):
        write_atomically(tmp_path / "absent" / "key", b"new")


def test_a_tree_is_synced_whole_before_it_gets_its_name(tmp_path: Path, calls: Calls) -> None:
    staged = tree(tmp_path / "staging" / "t")
    target = tmp_path / "published"
    publish_tree(staged, target)
    assert (target / "a/b/deep").read_text() == "2"
    assert not staged.exists()
    renamed = calls.index(("rename", target))
    before = {path for kind, path in calls[:renamed] if kind == "sync"}
    assert before == {staged, staged / "top", staged / "a", staged / "a/b", staged / "a/b/deep"}
    assert calls[renamed + 1 :] == [("sync", tmp_path), ("sync", tmp_path / "staging")]


def test_nothing_is_published_over_something(tmp_path: Path) -> None:
    staged = tree(tmp_path / "t")
    (tmp_path / "there").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("there", "dangling"):
        with pytest.raises(StorageFailed, match="exists already"):
            publish_tree(staged, tmp_path / name)
    assert (staged / "top").exists()


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_only_files_and_folders_are_published(tmp_path: Path, kind: str) -> None:
    staged = tree(tmp_path / "t")
    if kind == "link":
        (staged / "a" / "odd").symlink_to("/etc/passwd")
    else:
        os.mkfifo(staged / "a" / "odd")
    with pytest.raises(StorageFailed, match="odd is neither a file nor a folder"):
        publish_tree(staged, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_a_missing_tree_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="No such file"):
        publish_tree(tmp_path / "absent", tmp_path / "published")


def test_a_removed_tree_is_gone_and_what_it_linked_to_stays(tmp_path: Path) -> None:
    kept = tree(tmp_path / "kept")
    doomed = tree(tmp_path / "doomed")
    (doomed / "a" / "folder").symlink_to(kept)
    (doomed / "a" / "file").symlink_to(kept / "top")
    remove_tree(doomed)
    assert listed(tmp_path) == ["kept"]
    assert (kept / "a/b/deep").read_text() == "2"


def test_a_file_and_a_link_in_the_place_of_a_tree_go_too(tmp_path: Path) -> None:
    kept = tree(tmp_path / "kept")
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        remove_tree(tmp_path / name)
    assert listed(tmp_path) == ["kept"]
    assert (kept / "a/b/deep").read_text() == "2"


def test_what_a_crash_left_of_a_removal_gets_no_longer_name(tmp_path: Path, calls: Calls) -> None:
    remove_tree(tree(tmp_path / ".doomed.0a1b2c.removed"))
    assert [path.name for what, path in calls if what == "rename"] == [".doomed.0a1b2c.removed"]
    assert listed(tmp_path) == []


def test_a_removed_tree_loses_its_name_first(tmp_path: Path, calls: Calls) -> None:
    remove_tree(tree(tmp_path / "doomed"))
    (first, hidden), (second, folder), *_ = calls
    assert (first, second, folder) == ("rename", "sync", tmp_path)
    assert hidden.name.startswith(".doomed.")
    assert calls[-1] == ("sync", tmp_path)


def test_removing_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    remove_tree(tmp_path / "absent")
    assert listed(tmp_path) == []
