"""Many more collections than memory has room for: it stays small, and what is used is not loaded again."""

import asyncio
from pathlib import Path

import pytest

from tests.bench import tenants


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("count", "mib", "most"), [(250, 24, 45), pytest.param(10_000, 512, 800, marks=pytest.mark.full)]
)
def test_memory_is_what_was_given(tmp_path: Path, count: int, mib: int, most: int) -> None:
    """In MiB: a budget, and how much the process may grow. The vectors take 49 and 1,953."""
    asyncio.run(tenants.build(tmp_path, count, 512))
    seen = tenants.visit(tmp_path, mib << 20)
    assert seen.counted_mib <= mib
    assert seen.resident_mib - seen.started_mib <= most
    assert seen.hot_loads == tenants.HOT
