"""What the checks share: one guest for the scenario, deployed once, and a customer on it."""

import json
import shlex
import ssl
import subprocess
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e import playbook, report
from tests.e2e.client import Client
from tests.e2e.guest import Guest, Hardware
from tests.e2e.playbook import DEVICE, OCCUPIED, Playbook, Variables

CHECK_SECONDS = 2400


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Only `./dev e2e` runs these: they need a guest, minutes, and an order."""
    return None if report.scenario_of(config) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """This folder's are all e2e, and slow as emulation is."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(CHECK_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the daemon said last."""
    report = yield
    guest = item.funcargs.get("deployed") if isinstance(item, pytest.Function) else None
    if report.failed and isinstance(guest, Guest):
        try:
            said = guest.run("journalctl --no-pager --lines=60 --unit=appliance.service", check=False).out
        except (OSError, subprocess.SubprocessError) as error:
            said = f"{error}\n{guest.console()}"
        report.sections.append(("the daemon's journal", said))
    return report


@pytest.fixture(scope="session")
def scenario(pytestconfig: pytest.Config) -> report.Scenario:
    """Image, archive and wishes of this run."""
    running = report.scenario_of(pytestconfig)
    assert running is not None, "these checks are run by ./dev e2e"
    return running


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For files of the scenario: certificates, inventories."""
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def guest(scenario: report.Scenario, folder: Path, pytestconfig: pytest.Config) -> Iterator[Guest]:
    """The server: Debian as installed, an empty disk, one that is in use, two users."""
    disks = {"data": "4G", "occupied": "256M"}
    with Guest(scenario.image, folder / "guest", Hardware(ports=(playbook.PORT,), disks=disks)) as guest:
        guest.run(f"useradd --create-home {playbook.OPERATOR} && useradd --create-home {playbook.STRANGER}")
        guest.run(f"mkfs.ext4 -q {OCCUPIED} && mount {OCCUPIED} /mnt && echo dear >/mnt/file && umount /mnt")
        yield guest
        if scenario.keep:
            _wait_for_a_person(guest, pytestconfig)


def _wait_for_a_person(guest: Guest, config: pytest.Config) -> None:
    capture = config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    capture.suspend_global_capture(in_=True)
    with suppress(EOFError):
        input(f"\nThe guest stays up until Enter. Its root:\n    {shlex.join(guest.ssh_command())}\n")
    capture.resume_global_capture()


@pytest.fixture(scope="session")
def ansible(guest: Guest, folder: Path) -> Playbook:
    """The playbook, aimed at the guest."""
    return Playbook(guest, folder)


@pytest.fixture(scope="session")
def trusted(folder: Path) -> ssl.SSLContext:
    """What a customer's program trusts: the test CA alone."""
    authority = playbook.certificate(folder)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="session")
def variables(scenario: report.Scenario, folder: Path, trusted: ssl.SSLContext) -> Variables:
    """A right inventory for the guest."""
    return playbook.variables(scenario.archive, folder, DEVICE)


@pytest.fixture(scope="session")
def deployed(guest: Guest, ansible: Playbook, variables: Variables) -> Guest:
    """The guest after the playbook's first run."""
    played = ansible.run(variables).succeeded()
    assert played.changed > 0
    return guest


@pytest.fixture(scope="session")
def anyone(deployed: Guest, trusted: ssl.SSLContext) -> Client:
    """A program without a token that reaches the appliance."""
    return Client(deployed.port(playbook.PORT), trusted)


@pytest.fixture(scope="session")
def customer(deployed: Guest, anyone: Client) -> Client:
    """The first customer, made by an operator who is not root, with the first token and a collection."""

    def told(words: str) -> dict[str, str]:
        line = f"su {playbook.OPERATOR} -s /bin/sh -c 'appliance --json {words}'"
        document = json.loads(deployed.output(line))
        assert isinstance(document, dict)
        return document

    told("customer add bank")
    token = told("token add bank")["token"]
    return anyone.authorised(token, told("collection add bank photos")["id"])
