"""The Merkle tree of RFC 6962, section 2.1, over hashes that are at hand only for complete subtrees.

Complete subtrees of 256**level leaves are what tiles hold; everything else is hashed from them.
"""

import hashlib
from collections.abc import Callable

WIDTH = 256
"""Hashes of a full tile."""

HASH_BYTES = 32

Complete = Callable[[int, int], bytes]
"""By level and index: the hash of the leaves from index * 256**level up to (index + 1) * 256**level."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a tree of one entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a tree of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def tile_hash(hashes: list[bytes]) -> bytes:
    """The hash of the subtree whose tile this is, a full one."""
    while len(hashes) > 1:
        hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


def tree_hash(size: int, complete: Complete) -> bytes:
    """The hash of the tree of the first `size` entries, of which `complete` is asked for whole subtrees."""
    return _hash(0, size, complete) if size else hashlib.sha256(b"").digest()


def inclusion_proof(index: int, size: int, complete: Complete) -> list[bytes]:
    """PATH(index, D[size]), section 2.1.1: the hashes beside the way from a leaf up, the leaf's own first."""
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _left(end - start)
        if index < split:
            path.append(_hash(split, end, complete))
            end = split
        else:
            path.append(_hash(start, split, complete))
            start = split
    return path[::-1]


def consistency_proof(old: int, new: int, complete: Complete) -> list[bytes]:
    """PROOF(old, D[new]), section 2.1.2: that the larger tree begins with the smaller one; 0 < old <= new.

    Nothing is to be proven of an empty tree: the proof is empty then, as for one and the same tree.
    """
    if old in {0, new}:
        return []
    path: list[bytes] = []
    start, end, known = 0, new, True  # known: the subtree from `start` up to `old` is the old tree itself
    while old != end:
        split = start + _left(end - start)
        if old <= split:
            path.append(_hash(split, end, complete))
            end = split
        else:
            path.append(_hash(start, split, complete))
            start, known = split, False
    if not known:
        path.append(_hash(start, end, complete))
    return path[::-1]


def _hash(start: int, end: int, complete: Complete) -> bytes:
    """MTH(D[start:end]), section 2.1, for the ranges that it splits a tree into."""
    size = end - start
    level, between = divmod(size.bit_length() - 1, WIDTH.bit_length() - 1)
    if not between and size == WIDTH**level:
        return complete(level, start // size)
    split = start + _left(size)
    return node_hash(_hash(start, split, complete), _hash(split, end, complete))


def _left(size: int) -> int:
    """The largest power of two that is smaller than `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)
