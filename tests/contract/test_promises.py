"""README's table of promises: every sentence is there, and what a row names exists."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.api.routes import ROUTES

ROOT = Path(__file__).parents[2]
SENTENCES = (
    "Images sent for recognition or search are never stored",
    "Only training images are stored, after an agreement",
    "Stored images are encrypted, links expire after one hour",
    "Administrators see images only when asked",
    "A customer owns its models; its data trains nobody else's",
    "Everything stays in the EU",
)


@dataclass(frozen=True)
class Row:
    """One promise: how it is held, the files of tests that attack it, the routes that show it."""

    promise: str
    held: str
    tests: list[str]
    routes: list[tuple[str, str]]


def table() -> list[Row]:
    part = (ROOT / "README.md").read_text().partition("\n### The promises\n")[2].partition("\n### ")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return [
        Row(promise, held, re.findall(r"`(\w+)`", tests), re.findall(r"`([A-Z]+) ([^`]+)`", evidence))
        for promise, held, tests, evidence in lines[2:]
    ]


@pytest.mark.parametrize("row", table(), ids=lambda row: row.promise)
def test_what_a_promise_names_exists(row: Row) -> None:
    assert row.held
    assert row.tests
    assert row.routes
    assert [name for name in row.tests if not (ROOT / f"tests/promises/{name}.py").is_file()] == []
    assert set(row.routes) <= {(route.method, route.path) for route in ROUTES}


def test_every_sentence_has_its_row() -> None:
    assert [row.promise for row in table()][: len(SENTENCES)] == list(SENTENCES)


def test_every_file_of_attacks_belongs_to_a_promise() -> None:
    named = [name for row in table() for name in row.tests]
    assert sorted(named) == sorted(path.stem for path in (ROOT / "tests/promises").glob("test_*.py"))
