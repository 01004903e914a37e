"""What an image costs beside decoding and the model: CPU time, latency and throughput of the real daemon.

CPU time is that of the daemon, its decoders and its device worker; the client's, a process of its own, is not
in it. Decoding and the session alone are driven in this process in turns with the daemon, so that a busy
machine slows all of them; figures are medians over such rounds. Wall rates share the cores with the client.
"""

import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from appliance.recognition.session import CPU_BATCH
from tests.bench import large, spent, stages, stand, under_load
from tests.bench.load import Client
from tests.bench.report import Report
from tests.bench.sight import MEGAPIXEL, THUMBNAIL, Session, milliseconds, photograph, pixels
from tests.bench.stages import STAGES
from tests.bench.stand import STARTER, Stand
from tests.running import RunningAppliance

ROUNDS = 13
AT_ONCE = 16  # the device is then always busy, and its batches are full
PERIOD = 1.2  # seconds of work in one round of each: a shared machine changes its pace soon


@dataclass(frozen=True)
class Round:
    """CPU milliseconds an image: alone, and what the processes spent; `rate` is images a second, wall.

    `stages` are those of the daemon's event loop.
    """

    session: float
    decoding: float
    daemon: float
    decoders: float
    device: float
    rate: float
    stages: dict[str, float]

    @property
    def alone(self) -> float:
        return self.session + self.decoding

    @property
    def served(self) -> float:
        return self.daemon + self.decoders + self.device

    @property
    def outside(self) -> float:
        return self.served - self.alone

    @property
    def ratio(self) -> float:
        return self.alone / self.served


Rounds = list[Round]


def run(report: Report) -> None:
    folder = stand.CACHE / "bench-recognition"
    try:
        built = stand.build(folder, "mobilenet-v2", "resnet-50")
        with Client() as client:
            with RunningAppliance(built.state, built.state.port) as appliance:
                _costs(report, built, appliance, client)
                every = [pid for kind in stand.processes(appliance).values() for pid in kind]
                note = f"{len(every)} processes, three models loaded; shared pages counted in each"
                report.figure("resident memory, all processes", spent.resident_mib(every), "MiB", note=note)
                under_load.run(report, built, client)
            large.run(report, client)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _costs(report: Report, built: Stand, appliance: RunningAppliance, client: Client) -> None:
    thumbnail, megapixel = photograph(THUMBNAIL, kilobytes=35), photograph(MEGAPIXEL)
    starter = Session(built.model(STARTER), thumbnail)
    measured = Measured(appliance, client, built.operator_port)
    raw = built.raw(STARTER, thumbnail)
    body = f"{len(thumbnail) / 1000:.0f} KB JPEG"
    rounds = measured.rounds(raw, starter, thumbnail)
    _outside(report, f"{body}, raw body", rounds, 1.0)
    _ratio(report, f"starter backbone, {body}", rounds, 0.9)
    alone = measured.rounds(raw, starter, thumbnail, at_once=1)
    _outside(report, f"{body}, raw body, one at a time", alone)
    json = measured.rounds(built.records(STARTER, thumbnail), starter, thumbnail)
    _outside(report, f"{body}, a record in base64 JSON", json, 1.5)
    ten = measured.rounds(built.records(STARTER, thumbnail, 10), starter, thumbnail, images=10, at_once=2)
    _outside(report, f"{body}, a record of ten in base64 JSON", ten)
    for name, image, what, bound in (
        ("mobilenet-v2", thumbnail, body, 0.9),
        ("resnet-50", megapixel, f"1 megapixel JPEG of {len(megapixel) / 1000:.0f} KB", 0.97),
    ):
        rounds = measured.rounds(built.raw(name, image), Session(built.model(name), image), image)
        _ratio(report, f"{name}, {what}", rounds, bound)


@dataclass
class Measured:
    """Drives the daemon and, in turns with it, its parts alone."""

    appliance: RunningAppliance
    client: Client
    operator_port: int

    def rounds(
        self, request: bytes, session: Session, image: bytes, *, images: int = 1, at_once: int = AT_ONCE
    ) -> Rounds:
        """`images` are in one request; the session is run in batches as the daemon then does."""
        batch = 1 if at_once == 1 else CPU_BATCH
        processes = stand.processes(self.appliance)
        session.run(batch)
        each, _ = milliseconds(lambda: session.run(batch), 2)
        runs = max(2, int(PERIOD / 2 * 1000 / each))
        count = max(AT_ONCE, runs * batch // images)
        self.client.closed(self.appliance.port, request, at_once=at_once, count=AT_ONCE)

        def one_round() -> Round:
            session_ms = milliseconds(lambda: session.run(batch), runs)[0] / batch
            decoding_ms, _ = milliseconds(lambda: pixels(image), 30)
            earlier = stages.spent(self.operator_port)
            before = {kind: spent.cpu_milliseconds(pids) for kind, pids in processes.items()}
            outcome = self.client.closed(self.appliance.port, request, at_once=at_once, count=count)
            assert outcome.count(200) == count, {answer.status for answer in outcome.answers}
            used = {
                kind: (spent.cpu_milliseconds(pids) - before[kind]) / (count * images)
                for kind, pids in processes.items()
            }
            later = stages.spent(self.operator_port).per_image(earlier, count * images)
            return Round(session_ms, decoding_ms, **used, rate=outcome.rate * images, stages=later)

        return [one_round() for _ in range(ROUNDS)]


def _median(rounds: Rounds, of: Callable[[Round], float]) -> float:
    return statistics.median(of(one) for one in rounds)


def _outside(report: Report, name: str, rounds: Rounds, bound: float | None = None) -> None:
    parts = (
        f"daemon {_median(rounds, lambda one: one.daemon):.2f},"
        f" decoders {_median(rounds, lambda one: one.decoders - one.decoding):.2f} beside decoding,"
        f" device {_median(rounds, lambda one: one.device - one.session):.2f} beside the session"
    )
    report.figure(
        f"outside session and decoding: {name}",
        _median(rounds, lambda one: one.outside),
        "CPU ms",
        at_most=bound,
        note=parts,
    )
    told = [f"{stage} {_median(rounds, lambda one, stage=stage: one.stages[stage]):.3f}" for stage in STAGES]  # type: ignore[misc]
    loop = _median(rounds, lambda one: sum(one.stages.values()))
    report.figure("... the daemon's event loop", loop, "CPU ms", note=", ".join(told))


def _ratio(report: Report, name: str, rounds: Rounds, bound: float) -> None:
    spread = sorted(one.ratio for one in rounds)
    rate = _median(rounds, lambda one: one.rate)
    report.figure(
        f"(session + decoding alone) / all processes: {name}",
        _median(rounds, lambda one: one.ratio),
        "",
        at_least=bound,
        note=f"{spread[0]:.3f} to {spread[-1]:.3f}; {rate:.0f} images/s wall",
    )
    session, decoding = (_median(rounds, lambda one: one.session), _median(rounds, lambda one: one.decoding))
    report.figure("... session alone", session, "CPU ms", note=f"one thread, batches of {CPU_BATCH}")
    report.figure("... decoding alone", decoding, "CPU ms")
    report.figure("... all processes", _median(rounds, lambda one: one.served), "CPU ms")
