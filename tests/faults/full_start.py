"""A daemon on a volume that is full to the last byte: run in a mount namespace, which ends with it.

    unshare --mount python -m tests.faults.full_start STATE

A tmpfs that holds a copy of the prepared STATE is mounted over it, and its ballast is spent before the first
act. What does not hold ends with a traceback.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from appliance.ledger.database import LOG_BYTES
from demo.state import DemoState
from tests import images
from tests.running import RunningAppliance
from tests.waiting import eventually

MIB = 1 << 20
PHOTOS = "/similarity/photos/v2"
IMAGES = "/recognition/v2/training-image"
SIZES = {"reserve_bytes = 1_073_741_824": "reserve_bytes = 4_194_304", "16_777_216": "2_097_152"}
REFUSAL = "Free 8 MiB there and start again"


class State(DemoState):
    """Its log is on another volume, as that of a server is."""

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")


class Full:
    """The volume, and what others have put there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.junk = folder / "junk"

    def fill(self) -> None:
        """Others take what is left, as often as something is freed."""
        for size in (MIB, 4096):
            fd = os.open(self.junk, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with suppress(OSError):
                while os.write(fd, bytes(size)) == size:
                    pass
            os.close(fd)
        assert os.statvfs(self.folder).f_bavail < 8

    def log_is_empty(self) -> bool:
        """Whether it was cut after the last write, and has its room again."""
        content = (self.folder / "ledger.db-wal").read_bytes()
        return len(content) >= LOG_BYTES and not content[0]

    def spend_ballast(self) -> None:
        eventually((self.folder / ".ballast").exists, "the ballast")
        (self.folder / ".ballast").unlink()
        self.fill()


class Shop:
    """A customer's images and records."""

    def __init__(self, appliance: RunningAppliance) -> None:
        self.appliance = appliance

    def upload(self, seed: int) -> int:
        headers = self.appliance.headers(content_type="image/jpeg")
        return self.appliance.call("POST", IMAGES, images.jpeg(256, seed=seed), headers=headers).status

    def insert(self, name: str) -> int:
        headers = self.appliance.headers(content_type="image/jpeg", x_record=json.dumps({"_id": name}))
        return self.appliance.call(
            "POST", f"{PHOTOS}/insert", images.jpeg(64, seed=len(name)), headers=headers
        ).status

    def stored(self) -> list[str]:
        listed = self.appliance.call("GET", IMAGES, headers=self.appliance.headers())
        assert listed.status == 200, listed.body
        return [image["id"] for image in listed.document["results"]]

    def read(self, image: str) -> int:
        return self.appliance.call("GET", f"/files/{image}.jpg", headers=self.appliance.headers()).status

    def delete(self, image: str) -> int:
        return self.appliance.call("DELETE", f"{IMAGES}/{image}", headers=self.appliance.headers()).status

    def delete_record(self, name: str) -> int:
        return self.appliance.post(f"{PHOTOS}/delete", {"records": [{"_id": name}]}).status

    def remove_collection(self) -> int:
        path = f"/appliance/v1/collections/{self.appliance.collection}"
        return self.appliance.call("DELETE", path, headers=self.appliance.headers()).status

    def changes(self) -> set[int]:
        """Small ones, each of which would take some of the room that deletions need."""
        management, image = "/appliance/v1", self.stored()[0]
        asked = [
            ("/recognition/v2/task", {"name": "one more"}),
            ("/recognition/v2/label", {"name": "one more"}),
            ("/annotate/v2/point", {"image": image, "name": "one more", "data": "x" * 50_000}),
            (f"{IMAGES}/update", {"images": [image], "mark-test": True}),
            (f"{management}/datasets", {"name": "one more"}),
            (f"{management}/tokens", {"scopes": ["infer"]}),
            (f"{management}/collections", {"name": "one more"}),
            ("/account/v2/request", {"type": "dominant-colors-generic", "records": [{"_base64": ""}]}),
        ]
        return {self.appliance.post(path, document).status for _ in range(20) for path, document in asked}

    def erase_dataset(self) -> int:
        path = "/appliance/v1/datasets/Default"
        return self.appliance.call("DELETE", path, headers=self.appliance.headers()).status


def findings(state: State) -> dict[str, str]:
    return {finding["key"]: finding["message"] for finding in state.ask("status")["findings"]}


def serves_and_deletes(shop: Shop, full: Full, deletions: list[Callable[[], int]]) -> None:
    """What is stored is given out, nothing more is taken in, each deletion is made without a byte free."""
    assert [shop.read(image) for image in shop.stored()] == [200] * len(shop.stored())
    assert shop.upload(100) == 507
    assert shop.insert("one more") == 507
    assert shop.changes() == {507}
    for delete in deletions:
        full.fill()
        assert delete() in {200, 204}
        # Behind the answer it is emptied, for a moment without the room that others would take.
        eventually(full.log_is_empty, "an empty log")
    full.fill()


def refused(appliance: RunningAppliance) -> str:
    """What a start says that is none."""
    try:
        appliance.start()
    except AssertionError as error:
        return str(error)
    raise AssertionError("it has started")


def main(state: State) -> None:
    full = Full(state.folder)
    appliance = RunningAppliance(state, state.port)
    shop = Shop(appliance)
    appliance.start()
    assert [shop.upload(seed) for seed in range(4)] == [201] * 4
    assert [shop.insert(name) for name in ("a", "bb", "ccc")] == [200] * 3
    first, second, *_ = shop.stored()
    full.spend_ballast()
    appliance.kill()
    full.fill()

    appliance.start()
    full.fill()
    serves_and_deletes(shop, full, [lambda: shop.delete_record("a"), lambda: shop.delete(first)])
    eventually(lambda: "volume.ballast" in findings(state), "the finding")
    assert "comes back when 4 MiB are" in findings(state)["volume.ballast"]
    assert appliance.stop() == 0
    full.fill()

    appliance.start()  # after an orderly stop as well
    full.fill()
    erasures = [shop.remove_collection, shop.erase_dataset]
    serves_and_deletes(shop, full, [lambda: shop.delete(second), *erasures])
    eventually(lambda: not list((state.folder / "images").glob("*/*")), "no file of the dataset")
    assert appliance.stop() == 0

    # The control: without the room that the ledger keeps, as before it kept any, there is no start.
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (state.folder / name).unlink()
    full.fill()
    assert REFUSAL in refused(appliance)

    full.junk.unlink()
    appliance.start()
    eventually((full.folder / ".ballast").exists, "the ballast")
    assert "volume.ballast" not in findings(state)
    assert shop.upload(100) == 201
    assert appliance.stop() == 0


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if os.geteuid() == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    aside = folder.with_suffix(".prepared")
    folder.rename(aside)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", str(folder)], check=True)
    shutil.copytree(aside, folder, dirs_exist_ok=True)
    settings = (folder / "appliance.toml").read_text()
    for usual, small in SIZES.items():
        assert usual in settings
        settings = settings.replace(usual, small)
    (folder / "appliance.toml").write_text(settings)
    main(State(folder))
