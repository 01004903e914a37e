"""What a filter is when it has been read: conditions on fields, joined by and and or.

Negation is in the conditions alone (De Morgan), and no part of an expression is constant: `EVERYTHING` and
`NOTHING` stand for themselves or not at all.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from appliance.search.values import ABSENT, COMPARE, Bound, candidates, canonical, comparable, reached


@dataclass(frozen=True, slots=True)
class OneOf:
    """The field has one of these values (see `canonical`), or is a list that contains one."""

    values: frozenset[Hashable]


@dataclass(frozen=True, slots=True)
class Compared:
    """The field, or an element of it, is of the bound's type and compares so with it; see COMPARE."""

    comparison: str
    bound: Bound


@dataclass(frozen=True, slots=True)
class Missing:
    """The field is not there, nowhere that its path leads."""


Test = OneOf | Compared | Missing


@dataclass(frozen=True, slots=True)
class Condition:
    """What one field, its path dotted, must satisfy, or with `negated` must not."""

    field: str
    test: Test
    negated: bool = False

    def holds(self, metadata: Mapping[str, object]) -> bool:
        return self._satisfied(reached(metadata, self.field.split("."))) != self.negated

    def _satisfied(self, values: list[object]) -> bool:
        match self.test:
            case OneOf(wanted):
                return any(canonical(value) in wanted for value in candidates(values))
            case Compared(comparison, bound):
                compare = COMPARE[comparison]
                return any(comparable(value, bound) and compare(value, bound) for value in candidates(values))
            case Missing():
                return all(value is ABSENT for value in values)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds; of no parts it is true."""

    parts: tuple["Expression", ...]

    def holds(self, metadata: Mapping[str, object]) -> bool:
        return all(part.holds(metadata) for part in self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part holds; of no parts it is false."""

    parts: tuple["Expression", ...]

    def holds(self, metadata: Mapping[str, object]) -> bool:
        return any(part.holds(metadata) for part in self.parts)


Expression = Condition | AllOf | AnyOf
EVERYTHING, NOTHING = AllOf(()), AnyOf(())


def all_of(parts: Iterable[Expression]) -> Expression:
    flat: list[Expression] = []
    for part in parts:
        flat += part.parts if isinstance(part, AllOf) else [part]
    if NOTHING in flat:
        return NOTHING
    return flat[0] if len(flat) == 1 else AllOf(tuple(flat))


def any_of(parts: Iterable[Expression]) -> Expression:
    flat: list[Expression] = []
    for part in parts:
        flat += part.parts if isinstance(part, AnyOf) else [part]
    if EVERYTHING in flat:
        return EVERYTHING
    return flat[0] if len(flat) == 1 else AnyOf(tuple(flat))


def negated(part: Expression) -> Expression:
    match part:
        case Condition():
            return replace(part, negated=not part.negated)
        case AllOf(parts):
            return any_of(map(negated, parts))
        case AnyOf(parts):
            return all_of(map(negated, parts))


def conditions(part: Expression) -> Iterator[Condition]:
    """All that it is made of."""
    if isinstance(part, Condition):
        yield part
    else:
        for inner in part.parts:
            yield from conditions(inner)
