import pytest

from appliance.search import planner

MIB = 1 << 20


def reach(k: int, known: int, size: int, scanned: int) -> int | None:
    return planner.reach(k, known, size, ef=64, dim=256, scanned=scanned)


def test_few_matches_are_scanned_and_many_are_asked_of_the_graph() -> None:
    size, everything = 50_000, 50 * MIB
    assert reach(10, 50, size, 2 * 50 * 1024) is None
    assert reach(10, 500, size, 2 * 500 * 1024) is None
    assert reach(10, 10_000, size, 2 * 10_000 * 1024) == 207
    assert reach(10, 25_000, size, everything) == 102


def test_the_larger_the_collection_the_more_a_scan_costs() -> None:
    assert reach(10, 100_000, 1_000_000, 2 * 100_000 * 1024) == 382
    assert reach(10, 30_000, 1_000_000, 2 * 30_000 * 1024) == 1198
    assert reach(10, 10_000, 1_000_000, 2 * 10_000 * 1024) is None


@pytest.mark.parametrize(
    ("k", "known", "size"), [(10, 9, 100), (700, 500_000, 500_000), (10, 50, 50)], ids=["few", "k", "small"]
)
def test_a_graph_that_cannot_give_enough_is_not_asked(k: int, known: int, size: int) -> None:
    assert reach(k, known, size, 1 << 50) is None
