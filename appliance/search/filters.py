"""Filters on metadata: a small part of MongoDB's query language, with MongoDB's meaning.

`{"colour": "red", "size": {"$in": [38, 39]}, "$and": [{"sale": true}]}`: every key must hold. A value matches
a field that equals it, or a list that contains it; null also matches a field that is absent; 1 equals 1.0 and
true equals neither. `_id` filters on the record's own id. Any other operator is refused by name.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from appliance.errors import InvalidInput

MAX_DEPTH = 16
MAX_CONDITIONS = 1_000
MAX_VALUES = 10_000
MAX_FIELDS = 16
ABSENT = None
"""The value of a field that a record does not have."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The field has one of these values (see `canonical`), or is a list that contains one."""

    field: str
    values: frozenset[Hashable]

    def holds(self, value: object) -> bool:
        if canonical(value) in self.values:
            return True
        return isinstance(value, list) and any(canonical(item) in self.values for item in value)


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that must all hold; none at all matches every record."""

    conditions: tuple[Condition, ...]

    @property
    def fields(self) -> frozenset[str]:
        """The metadata fields that decide whether a record matches."""
        return frozenset(condition.field for condition in self.conditions)

    def matches(self, metadata: Mapping[str, object]) -> bool:
        return all(condition.holds(metadata.get(condition.field, ABSENT)) for condition in self.conditions)


def compile(document: object) -> Filter:  # noqa: A001 -- read as filters.compile, like re.compile
    """The filter that a JSON document describes.

    Raises InvalidInput that names the operator or the field when the document is not an object, uses another
    operator than $in and $and or a dotted field, nests deeper than 16 levels, or has more than 16 fields,
    1,000 conditions or 10,000 values.
    """
    conditions: list[Condition] = []
    _collect(document, conditions, depth=1)
    if sum(len(condition.values) for condition in conditions) > MAX_VALUES:
        raise InvalidInput(f"filter: more than {MAX_VALUES} values")
    compiled = Filter(tuple(conditions))
    if len(compiled.fields) > MAX_FIELDS:
        raise InvalidInput(f"filter: more than {MAX_FIELDS} different fields")
    return compiled


def canonical(value: object) -> Hashable:
    """A hashable stand-in for a JSON value: equal for equal values, and true is not 1."""
    match value:
        case bool():
            return ("bool", value)
        case None | int() | float() | str():
            return value
        case list():
            return ("list", tuple(canonical(item) for item in value))
        case dict():
            return ("object", frozenset((key, canonical(item)) for key, item in value.items()))
        case _:
            raise InvalidInput(f"filter: {type(value).__name__} is not a JSON type")


def _collect(document: object, conditions: list[Condition], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"filter: nested deeper than {MAX_DEPTH} levels")
    if not isinstance(document, dict):
        raise InvalidInput(f"filter: an object is needed, not {type(document).__name__}")
    for key, operand in document.items():
        if key == "$and":
            if not isinstance(operand, list) or not operand:
                raise InvalidInput("filter: $and needs a list of filters")
            for part in operand:
                _collect(part, conditions, depth + 1)
        else:
            conditions.append(Condition(_field(key), _values(key, operand)))
        if len(conditions) > MAX_CONDITIONS:
            raise InvalidInput(f"filter: more than {MAX_CONDITIONS} conditions")


def _field(key: object) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidInput("filter: a field name is a string that is not empty")
    if key.startswith("$"):
        raise InvalidInput(f"filter: the operator {key[:64]} is not supported ($in and $and are)")
    if "." in key:
        raise InvalidInput(f"filter: {key[:64]}: fields inside objects are not supported")
    return key


def _values(field: str, operand: object) -> frozenset[Hashable]:
    if isinstance(operand, dict):
        operators = [key for key in operand if isinstance(key, str) and key.startswith("$")]
        for operator in operators:
            if operator != "$in":
                raise InvalidInput(
                    f"filter: {field[:64]}: the operator {operator[:64]} is not supported ($in and $and are)"
                )
        if operators:
            choices = operand["$in"]
            if len(operand) > 1 or not isinstance(choices, list):
                raise InvalidInput(f"filter: {field[:64]}: $in stands alone and needs a list")
            return frozenset(_literal(field, choice) for choice in choices)
    return frozenset([_literal(field, operand)])


def _literal(field: str, value: object) -> Hashable:
    _check_literal(field, value, MAX_DEPTH)
    return canonical(value)


def _check_literal(field: str, value: object, depth: int) -> None:
    if depth == 0:
        raise InvalidInput(f"filter: {field[:64]}: nested deeper than {MAX_DEPTH} levels")
    match value:
        case float() if not math.isfinite(value):
            raise InvalidInput(f"filter: {field[:64]}: {value} is not a JSON number")
        case list():
            for item in value:
                _check_literal(field, item, depth - 1)
        case dict():
            for key, item in value.items():
                if isinstance(key, str) and key.startswith("$"):
                    raise InvalidInput(f"filter: {field[:64]}: the operator {key[:64]} is not supported here")
                _check_literal(field, item, depth - 1)
        case _:
            pass
