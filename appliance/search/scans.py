"""Where scans run, and the counters of what answers searches."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from prometheus_client import Counter

from appliance.metrics import Registry

P = ParamSpec("P")
T = TypeVar("T")

_INLINE_BYTES = 8 << 20
"""A scan of this much takes well under a millisecond; a larger one goes to a thread."""


class Scans:
    """Where scans run: small ones at once, large ones in a thread, so that the event loop is never held."""

    def __init__(self, registry: Registry) -> None:
        self._threads = ThreadPoolExecutor(thread_name_prefix="search")
        queries = Counter(
            "appliance_search_queries", "Searches, by what answered them", ["path"], registry=registry
        )
        self.by_graph = queries.labels("graph")
        self.exact = queries.labels("exact")
        self.filtered_by_graph = queries.labels("filtered_graph")
        self.filtered_exact = queries.labels("filtered_exact")
        self.filtered_both = queries.labels("filtered_both")
        self.graphs = Counter(
            "appliance_search_graphs", "Graphs, by what became of their building", ["end"], registry=registry
        )

    async def run(self, size: int, scan: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`scan(...)`, which takes about as long as reading `size` bytes in order."""
        if size <= _INLINE_BYTES:
            return scan(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: scan(*args, **kwargs))

    def close(self) -> None:
        self._threads.shutdown()
