"""The store on its LUKS volume: a plain one is refused, and one that goes under load takes nothing along.

It goes as a failing disk or an operator has it go. The service has mounts of its own: what is mounted on the
server reaches them, what is unmounted there does not.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.client import Client, Uploads
from tests.e2e.guest import Guest
from tests.e2e.playbook import OCCUPIED, OPERATOR, STATE
from tests.e2e.test_6_lifecycle import journal, main_pid, wait

UNIT = "appliance.service"
STARTED_SECONDS = 600.0
REFUSED = 78  # the exit code for a finding in the configuration or the machine
BENEATH = "/mnt"  # the root disk without what is mounted on it
SERVICE_BENEATH = "/run/appliance-root"  # what the service's own file tree is built on
START = f"systemctl start --no-block {UNIT}"
REOPEN = f"systemctl stop {UNIT} var-lib-appliance.mount && systemctl restart systemd-cryptsetup@appliance"
# Whatever tells a file that was made, changed or replaced.
LIST = """
import os, sys
for top in sys.argv[1:]:
    for folder, _, names in os.walk(top):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            found = os.lstat(path)
            print(path, oct(found.st_mode), found.st_uid, found.st_ino, found.st_size, found.st_mtime_ns)
"""


@pytest.fixture(scope="module")
def museum(deployed: Guest, anyone: Client) -> Client:
    """A customer whose contract the operator has recorded."""

    def told(words: str) -> dict[str, str]:
        line = f"su {OPERATOR} -s /bin/sh -c 'appliance --json {words}'"
        document = json.loads(deployed.output(line))
        assert isinstance(document, dict)
        return document

    told("customer add museum")
    token = told("token add museum")["token"]
    assert told("agreement sign museum training-data")["state"] == "active"
    return anyone.authorised(token, "")


@pytest.fixture(scope="module")
def plain(deployed: Guest) -> Iterator[str]:
    """A filesystem in the clear, and the service may write to it; the name is for `mount`."""
    owned = f"mount {OCCUPIED} /mnt && chown {{0}}: /mnt && chmod {{1}} /mnt && umount /mnt"
    deployed.run(owned.format("appliance", 700))
    yield OCCUPIED
    deployed.run(owned.format("root", 755))


@pytest.fixture(scope="module")
def beneath(deployed: Guest) -> Iterator[list[str]]:
    """The folders under the volume, as the server sees them and as the service does; it may write to them."""
    deployed.run(f"mount --bind / {BENEATH} && mount --make-private {BENEATH}")
    under = [f"{BENEATH}{STATE}", f"{SERVICE_BENEATH}{STATE}"]
    deployed.run(f"chown appliance: {' '.join(under)}")
    yield under
    deployed.run(f"chown root: {' '.join(under)} && umount {BENEATH}")


def listed(guest: Guest, *folders: str) -> list[str]:
    """Every file of these folders with all that changes when it does."""
    return guest.python(LIST, *folders).splitlines()


def findings(guest: Guest) -> str:
    """What `status` has to say, in its own words."""
    status = json.loads(guest.output("appliance status --json"))
    return "\n".join(finding["message"] for finding in status["findings"])


@contextmanager
def undone(guest: Guest, customer: Client, *lines: str) -> Iterator[None]:
    """What is done to the server within the block is undone by these lines, and then the appliance serves."""
    try:
        yield
    finally:
        for line in lines:
            guest.run(line)
    customer.wait_ready(STARTED_SECONDS)


def test_store_opens_on_luks2_and_a_link_serves_what_it_took_in(deployed: Guest, museum: Client) -> None:
    assert "CRYPT-LUKS2-" in deployed.output("dmsetup info --columns --noheadings -o uuid appliance")
    status = json.loads(deployed.output("appliance status --json"))
    assert (status["volume"]["mount"], status["volume"]["encryption"]) == (STATE, "luks")
    with Uploads(museum, "first", writers=1) as load:
        load.wait(1)
    load.assert_whole()
    [image] = list(load.acknowledged)[:1]
    assert deployed.output(f"ls {STATE}/images/*/{image.replace('-', '')}")


def test_plain_volume_is_refused(deployed: Guest, museum: Client, plain: str) -> None:
    undo = f"umount {STATE} && systemctl reset-failed {UNIT} && {START}"
    deployed.run(f"systemctl stop {UNIT} && umount {STATE}")
    with undone(deployed, museum, undo):
        deployed.run(f"mount {plain} {STATE}")
        before, began = listed(deployed, STATE), deployed.clock()
        assert deployed.run(f"systemctl start {UNIT}", check=False).code != 0
        assert deployed.output(f"systemctl show --property=ExecMainStatus --value {UNIT}") == str(REFUSED)
        assert "which is plain: production needs a LUKS volume" in journal(deployed, began)
        assert listed(deployed, STATE) == before


def test_plain_volume_for_the_images_alone_is_refused(deployed: Guest, museum: Client, plain: str) -> None:
    """It is tried again for ever, so that it serves as soon as the volume is as it should be."""
    with undone(deployed, museum, f"umount {STATE}/images"):
        deployed.run(f"systemctl stop {UNIT} && mount {plain} {STATE}/images")
        before, began = listed(deployed, f"{STATE}/images"), deployed.clock()
        deployed.run(START)
        wait("a refusal", lambda: "images are kept on a LUKS volume alone" in journal(deployed, began))
        assert not museum.ready()
        assert listed(deployed, f"{STATE}/images") == before


def test_volume_whose_every_access_fails_takes_uploads_offline(
    deployed: Guest, museum: Client, beneath: list[str]
) -> None:
    """The ledger lies there too. systemd sees no filesystem on the mapping any more, and ends the service."""
    before, began = listed(deployed, *beneath), deployed.clock()
    with undone(deployed, museum, REOPEN, START), Uploads(museum, "wiped") as load:
        load.wait(4)
        deployed.run("dmsetup wipe_table appliance")
        load.wait_refused()
        assert "stored images are offline" in journal(deployed, began)
        wait("not ready", lambda: not museum.ready())
        assert listed(deployed, *beneath) == before
    load.assert_whole()


@pytest.mark.parametrize("what", ["tmpfs", "plain"])
@pytest.mark.parametrize("where", [STATE, f"{STATE}/images"], ids=["state", "images"])
def test_another_filesystem_mounted_over_gets_nothing(
    deployed: Guest, museum: Client, plain: str, what: str, where: str
) -> None:
    """Once it is gone the same daemon goes on."""
    filesystem = plain if what == "plain" else "-t tmpfs -o uid=appliance,mode=700 tmpfs"
    pid = main_pid(deployed)
    with Uploads(museum, f"{what}-over-{where}") as load:
        load.wait(2)
        with undone(deployed, museum, f"umount {where}"):
            deployed.run(f"mount {filesystem} {where}")
            before = listed(deployed, where)
            load.wait_refused()
            said = findings(deployed)
            assert "stored images are out of reach" in said
            assert where in said
            made = museum.post("/appliance/v1/datasets", {"name": f"while {what} covers {where}"})
            assert made.status == 201, made.body  # its key goes to the volume, as its row does
            assert listed(deployed, where) == before
        load.wait(2)
    load.assert_whole()
    assert main_pid(deployed) == pid


def test_unmounted_under_the_service_it_is_offline(
    deployed: Guest, museum: Client, beneath: list[str]
) -> None:
    """Taken from its own mounts, as only root with nsenter can, and closed as soon as nobody holds it."""
    pid = main_pid(deployed)
    enter = f"nsenter --target {pid} --mount umount --lazy {STATE}"
    before = listed(deployed, *beneath)
    with undone(deployed, museum, REOPEN, START), Uploads(museum, "taken") as load:
        load.wait(4)
        deployed.run(f"{enter} && cryptsetup close --deferred appliance")
        load.wait_refused()
        assert "stored images are out of reach" in findings(deployed)
        assert not museum.ready()
        assert listed(deployed, *beneath) == before
    load.assert_whole()


def test_unmounted_on_the_server_the_service_ends_and_the_volume_is_closed(
    deployed: Guest, museum: Client, beneath: list[str]
) -> None:
    """What an operator does to lock the data."""
    before = listed(deployed, beneath[0])
    with undone(deployed, museum, REOPEN, START), Uploads(museum, "locked") as load:
        load.wait(4)
        deployed.run(f"umount --lazy {STATE} && cryptsetup close --deferred appliance")
        wait("the end", lambda: deployed.output(f"systemctl is-active {UNIT} || true") == "inactive")
        wait("a closed volume", lambda: deployed.run("test -e /dev/mapper/appliance", check=False).code != 0)
        assert listed(deployed, beneath[0]) == before
    load.assert_whole()
