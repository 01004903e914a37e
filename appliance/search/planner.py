"""Which way a filtered search takes: through the graph and past the filter, or exactly over what matches.

An exact scan costs CPU in proportion to the bytes that it reads, a graph to the candidates that it looks at
and their dimensions. The cheaper one is tried first. A search that got too little from the graph, because
what matches lies elsewhere than what is near, scans as well: it has then paid at most twice.

The constants were measured with hnswlib 0.8.0, M 16, over 20,000 vectors of 256 and of 512 dimensions, on one
core of an AMD EPYC with AVX2. Only their ratios count.
"""

_BYTE = 0.1e-9
_CANDIDATE_DIMENSION = 11e-9
_QUESTION = 1e-4
_DEPTH = 3.5
"""The k-th match is about the (k / share)-th candidate. A graph that looks at so many times more, and at half
of `ef`, finds it as surely as without a filter: recall@10 is 0.99 at 50 % and at 10 % (1.5 times: 0.97)."""
_MOST = 2000
"""A graph process answers one question at a time: none may take longer than some 5 ms."""


def reach(k: int, known: int, size: int, *, ef: int, dim: int, scanned: int) -> int | None:
    """How many candidates to ask of a graph for k that match, or None: scan exactly.

    Of the graph's `size` records, dead ones included, `known` match; `ef` is what it looks at for a search
    without a filter. The exact scan takes as long as reading `scanned` bytes in order.
    """
    if known < k:
        return None
    candidates = max(ef, int(ef / 2 + _DEPTH * k * size / known))
    cost = _QUESTION + candidates * dim * _CANDIDATE_DIMENSION
    if candidates > min(size, _MOST) or cost >= scanned * _BYTE:
        return None
    return candidates
