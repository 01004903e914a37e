"""One Prometheus registry for the daemon, created once and passed to the parts.

What is counted for every request is counted by plain numbers of the event loop's thread: a histogram of the
library takes a lock and a walk through its buckets, five microseconds each where a request has ten of them.
"""

import types
from bisect import bisect_left
from collections.abc import Coroutine, Generator, Iterator, Sequence
from functools import partial
from time import perf_counter, thread_time
from typing import Any, Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

T = TypeVar("T")

CpuStage = Literal["auth", "parse", "queue", "answer"]
CPU_STAGES: tuple[CpuStage, ...] = get_args(CpuStage)
# One piece of work in so many has its CPU time taken, and counts for all: asking the kernel costs as much as
# the shortest of them.
SAMPLED = 64


class Registry(CollectorRegistry):
    """A registry of our own, never the library's global one."""

    def __init__(self) -> None:
        super().__init__(auto_describe=True)
        self._cpu = {stage: CpuTime() for stage in CPU_STAGES}
        self.register(_CpuTimes(self._cpu))

    def cpu(self, stage: CpuStage) -> "CpuTime":
        """What measures blocks of the event loop that belong to a stage of a request."""
        return self._cpu[stage]


def create() -> Registry:
    """A registry that already shows this process."""
    registry = Registry()
    ProcessCollector(namespace="appliance", registry=registry)
    return registry


def expose(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The registry in the text format, and its Content-Type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST


class CpuTime:
    """Estimates the CPU seconds that its thread spends in `with` blocks, which must not await.

    Blocks within a block belong to the outer one. Every SAMPLED-th is measured, and counts SAMPLED times.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = self._number = 0
        self._began = 0.0

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._number += 1
            if self._number == SAMPLED:
                self._began = thread_time()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._number == SAMPLED:
            self._number = 0
            self.seconds += (thread_time() - self._began) * SAMPLED

    @types.coroutine
    def steps(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """`await` this in place of `work`: what it does between its awaits is measured as blocks are."""
        step = partial(work.send, None)
        while True:
            try:
                with self:
                    awaited = step()
            except StopIteration as end:
                result: T = end.value
                return result
            try:
                value = yield awaited
                step = partial(work.send, value)
            except BaseException as error:  # noqa: BLE001 - it is for the work to see
                step = partial(work.throw, error)


class _CpuTimes(Collector):
    def __init__(self, stages: dict[CpuStage, CpuTime]) -> None:
        self._stages = stages
        self._rest = 0.0

    def collect(self) -> Iterator[CounterMetricFamily]:
        # An estimate may run ahead of the clock for a moment; a counter that falls would read as a restart.
        rest = thread_time() - sum(spent.seconds for spent in self._stages.values())
        self._rest = max(self._rest, rest)
        told = CounterMetricFamily(
            "appliance_loop_cpu_seconds",
            "CPU seconds of the event loop by stage of the requests, estimated; http is all the rest",
            labels=["stage"],
        )
        for stage, spent in self._stages.items():
            told.add_metric([stage], spent.seconds)
        told.add_metric(["http"], self._rest)
        yield told


class Durations(Collector):
    """A histogram of seconds for each of some stages, for the event loop's thread alone."""

    def __init__(self, name: str, text: str, stages: Sequence[str], bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = (*bounds, float("inf"))
        self._stages = {stage: _Histogram(self._bounds) for stage in stages}

    def observe(self, stage: str, seconds: float) -> None:
        """Count one."""
        self._stages[stage].observe(seconds)

    def timer(self, stage: str) -> "Timer":
        """Counts how long a block takes."""
        return Timer(self._stages[stage])

    def collect(self) -> Iterator[HistogramMetricFamily]:
        told = HistogramMetricFamily(self._name, self._text, labels=["stage"])
        for stage, histogram in self._stages.items():
            told.add_metric([stage], histogram.buckets(), histogram.total)
        yield told


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * len(bounds)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound with how many were at most as long."""
        told, sofar = list[tuple[str, float]](), 0
        for bound, number in zip(self._bounds, self._counts, strict=True):
            sofar += number
            told.append(("+Inf" if bound == float("inf") else str(bound), sofar))
        return told


class Timer:
    """Observes how long its `with` block takes; it may await."""

    __slots__ = ("_began", "_seconds")

    def __init__(self, seconds: _Histogram) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._began = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds.observe(perf_counter() - self._began)
