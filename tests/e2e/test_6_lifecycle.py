"""Killed, hung, reloaded and restarted under load: nothing acknowledged is ever lost."""

import threading
import time
from collections.abc import Callable

from tests.e2e.client import Client, Load
from tests.e2e.guest import Guest

CONFIG = "/etc/appliance/appliance.toml"
CONNECTION_LOST = {
    *("ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected", "BrokenPipeError"),
    *("SSLEOFError", "SSLZeroReturnError", "IncompleteRead", "BadStatusLine"),
}


def main_pid(guest: Guest) -> str:
    return guest.output("systemctl show --property=MainPID --value appliance.service")


def status_text(guest: Guest) -> str:
    return guest.output("systemctl show --property=StatusText --value appliance.service")


def journal(guest: Guest, since: float) -> str:
    return guest.output(f"journalctl --no-pager --output=cat --unit=appliance.service --since=@{int(since)}")


def wait(what: str, done: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.5)


def test_killed_daemon_is_back_with_everything_acknowledged(deployed: Guest, customer: Client) -> None:
    before = main_pid(deployed)
    with Load(customer, "killed") as load:
        load.wait(4)
        deployed.run("systemctl kill --kill-whom=main --signal=KILL appliance.service")
        wait("a new daemon", lambda: main_pid(deployed) not in {before, "0"})
        customer.wait_ready()
        load.wait(1)
    assert not load.wrong
    customer.assert_stored(load.acknowledged)


def test_hung_daemon_is_replaced_by_the_watchdog(deployed: Guest, customer: Client) -> None:
    before, began = main_pid(deployed), deployed.clock()
    with Load(customer, "hung", writers=1) as load:
        load.wait(2)
        deployed.run("systemctl kill --kill-whom=main --signal=STOP appliance.service")
        wait("a new daemon", lambda: main_pid(deployed) not in {before, "0"})
        customer.wait_ready()
    assert "watchdog" in journal(deployed, began).lower()
    assert deployed.output("find / -xdev -name 'core*' -newermt -10min -type f -size +1M") == ""
    customer.assert_stored(load.acknowledged)


def test_reload_under_load_applies_the_change_and_loses_nothing(deployed: Guest, customer: Client) -> None:
    """Requests are logged as information: with the level at warning there are no such lines any more."""
    before = main_pid(deployed)
    original = deployed.run(f"cat {CONFIG}").out
    assert "[log]" not in original
    try:
        with Load(customer, "reloaded") as load:
            load.wait(2)
            deployed.write(CONFIG, f'{original}\n[log]\nlevel = "warning"\n')
            deployed.run("systemctl reload appliance.service")
            wait("the reload", lambda: "with the reloaded configuration" in status_text(deployed), 60)
            load.wait(1)
            quiet_since = deployed.clock()
            load.wait(2)
            assert "appliance.access" not in journal(deployed, quiet_since)
    finally:
        deployed.write(CONFIG, original)
        deployed.run("systemctl reload appliance.service")
    assert set(load.outcomes) == {"acknowledged"}
    assert main_pid(deployed) == before

    def logged_again() -> bool:
        customer.assert_stored(load.acknowledged)
        return "appliance.access" in journal(deployed, quiet_since)

    wait("the old level", logged_again, 60)


def test_wrong_configuration_is_refused_and_the_old_one_stays(deployed: Guest, customer: Client) -> None:
    before = main_pid(deployed)
    original = deployed.run(f"cat {CONFIG}").out
    try:
        deployed.write(CONFIG, original.replace("[api]", "[api]\nmax_body_bites = 1", 1))
        deployed.run("systemctl reload appliance.service", check=False)
        wait("the finding", lambda: "max_body_bites" in deployed.output("appliance status"), 60)
        assert customer.ready()
    finally:
        deployed.write(CONFIG, original)
        deployed.run("systemctl reload appliance.service")
    wait("no finding", lambda: "max_body_bites" not in deployed.output("appliance status"), 60)
    assert main_pid(deployed) == before


def test_restart_under_load_drains_and_loses_nothing(deployed: Guest, customer: Client) -> None:
    verdicts: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            try:
                verdicts.append(customer.call("GET", "/readyz").status)
            except OSError:
                verdicts.append(0)
            over.wait(0.3)

    watcher = threading.Thread(target=watch, daemon=True)
    with Load(customer, "drained", writers=3) as load:
        load.wait(3)
        watcher.start()
        deployed.run("systemctl restart appliance.service")
        customer.wait_ready()
        load.wait(1)
        over.set()
        watcher.join()
    assert not load.wrong
    assert 503 in verdicts, "readyz never said that it drains"
    assert set(load.outcomes) <= {"acknowledged", "503", *CONNECTION_LOST}
    customer.assert_stored(load.acknowledged)
