"""A real daemon from start to stop: what the service manager hears, reloads, drains, and what it survives."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import trustme

from demo.state import DemoState, StepFailed
from tests import images
from tests.running import CopyState, RunningAppliance
from tests.system.fake_systemd import edit, service_manager
from tests.unit.health.fake_gpus import build, describe
from tests.waiting import SECONDS, eventually

TAGS = "/photo/tags/v2/tags"


@pytest.fixture
def state(copy_state: CopyState) -> DemoState:
    return copy_state()


def recognises(appliance: RunningAppliance, seed: int = 0) -> bool:
    """One image through HTTP, decoder and device."""
    headers = appliance.headers(content_type="image/jpeg")
    answer = appliance.call("POST", TAGS, images.jpeg(seed=seed), headers=headers)
    return answer.status == 200 and answer.document["records"][0]["_status"]["code"] == 200


def readiness(appliance: RunningAppliance) -> tuple[int, str]:
    answer = appliance.call("GET", "/readyz", headers={})
    return answer.status, answer.document["state"]


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_the_service_manager_hears(state: DemoState) -> None:
    with service_manager(watchdog_seconds=0.3) as manager:
        with RunningAppliance(state, state.port, environment=manager.environment) as appliance:
            manager.until("READY=1")
            before_ready = manager.said[: manager.said.index("READY=1")]
            assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in before_ready)
            assert any(line.startswith("STATUS=loading efficientnet-lite0") for line in before_ready)
            assert readiness(appliance) == (200, "ready")
            assert recognises(appliance)  # READY=1 means that the bundles are loaded
            for _ in range(3):
                manager.until("WATCHDOG=1")
            assert appliance.stop() == 0
        manager.until("STATUS=stopped")
        said = manager.said
        assert said.index("READY=1") < said.index("STOPPING=1")
        assert said[-1] == "STATUS=stopped"
        assert said.count("READY=1") == 1


def test_reload(state: DemoState) -> None:
    with (
        service_manager() as manager,
        RunningAppliance(state, state.port, environment=manager.environment) as appliance,
    ):
        daemon = psutil.Process(appliance.pid)

        def reload() -> str:
            daemon.send_signal(signal.SIGHUP)
            manager.until("RELOADING=1")
            said = manager.until("READY=1")
            assert said == "READY=1"
            return manager.until("STATUS=")

        manager.until("READY=1")
        assert "max_connections_per_address" not in state.config.read_text()

        edit(state.config, "[api]\n", "[api]\nmax_connections_per_address = 1\n")
        assert reload() == "STATUS=serving with the reloaded configuration"
        with socket.create_connection(("127.0.0.1", state.port)) as first:
            first.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert first.recv(4096).startswith(b"HTTP/1.1 200")
            with pytest.raises((ConnectionError, http.client.BadStatusLine)):  # the limit of one holds now
                appliance.call("GET", "/healthz", headers={})
        eventually(lambda: recognises(appliance), "the limit counts open connections only")

        edit(state.config, "max_connections_per_address = 1", 'max_connections_per_address = "many"')
        assert "api.max_connections_per_address" in reload()
        assert recognises(appliance)
        (finding,) = [one for one in state.ask("status")["findings"] if one["key"] == "config"]
        assert "api.max_connections_per_address" in finding["message"]  # asked with the file still wrong

        edit(state.config, 'max_connections_per_address = "many"', "max_body_bytes = 1024")
        said = reload()
        assert "api.max_body_bytes" in said
        assert "restart" in said
        (finding,) = [one for one in state.ask("status")["findings"] if one["key"] == "config"]
        assert "api.max_body_bytes" in finding["message"]
        assert recognises(appliance)  # more than 1024 bytes

        edit(state.folder / "residency.toml", 'country = "CZ"', 'country = "US"')
        edit(state.config, "max_body_bytes = 1024", "max_connections_per_address = 1")
        assert "residency.toml: country" in reload()

        edit(state.folder / "residency.toml", 'country = "US"', 'country = "CZ"')
        assert reload() == "STATUS=serving with the reloaded configuration"
        assert [one for one in state.ask("status")["findings"] if one["key"] == "config"] == []


class Encrypted(RunningAppliance):
    """Asked over TLS; `trusted` is whose certificates are believed."""

    trusted: ssl.SSLContext

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.port, timeout=SECONDS, context=self.trusted)

    def _ready(self) -> bool:
        try:
            return self.serves()
        except (OSError, http.client.HTTPException):
            return False

    def serves(self) -> bool:
        """Whether it does, over a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            return served(connection)


def served(connection: http.client.HTTPConnection) -> bool:
    connection.request("GET", "/readyz")
    answer = connection.getresponse()
    answer.read()
    return answer.status == 200


def certify(authority: trustme.CA, folder: Path) -> ssl.SSLContext:
    """A new certificate in its place, and who believes it."""
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "chain.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    return trusted


def test_a_reload_takes_up_a_new_certificate_and_drops_no_connection(
    state: DemoState, tmp_path: Path
) -> None:
    files = f'tls_certificate = "{tmp_path}/chain.pem"\ntls_key = "{tmp_path}/key.pem"\n'
    edit(state.config, "[api]\n", f"[api]\n{files}")
    with service_manager() as manager:
        appliance = Encrypted(state, state.port, environment=manager.environment)
        appliance.trusted = certify(trustme.CA(), tmp_path)
        with appliance:
            manager.until("READY=1")
            kept = appliance.connect()
            assert served(kept)
            connected, first = kept.sock, appliance.trusted
            appliance.trusted = certify(trustme.CA(), tmp_path)
            psutil.Process(appliance.pid).send_signal(signal.SIGHUP)
            manager.until("RELOADING=1")
            manager.until("READY=1")
            assert served(kept)
            assert kept.sock is connected
            kept.close()
            assert appliance.serves()
            strange = trustme.CA().issue_cert("localhost")
            strange.private_key_pem.write_to_path(tmp_path / "key.pem")
            psutil.Process(appliance.pid).send_signal(signal.SIGHUP)
            manager.until("STATUS=reload refused: api.tls_certificate")
            assert appliance.serves(), "a key that does not fit changes nothing"
            appliance.trusted = first
            with pytest.raises(ssl.SSLError):
                appliance.serves()


def test_lame_duck_serves_and_the_request_under_way_is_answered(state: DemoState) -> None:
    edit(state.config, "lame_duck_seconds = 0", "lame_duck_seconds = 600")
    with RunningAppliance(state, state.port) as appliance:
        daemon = psutil.Process(appliance.pid)
        image = images.jpeg()
        under_way = http.client.HTTPConnection("127.0.0.1", state.port, timeout=SECONDS)
        under_way.putrequest("POST", TAGS)
        for name, value in appliance.headers(content_type="image/jpeg").items():
            under_way.putheader(name, value)
        under_way.putheader("Content-Length", str(len(image)))
        under_way.endheaders(image[:100])

        daemon.send_signal(signal.SIGTERM)
        eventually(lambda: readiness(appliance)[0] == 503, "readyz says 503")
        assert readiness(appliance) == (503, "draining")
        assert appliance.call("GET", "/healthz", headers={}).status == 200
        assert recognises(appliance)
        assert state.ask("status")["state"] == "draining"

        daemon.send_signal(signal.SIGTERM)  # a second one ends the lame duck, not the request
        eventually(lambda: refused(state.port), "the listener is closed")
        under_way.send(image[100:])
        answer = under_way.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["records"][0]["_status"]["code"] == 200
        under_way.close()
        daemon.wait(SECONDS)
    assert not (state.folder / "operator.sock").exists()


def test_a_stop_while_starting_is_orderly(state: DemoState) -> None:
    with service_manager() as manager:
        with state.log.open("ab") as log:
            daemon = subprocess.Popen(state.command("serve"), stdout=log, stderr=log, env=manager.environment)
        manager.until("STATUS=starting the decoders")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(SECONDS) == 0
        manager.until("STATUS=stopped")
        assert "READY=1" not in manager.said
    assert state.ask("customer", "list")["customers"]  # the state folder is free and sound


def test_a_ledger_that_cannot_write_is_left_to_the_watchdog(state: DemoState) -> None:
    with (
        service_manager(watchdog_seconds=0.3) as manager,
        RunningAppliance(state, state.port, environment=manager.environment) as appliance,
    ):
        manager.until("WATCHDOG=1")
        assert recognises(appliance)  # the first use of a token is noted
        daemon = psutil.Process(appliance.pid)
        daemon.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))  # as if the disk were full
        with pytest.raises(StepFailed):
            state.ask("customer", "add", "never kept")
        daemon.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        manager.until("STATUS=to be restarted by the watchdog")
        ticks = manager.said.count("WATCHDOG=1")
        assert readiness(appliance) == (503, "failed")
        assert "ledger" in {finding["key"] for finding in state.ask("status")["findings"]}
        assert recognises(appliance)  # whoever asks is still answered
        assert appliance.stop() == 0
        manager.until("STATUS=stopped")
        assert manager.said.count("WATCHDOG=1") == ticks
        appliance.start()
        assert readiness(appliance) == (200, "ready")
    names = {customer["name"] for customer in state.ask("customer", "list")["customers"]}
    assert names == {"demo"}


def test_service_goes_on_without_its_children(state: DemoState) -> None:
    with RunningAppliance(state, state.port) as appliance:
        assert recognises(appliance)
        children = appliance.processes()[1:]
        assert len(children) >= 2  # at least one decoder and one device
        for child in children:
            child.kill()
        eventually(lambda: recognises(appliance), "recognition after every child was killed")
        eventually(lambda: readiness(appliance) == (200, "ready"), "ready again")
        assert psutil.Process(appliance.pid).is_running()
        replaced = {child.pid for child in appliance.processes()[1:]}
        assert replaced
        assert not replaced & {child.pid for child in children}


def test_a_bundle_that_a_restarted_device_does_not_load_is_named_and_the_appliance_serves(
    state: DemoState,
) -> None:
    with RunningAppliance(state, state.port) as appliance:
        assert recognises(appliance)
        (model,) = state.folder.glob("bundles/*/model.onnx")
        model.unlink()
        for child in appliance.processes()[1:]:
            child.kill()
        eventually(lambda: readiness(appliance) == (200, "degraded"), "it serves what it can")
        status = state.ask("status")
        (finding,) = [one for one in status["findings"] if one["severity"] == "degraded"]
        assert finding["key"] == "bundle.efficientnet-lite0"
        assert finding["message"].startswith("efficientnet-lite0 ")
        assert "its model cannot be read" in finding["message"]
        assert [bundle["loaded"] for bundle in status["bundles"]] == [False]
        headers = appliance.headers(content_type="image/jpeg")
        (record,) = appliance.call("POST", TAGS, images.jpeg(), headers=headers).document["records"]
        assert record["_status"]["code"] == 404
        assert record["_status"]["text"].endswith("bundle efficientnet-lite0 1 is damaged")


def test_a_killed_daemon_leaves_no_child_and_a_free_port(state: DemoState) -> None:
    with RunningAppliance(state, state.port) as appliance:
        assert recognises(appliance)
        appliance.kill()
        assert refused(state.port)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemon itself binds
            probe.bind(("127.0.0.1", state.port))
        appliance.start()
        assert recognises(appliance)


def test_no_process_of_it_dumps_core(appliance: RunningAppliance) -> None:
    for process in appliance.processes():
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)


def test_a_hung_gpu_driver_delays_nothing_but_its_own_reading(state: DemoState, tmp_path: Path) -> None:
    library = build(tmp_path)
    gpus = tmp_path / "gpus.txt"
    describe(gpus, "wedge=1", "gpu 41 1073741824 8589934592 0 0")
    state.config.write_text(
        state.config.read_text() + "\n[health]\ngpu_seconds = 0.2\ninterval_seconds = 0.2\n"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML": str(gpus)}

    def findings() -> set[str]:
        return {finding["key"] for finding in state.ask("status")["findings"]}

    with RunningAppliance(state, state.port, environment=environment) as appliance:
        assert "gpus.silent" in findings()
        assert readiness(appliance) == (200, "degraded")
        assert recognises(appliance)

        describe(gpus, "gpu 41 1073741824 8589934592 0 0", "gpu -1 -1 -1 -1 0")
        eventually(lambda: readiness(appliance) == (200, "ready"), "the driver answers again")
        first, second = state.ask("status")["gpus"]["devices"]
        assert (first["temperature_celsius"], second["temperature_celsius"]) == (41, "unsupported")

        describe(gpus, "gpu 41 1073741824 8589934592 0 15", "gpu 40 1 1 7 0")
        eventually(lambda: {"gpus.0", "gpus.1.ecc"} <= findings(), "a lost GPU and a failing one")

        describe(gpus, "wedge=1")
        eventually(lambda: "gpus.silent" in findings(), "it hangs again")
        began = time.monotonic()
        assert appliance.stop() == 0
        assert time.monotonic() - began < 10
