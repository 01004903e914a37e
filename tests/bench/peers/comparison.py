"""The same model behind the appliance and behind its peers: CPU time of a request, memory; wall rates beside.

MobileNetV2's shapes, a JPEG of 35 KB in base64 JSON, sixteen requests at once from the same client; one
server at a time, the rounds of all interleaved. CPU time is that of all processes of a server. From it the
session and the decoding are taken off, measured alone in this process right before, in the batches that the
server makes. Peers answer with the best class only, the appliance as always.
"""

import base64
import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.recognition.session import CPU_BATCH
from tests.bench import load, spent, stand
from tests.bench.load import Client
from tests.bench.peers import image
from tests.bench.peers.environment import NotInstalled, Peer, RunningPeer
from tests.bench.report import Report
from tests.bench.sight import THUMBNAIL, Session, milliseconds, photograph, pixels
from tests.running import RunningAppliance

ROUNDS, PARTS = 2, 11
AT_ONCE, REQUESTS = 16, 160
MODEL = "mobilenet-v2"
PEERS = (
    Peer("litserve", "LitServe 0.2.19", ("python", "-m", "tests.bench.peers.serve_litserve", "{port}")),
    Peer(
        "bentoml",
        "BentoML 1.4.36",
        (
            "bentoml",
            "serve",
            "tests.bench.peers.serve_bentoml:Classifier",
            "--host",
            "127.0.0.1",
            "-p",
            "{port}",
        ),
    ),
    Peer("ray", "Ray Serve 2.60.0", ("python", "-m", "tests.bench.peers.serve_ray", "{port}")),
)
OURS = "appliance"


@dataclass
class Measured:
    """Of one server, a value a part of a round: CPU milliseconds, MiB, images a second, milliseconds."""

    outside: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    processes: int = 0


def run(report: Report) -> None:
    folder = stand.CACHE / "bench-peers"
    encoded = photograph(THUMBNAIL, kilobytes=35)
    peers = [peer for peer in PEERS if _installed(report, peer)]
    try:
        built = stand.build(folder, MODEL)
        stand.remove_starter(built)  # the peers have one model
        session = Session(built.model(MODEL), encoded)
        body = json.dumps({"encoded": base64.b64encode(encoded).decode()}).encode()
        every = {title: Measured() for title in (OURS, *(peer.title for peer in peers))}
        with Client() as client:
            trial = Trial(client, session, encoded)
            for _ in range(ROUNDS):
                with RunningAppliance(built.state, built.state.port) as appliance:
                    pids = [process.pid for process in appliance.processes()]
                    ours = Server(appliance.port, built.records(MODEL, encoded), pids, pixels, CPU_BATCH)
                    trial.parts(every[OURS], ours)
                for peer in peers:
                    with RunningPeer(peer, built.model(MODEL), body) as running:
                        request = load.request("/predict", body, {"Content-Type": "application/json"})
                        theirs = Server(running.port, request, running.processes(), image.decoded, 1)
                        trial.parts(every[peer.title], theirs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _tell(report, every)


def _installed(report: Report, peer: Peer) -> bool:
    try:
        peer.install()
    except NotInstalled as reason:
        report.figure(f"{peer.title} could not be installed", float("nan"), "", note=str(reason))
        return False
    return True


@dataclass(frozen=True)
class Server:
    """One that is running: how it decodes, and how many images it gives the session at a time."""

    port: int
    request: bytes
    processes: list[int]
    decode: Callable[[bytes], object]
    batch: int


@dataclass(frozen=True)
class Trial:
    """The client, and what is taken off."""

    client: Client
    session: Session
    encoded: bytes

    def parts(self, measured: Measured, server: Server) -> None:
        """One round of a server that is running."""
        measured.processes = len(server.processes)
        self.client.closed(server.port, server.request, at_once=AT_ONCE, count=8 * AT_ONCE)
        for _ in range(PARTS):
            session, _ = milliseconds(lambda: self.session.run(server.batch), 64 // server.batch)
            decoding, _ = milliseconds(lambda: server.decode(self.encoded), 40)
            before = spent.cpu_milliseconds(server.processes)
            outcome = self.client.closed(server.port, server.request, at_once=AT_ONCE, count=REQUESTS)
            whole = (spent.cpu_milliseconds(server.processes) - before) / REQUESTS
            assert outcome.count(200) == REQUESTS, {answer.status for answer in outcome.answers}
            measured.whole.append(whole)
            measured.outside.append(whole - session / server.batch - decoding)
            measured.resident.append(spent.resident_mib(server.processes))
            measured.rate.append(outcome.rate)
            measured.p99.append(outcome.quantile(0.99))


def _tell(report: Report, every: dict[str, Measured]) -> None:
    outside = {title: statistics.median(one.outside) for title, one in every.items()}
    resident = {title: statistics.median(one.resident) for title, one in every.items()}
    for title, one in every.items():
        spread = (
            f"{min(one.outside):.2f} to {max(one.outside):.2f}; {statistics.median(one.whole):.2f} in all"
        )
        report.figure(f"{title}: outside session and decoding", outside[title], "CPU ms", note=spread)
        note = f"{one.processes} processes, shared pages counted in each"
        report.figure("... resident memory", resident[title], "MiB", note=note)
        report.figure("... images", statistics.median(one.rate), "1/s wall")
        report.figure("... p99", statistics.median(one.p99), "ms wall", note=f"{AT_ONCE} at once")
    peers = [title for title in every if title != OURS]
    if not peers:
        return
    best = min(peers, key=outside.__getitem__)
    report.figure(
        "outside session and decoding, the appliance / the best peer",
        outside[OURS] / outside[best],
        "x",
        at_most=0.5,
        note=best,
    )
    for title in peers:
        ratio = resident[OURS] / resident[title]
        report.figure(f"resident memory, the appliance / {title}", ratio, "x", at_most=1)
