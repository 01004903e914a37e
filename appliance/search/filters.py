"""Filters on metadata: the part of MongoDB's query language that is decided without running over records.

`{"colour": "red", "price": {"$gte": 5, "$lt": 9}, "$or": [{"sale": true}, {"tags": {"$in": ["new", "x"]}}]}`

Every key must hold. A field takes a value (the same as `$eq`) or one or more of `$eq $ne $gt $gte $lt $lte
$in $nin $exists $regex $not`; `$and`, `$or` and `$nor` take lists of filters. The meaning is MongoDB's:

- A value matches a field that equals it or is a list that contains it; so do comparisons, each by itself:
  `{"$gte": 5, "$lt": 9}` matches the list [1, 10].
- `maker.name` is the field of an object, or of every object in a list: one of them is enough.
- null also equals what is absent. `$ne`, `$nin` and `$not` match all that their opposite does not, absent
  fields included.
- 1 equals 1.0, and true equals neither. Comparisons are among numbers, among strings (by code point) or among
  booleans; a value of another type never satisfies one.

Not MongoDB's, deliberately: objects are equal whatever the order of their keys, as in JSON. A number in a
path is a field's name, never a position in a list. `$gt` and its like refuse null, lists and objects.
`$regex` takes `^literal` alone, a prefix, with metacharacters escaped: all else would have to be run on every
record. `_id` is the record's own id, a string. NaN is refused, and every other operator is, by name.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from appliance.errors import InvalidInput
from appliance.search import expressions
from appliance.search.expressions import (
    EVERYTHING,
    Compared,
    Condition,
    Expression,
    Missing,
    OneOf,
    Test,
    all_of,
    any_of,
    negated,
)
from appliance.search.records import MAX_METADATA_DEPTH
from appliance.search.values import ABSENT, COMPARE, canonical

MAX_DEPTH = 16
MAX_CONDITIONS = 1_000
MAX_VALUES = 10_000
MAX_FIELDS = 16

_NEGATIVE = {"$ne", "$nin", "$not"}
_PREFIX = re.compile(r"\^((?:[^\\^$.|?*+()\[\]{}]|\\[^0-9A-Za-z])*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter that has been read."""

    where: Expression

    @property
    def everything(self) -> bool:
        """Every record matches, whatever its metadata."""
        return self.where == EVERYTHING

    @property
    def conditions(self) -> frozenset[Condition]:
        """All that `where` is made of."""
        return frozenset(expressions.conditions(self.where))

    @property
    def fields(self) -> frozenset[str]:
        """The metadata fields, dotted, that decide whether a record matches."""
        return frozenset(condition.field for condition in expressions.conditions(self.where))

    def matches(self, metadata: Mapping[str, object]) -> bool:
        """Decided for one record; `_id` is among its metadata."""
        return self.where.holds(metadata)


def compile(document: object) -> Filter:  # noqa: A001 -- read as filters.compile, like re.compile
    """The filter that a JSON document describes.

    Raises InvalidInput that names the operator and the field when the document is not as the module says,
    nests deeper than 16 levels, or has more than 16 different fields, 1,000 conditions or 10,000 values.
    """
    compiled = Filter(_Reading().filter(document, depth=1))
    if len(compiled.fields) > MAX_FIELDS:
        raise InvalidInput(f"filter: more than {MAX_FIELDS} different fields")
    return compiled


class _Reading:
    """One document being read, and what it has used of the limits: a hostile one ends early."""

    def __init__(self) -> None:
        self._conditions = 0
        self._values = 0

    def filter(self, document: object, depth: int) -> Expression:
        _check_depth(depth)
        if not isinstance(document, dict):
            raise InvalidInput(f"filter: an object is needed, not {_kind(document)}")
        if not document:
            self._count_condition()
        return all_of(self._clause(key, operand, depth) for key, operand in document.items())

    def _clause(self, key: object, operand: object, depth: int) -> Expression:
        match key:
            case "$and":
                return all_of(self._filters(key, operand, depth))
            case "$or":
                return any_of(self._filters(key, operand, depth))
            case "$nor":
                return negated(any_of(self._filters(key, operand, depth)))
            case _:
                return self._field(_path(key), operand, depth)

    def _filters(self, operator: str, operand: object, depth: int) -> Iterator[Expression]:
        if not isinstance(operand, list) or not operand:
            raise InvalidInput(f"filter: {operator} needs a list of filters")
        return (self.filter(part, depth + 1) for part in operand)

    def _field(self, field: str, operand: object, depth: int) -> Expression:
        _check_depth(depth)
        if not _has_operators(operand):
            return self._one_of(field, [operand])
        return all_of(self._operation(field, key, argument, depth) for key, argument in operand.items())

    def _operation(self, field: str, operator: str, operand: object, depth: int) -> Expression:
        positive = self._positive(field, operator, operand, depth)
        return negated(positive) if operator in _NEGATIVE else positive

    def _positive(self, field: str, operator: str, operand: object, depth: int) -> Expression:
        """An operation without the negation that is in the name of some."""
        match operator:
            case "$eq" | "$ne":
                return self._one_of(field, [operand])
            case "$in" | "$nin":
                if not isinstance(operand, list):
                    raise _refused(field, f"{operator} needs a list")
                return self._one_of(field, operand)
            case "$gt" | "$gte" | "$lt" | "$lte":
                return self._compared(field, operator, operand)
            case "$regex":
                return self._condition(field, Compared(operator, _prefix(field, operand)))
            case "$exists":
                if operand not in (True, False):
                    raise _refused(field, "$exists needs true or false")
                return self._condition(field, Missing(), unless=bool(operand))
            case "$not":
                if not _has_operators(operand):
                    raise _refused(field, '$not needs an object of operators, such as {"$gt": 5}')
                return self._field(field, operand, depth + 1)
            case _:
                raise _refused(field, _unknown(operator))

    def _one_of(self, field: str, values: list[object]) -> Condition:
        for value in values:
            self._check_literal(field, value, MAX_DEPTH)
        wanted = frozenset(map(canonical, values))
        return self._condition(field, OneOf(wanted | {ABSENT} if None in wanted else wanted))

    def _compared(self, field: str, operator: str, bound: object) -> Condition:
        self._check_literal(field, bound, MAX_DEPTH)
        match bound:
            case bool():
                # There are only two to compare with.
                those = [value for value in (False, True) if COMPARE[operator](value, bound)]
                return self._condition(field, OneOf(frozenset(map(canonical, those))))
            case int() | float() | str():
                return self._condition(field, Compared(operator, bound))
            case _:
                raise _refused(field, f"{operator} needs a number, a string or a boolean, not {_kind(bound)}")

    def _condition(self, field: str, test: Test, *, unless: bool = False) -> Condition:
        self._count_condition()
        return Condition(field, test, negated=unless)

    def _count_condition(self) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidInput(f"filter: more than {MAX_CONDITIONS} conditions")

    def _check_literal(self, field: str, value: object, depth: int) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise InvalidInput(f"filter: more than {MAX_VALUES} values")
        if depth == 0:
            raise _refused(field, f"nested deeper than {MAX_DEPTH} levels")
        match value:
            case list():
                for item in value:
                    self._check_literal(field, item, depth - 1)
            case dict():
                if (operator := next(filter(_is_operator, value), None)) is not None:
                    raise _refused(field, f"the operator {operator[:64]} is not supported here")
                for item in value.values():
                    self._check_literal(field, item, depth - 1)
            case _:
                _check_scalar(field, value)


def _path(key: object) -> str:
    """The name of a field, dotted where it is inside of objects."""
    if not isinstance(key, str) or not key:
        raise InvalidInput("filter: a field name is a string that is not empty")
    if key == "$not":
        raise InvalidInput("filter: $not stands inside a field's condition; $nor negates whole filters")
    if _is_operator(key):
        raise InvalidInput(f"filter: the operator {key[:64]} is not supported")
    names = key.split(".")
    if not all(names) or len(names) > MAX_METADATA_DEPTH:
        raise _refused(key, f"a path is 1 to {MAX_METADATA_DEPTH} names with dots between them")
    return key


def _prefix(field: str, pattern: object) -> str:
    """What strings must begin with to match the regular expression."""
    read = _PREFIX.fullmatch(pattern) if isinstance(pattern, str) else None
    if read is None:
        raise _refused(
            field,
            "$regex takes ^ and a literal, which is a prefix, its metacharacters escaped: "
            "any other expression would have to be run on every record",
        )
    prefix = _ESCAPED.sub(r"\1", read[1])
    _check_scalar(field, prefix)
    return prefix


def _check_scalar(field: str, value: object) -> None:
    match value:
        case float() if not math.isfinite(value):
            raise _refused(field, f"{value} is not a JSON number")
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _refused(field, "is not valid Unicode (it contains a lone surrogate)") from None
        case None | bool() | int() | float():
            pass
        case _:
            raise _refused(field, f"{_kind(value)} is not a JSON type")


def _has_operators(operand: object) -> TypeGuard[dict[str, object]]:
    return isinstance(operand, dict) and any(map(_is_operator, operand))


def _is_operator(key: object) -> bool:
    return isinstance(key, str) and key.startswith("$")


def _unknown(operator: object) -> str:
    named = str(operator)[:64]
    if _is_operator(operator):
        return f"the operator {named} is not supported"
    return f"{named} stands among operators and is none"


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"filter: nested deeper than {MAX_DEPTH} levels")


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _refused(field: str, why: str) -> InvalidInput:
    return InvalidInput(f"filter: {field[:64]}: {why}")
