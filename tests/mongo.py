"""What a filter means, by MongoDB's documentation, decided slowly on one record: the judge of the fast ways.

Written against the manual's pages on the query operators, not against `appliance.search.filters`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MISSING: Any = object()


def matches(document: Mapping[str, Any], record: Mapping[str, object]) -> bool:
    """Whether the record, its `_id` among its fields, is one that the filter asks for."""
    return all(_clause(key, operand, record) for key, operand in document.items())


def _clause(key: str, operand: Any, record: Mapping[str, object]) -> bool:
    if key == "$and":
        return all(matches(part, record) for part in operand)
    if key == "$or":
        return any(matches(part, record) for part in operand)
    if key == "$nor":
        return not any(matches(part, record) for part in operand)
    return _field(key, operand, record)


def _field(field: str, operand: Any, record: Mapping[str, object]) -> bool:
    if isinstance(operand, dict) and any(key.startswith("$") for key in operand):
        return all(_operation(field, name, argument, record) for name, argument in operand.items())
    return _operation(field, "$eq", operand, record)


def _operation(field: str, name: str, argument: Any, record: Mapping[str, object]) -> bool:
    found = list(_walk(record, field.split(".")))
    if name == "$eq":
        return any(_equal(None if one is MISSING else one, argument) for one in found)
    if name == "$ne":
        return not _operation(field, "$eq", argument, record)
    if name == "$in":
        return any(_operation(field, "$eq", choice, record) for choice in argument)
    if name == "$nin":
        return not any(_operation(field, "$eq", choice, record) for choice in argument)
    if name == "$exists":
        return any(one is not MISSING for one in found) == bool(argument)
    if name == "$not":
        return not _field(field, argument, record)
    if name == "$regex":
        return any(isinstance(one, str) and re.match(argument, one) is not None for one in found)
    return any(_kind(one) == _kind(argument) and _compare(name, one, argument) for one in found)


def _compare(name: str, one: Any, other: Any) -> bool:
    if isinstance(one, str):
        one, other = one.encode("utf-32-be"), other.encode("utf-32-be")
    return bool({"$gt": one > other, "$gte": one >= other, "$lt": one < other, "$lte": one <= other}[name])


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else f"{type(value)}, which has no order"


def _equal(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return _kind(one) == _kind(other) and one == other


def _walk(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Everything that a dotted path leads to, the elements of a list at its end too."""
    if not path:
        yield value
        if isinstance(value, list):
            yield from value
    elif isinstance(value, dict):
        yield from _walk(value[path[0]], path[1:]) if path[0] in value else [MISSING]
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _walk(item, path)
    else:
        yield MISSING
