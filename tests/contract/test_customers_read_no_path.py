"""Customers read no path of the machine: what they are told of an error is no part of its message, unless the
error is about what they sent. Whoever raises one and thinks of nobody tells them nothing.
"""

import ast
import builtins
import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

from hypothesis import given, settings
from hypothesis import strategies as st

import appliance
from appliance.accounts.audit import EntryDamaged
from appliance.api.answers import Refused, code_of, refusal, status_of
from appliance.errors import ApplianceError, AuditBroken, BackupInvalid, ConfigInvalid, Declined

ROOT = Path(appliance.__file__).parent
OF_FINDINGS = (AuditBroken, BackupInvalid, ConfigInvalid)
MESSAGES = st.one_of(st.text(), st.sampled_from(["/srv/my data/ledger.db: disk I/O error", "/a", "a /b c"]))

INTERPOLATED = {
    "seq": "an entry of the audit log, by its number",
    "name.object": "as the next",
    "self._name.object": "an image, a snapshot or a paper, by the id that the customer knows",
    "report.inserted + report.replaced": "how many records an import has stored",
    "_BUSY": "a sentence of its own: annotations cannot be read now",
    "', '.join(broken)": "the names of settings and of rules, of what the machine breaks",
}
"""What differs in a `told=` from one error to the next, and what it is. No path, and no other message."""

OF_OPERATORS = (
    *("backup/", "cli/", "daemon/", "health.py", "residency/"),
    *("recognition/devices.py", "recognition/selftest.py"),
    *("accounts/transparency/tree.py", "datasets/upkeep.py", "ledger/alteration.py"),
    "channel.py",
    "api/answers.py",
)
"""Where texts of errors are for operators alone: commands, `status` and its findings. Between processes they
become errors again, and `answers` is where the two are told apart.
"""


def test_every_kind_of_error_is_either_told_whole_or_answered_as_a_failure() -> None:
    """A new one that nobody thought about is answered with 503, and so is its message kept back."""
    for kind in kinds():
        if kind not in {Declined, Refused}:
            assert issubclass(kind, Declined) == (code_of(kind.__new__(kind)) < 500), kind


def test_what_a_class_says_names_no_path() -> None:
    assert [kind for kind in kinds() if not kind.told or {"/", "\\"} & set(kind.told)] == []


@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(message=MESSAGES, other=MESSAGES)
def test_a_message_that_nobody_thought_about_is_told_to_operators_alone(message: str, other: str) -> None:
    """The answer, the `_status` of a record, and with them every result and report are the same for any."""
    for error, another in zip(failures(message), failures(other), strict=True):
        assert error.told == another.told
        assert status_of(error, "id") == status_of(another, "id")
        for problem in (False, True):
            answer = refusal(error, "id", problem=problem)
            assert answer == refusal(another, "id", problem=problem)
            told = refusal(error, "id", problem=problem, to_operator=True).document
            assert isinstance(told, dict)
            assert told["detail"] == str(error)
            assert message in str(error)


def test_a_class_that_is_made_by_a_hurried_hand_leaks_nothing() -> None:
    class Hurried(ApplianceError):
        def __init__(self, path: str) -> None:
            self.path = path
            super().__init__(f"{path}: no such thing")

    document = refusal(Hurried("/srv/my data"), "id", problem=True).document
    assert isinstance(document, dict)
    assert document["detail"] == ApplianceError.told


def test_where_more_is_told_it_is_of_what_customers_know() -> None:
    """Every `told=` of the sources, and what is put into it where it is raised."""
    found = set[str]()
    for path in (path for path in sources() if "told=" in path.read_text()):
        for function in ast.walk(parsed(path)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                known = {
                    name.id: line.value
                    for line in ast.walk(function)
                    if isinstance(line, ast.Assign)
                    for name in line.targets
                    if isinstance(name, ast.Name)
                }
                for call in ast.walk(function):
                    if isinstance(call, ast.Call) and (told := said(call)) is not None:
                        found |= set(parts_of(told, known))
    passed_on = {"message if told is None else told"}  # by Declined itself
    assert found - passed_on == INTERPOLATED.keys()


def test_the_message_of_a_failure_is_made_no_part_of_what_customers_read() -> None:
    """Whoever catches one, or is given one, has its text go to a log or into another failure alone."""
    wrong = []
    for path in sources():
        if str(path.relative_to(ROOT)).startswith(OF_OPERATORS):
            continue
        module = loaded(path)
        for name, steps in (had for node in ast.walk(parsed(path)) for had in failures_of(node, module)):
            lines = (line for step in steps for line in quoted(step, name, module))
            wrong += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    assert not wrong, "\n".join(wrong)


def failures(message: str) -> Iterator[ApplianceError]:
    """One of each class whose message is kept from customers, with this message in it."""
    for kind in kinds():
        if issubclass(kind, OF_FINDINGS):
            yield kind([message])
        elif issubclass(kind, EntryDamaged):
            yield kind(7, message)
        elif not issubclass(kind, Declined) and kind.__init__ is ApplianceError.__init__:
            yield kind(message or "-")


@cache
def kinds() -> tuple[type[ApplianceError], ...]:
    """All classes of errors that the sources have; tests may have others."""
    for path in sources():
        loaded(path)
    found, waiting = set[type[ApplianceError]](), [ApplianceError]
    while waiting:
        kind = waiting.pop()
        if kind not in found and kind.__module__.startswith("appliance"):
            found.add(kind)
            waiting += kind.__subclasses__()
    return tuple(sorted(found, key=lambda kind: kind.__qualname__))


def sources() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.name != "__main__.py")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def loaded(path: Path) -> ModuleType:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return importlib.import_module(".".join(parts).removesuffix(".__init__"))


def said(call: ast.Call) -> ast.expr | None:
    """What its `told=` is, where it has one."""
    return next((keyword.value for keyword in call.keywords if keyword.arg == "told"), None)


def parts_of(told: ast.expr, known: Mapping[str, ast.expr]) -> Iterator[str]:
    """What it is made of beside constants and what other errors tell; `known`: what local names stand for."""
    match told:
        case ast.Constant() | ast.Attribute(attr="told"):
            pass
        case ast.JoinedStr():
            for value in told.values:
                yield from parts_of(value, known)
        case ast.FormattedValue():
            yield from parts_of(told.value, known)
        case ast.Name() if told.id in known:
            yield from parts_of(known[told.id], known)
        case _:
            yield ast.unparse(told)


def classes(expression: ast.expr | None, module: ModuleType) -> Iterator[type]:
    """Which classes a name, or several, stand for in a module."""
    match expression:
        case ast.Tuple():
            for one in expression.elts:
                yield from classes(one, module)
        case ast.BinOp(op=ast.BitOr()):
            yield from classes(expression.left, module)
            yield from classes(expression.right, module)
        case ast.Name():
            found = getattr(module, expression.id, getattr(builtins, expression.id, None))
            several = found if isinstance(found, tuple) else (found,)
            yield from (one for one in several if isinstance(one, type))
        case _:
            pass


def failures_of(node: ast.AST, module: ModuleType) -> Iterator[tuple[str, list[ast.stmt]]]:
    """The names of failures that a handler or a function has, and what it does."""
    match node:
        case ast.ExceptHandler(type=caught, name=str(name)) if failing(caught, module):
            yield name, node.body
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            for one in (*node.args.args, *node.args.kwonlyargs):
                if failing(one.annotation, module):
                    yield one.arg, node.body
        case _:
            pass


def failing(caught: ast.expr | None, module: ModuleType) -> bool:
    """Whether an error whose message is kept from customers may be among what is caught."""
    return any(
        issubclass(kind, ApplianceError) and not issubclass(kind, Declined)
        for kind in classes(caught, module)
    )


def quoted(node: ast.AST, name: str, module: ModuleType) -> Iterator[int]:
    """The lines where the text of the error of this name is put into what is not for operators alone."""
    match node:
        case ast.Compare():
            return
        case ast.Call() if logs(node) or failing(node.func, module) or said(node) is not None:
            return
        case ast.Call(func=ast.Name("str" | "repr"), args=[ast.Name(taken)]) if taken == name:
            yield node.lineno
        case ast.FormattedValue(value=ast.Name(taken)) if taken == name:
            yield node.lineno
        case ast.Attribute(value=ast.Name(taken), attr="args" | "findings" | "problems") if taken == name:
            yield node.lineno
        case _:
            pass
    for child in ast.iter_child_nodes(node):
        yield from quoted(child, name, module)


def logs(call: ast.Call) -> bool:
    match call.func:
        case ast.Attribute(value=ast.Name("log" | "_log")):
            return True
        case _:
            return False
