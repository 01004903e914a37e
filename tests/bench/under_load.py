"""How long answers take: of one image alone, near saturation, and when far more is asked than can be done."""

import statistics
from collections.abc import Callable

from tests.bench import load
from tests.bench.load import LOST, Client, Outcome
from tests.bench.report import Report
from tests.bench.sight import THUMBNAIL, Session, milliseconds, photograph, pixels
from tests.bench.stand import STARTER, Stand

ROUNDS = 5
AT_ONCE = 16
ALONE, SATURATED = 150, 400  # requests
SECONDS = 8.0
SETTLED = 2.0  # seconds until the queues are full: goodput is counted from there
TIMES_TOO_MUCH = 3
EVEN = "at equal distances"


def run(report: Report, built: Stand, client: Client) -> None:
    """The starter backbone with thumbnails, rounds of everything in turns."""
    image = photograph(THUMBNAIL, kilobytes=35)
    request, port = built.raw(STARTER, image), built.state.port
    session = Session(built.model(STARTER), image)
    parts: list[float] = []
    alone, even, random, full, flood = (list[Outcome]() for _ in range(5))
    for number in range(ROUNDS):
        walls = [milliseconds(act, 50)[1] for act in (lambda: session.run(1), lambda: pixels(image))]
        parts.append(sum(walls))
        alone.append(client.closed(port, request, at_once=1, count=ALONE))
        full.append(client.closed(port, request, at_once=AT_ONCE, count=SATURATED))
        rate = full[-1].rate
        even.append(client.open(port, request, due=load.evenly(0.7 * rate, SECONDS)))
        random.append(client.open(port, request, due=load.at_random(0.7 * rate, SECONDS, number)))
        flood.append(client.open(port, request, due=load.evenly(TIMES_TOO_MUCH * rate, SECONDS)))
    _latency(report, parts, alone, {EVEN: even, "at random (Poisson)": random})
    _overload(report, full, flood)


def _median(outcomes: list[Outcome], of: Callable[[Outcome], float]) -> float:
    return statistics.median(of(one) for one in outcomes)


def _latency(
    report: Report, parts: list[float], alone: list[Outcome], loads: dict[str, list[Outcome]]
) -> None:
    usual, floor = _median(alone, lambda one: one.quantile(0.5)), statistics.median(parts)
    report.figure("one image alone, p50", usual, "ms wall", note="starter backbone")
    report.figure("... session and decoding alone", floor, "ms wall", note=f"ratio {usual / floor:.2f}")
    for name, outcomes in loads.items():
        assert all(one.count(200) == len(one.answers) for one in outcomes)
        p99s = [one.quantile(0.99) for one in outcomes]
        report.figure(
            f"p99 at 70 % of saturation / p50 alone, {name}",
            statistics.median(p99s) / usual,
            "x",
            at_most=3 if name == EVEN else None,
            note=f"{statistics.median(p99s):.1f} ms wall, {min(p99s):.1f} to {max(p99s):.1f}",
        )


def _overload(report: Report, full: list[Outcome], flood: list[Outcome]) -> None:
    goodputs = [_goodput(one) / best.rate for one, best in zip(flood, full, strict=True)]
    note = f"open loop, {SECONDS:g} s each, {min(goodputs):.2f} to {max(goodputs):.2f}"
    rate = _median(full, lambda one: one.rate)
    report.figure("saturation", rate, "images/s wall", note=f"{AT_ONCE} at once; the client takes its share")
    name = f"goodput at {TIMES_TOO_MUCH} x saturation / saturation"
    report.figure(name, statistics.median(goodputs), "", at_least=0.9, note=note)
    for share in (0.5, 0.99):
        value = _median(flood, lambda one, share=share: one.quantile(share, 429))  # type: ignore[misc]
        report.figure(f"... a refusal (429), p{100 * share:g}", value, "ms wall")
    report.figure("... an answer (200), p50", _median(flood, lambda one: one.quantile(0.5)), "ms wall")
    lost, every = sum(one.count(LOST) for one in flood), sum(len(one.answers) for one in flood)
    other = every - lost - sum(one.count(200, 429) for one in flood)
    note = f"of {every}; {lost} connections lost, {other} other statuses"
    report.figure("... neither answered nor refused", lost + other, "requests", note=note)


def _goodput(outcome: Outcome) -> float:
    """Answers a second between the filling of the queues and the last request."""
    counted = sum(SETTLED <= one.at < SECONDS and one.status == 200 for one in outcome.answers)
    return counted / (SECONDS - SETTLED)
