"""The keys of a collection's rows: its number, and below that a label, which rises by insertion."""

_LABEL_BITS = 32
LABELS = 1 << _LABEL_BITS
"""As many has a collection, in all its life."""


def key_of(number: int, label: int) -> int:
    return (number << _LABEL_BITS) | label


def label_of(key: int) -> int:
    return key & (LABELS - 1)


def number_of(key: int) -> int:
    return key >> _LABEL_BITS


def span(number: int) -> tuple[int, int]:
    """The first and the last key that rows of a collection may have."""
    return number << _LABEL_BITS, ((number + 1) << _LABEL_BITS) - 1
