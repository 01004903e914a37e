import pytest

from appliance.search import planner

MIB = 1 << 20


def reach(k: int, known: int, size: int, scanned: int) -> list[int] | None:
    return planner.reach(k, [(size, known)], ef=54 + k, dim=256, scanned=scanned)


def test_few_matches_are_scanned_and_many_are_asked_of_the_graph() -> None:
    size, everything = 50_000, 50 * MIB
    assert reach(10, 50, size, 2 * 50 * 1024) is None
    assert reach(10, 500, size, 2 * 500 * 1024) is None
    assert reach(10, 10_000, size, 2 * 10_000 * 1024) == [124]
    assert reach(10, 25_000, size, everything) == [79]


def test_the_larger_the_collection_the_more_a_scan_costs() -> None:
    assert reach(10, 100_000, 1_000_000, 2 * 100_000 * 1024) == [199]
    assert reach(10, 30_000, 1_000_000, 2 * 30_000 * 1024) == [549]
    assert reach(10, 10_000, 1_000_000, 2 * 10_000 * 1024) is None


def test_several_graphs_are_asked_for_what_each_may_have_and_none_that_has_nothing() -> None:
    graphs = [(800_000, 80_000), (150_000, 0), (50_000, 20_000), (20, 10)]
    asked = planner.reach(10, graphs, ef=64, dim=256, scanned=2 * 100_010 * 1024)
    assert asked == [168, 0, 64, 20]


def test_what_all_records_match_costs_what_it_does_without_a_filter() -> None:
    assert reach(10, 500_000, 500_000, 1 << 50) == [64]
    assert reach(700, 500_000, 500_000, 1 << 50) == [754]


@pytest.mark.parametrize(("k", "known", "size"), [(10, 9, 100), (2_000, 500_000, 500_000)], ids=["few", "k"])
def test_a_graph_that_cannot_give_enough_is_not_asked(k: int, known: int, size: int) -> None:
    assert reach(k, known, size, 1 << 50) is None
