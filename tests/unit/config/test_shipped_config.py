"""config/appliance.toml documents every key and shows the defaults; config/residency.toml is valid."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from appliance.config import RELOADABLE, Config, Section, load
from appliance.residency import load as load_residency

FOLDER = Path(__file__).parents[3] / "config"
TEXT = (FOLDER / "appliance.toml").read_text()
REQUIRED_IN_PRODUCTION = {"residency", "api.public_url"}
ASSIGNMENT = re.compile(r"^(?:# )?(\w+) = .+$")


def flat(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config:
        inner = (
            {f"{name}.{key}": item for key, item in value} if isinstance(value, Section) else {name: value}
        )
        found.update(inner)
    return found


def documented() -> dict[str, str]:
    """Each key, set or commented out, with the comment of the paragraph it stands in."""
    found: dict[str, str] = {}
    section, comment = "", ""
    for line in TEXT.splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif match := ASSIGNMENT.match(line):
            found[section + match[1]] = comment
        elif line.startswith("# "):
            comment += line
        elif not line:
            comment = ""
    return found


DEFAULTS = flat(Config())
SHIPPED = flat(load(FOLDER / "appliance.toml"))


def test_every_key_is_there_with_a_comment() -> None:
    assert documented().keys() == DEFAULTS.keys()
    assert [key for key, comment in documented().items() if len(comment) < 15] == []


@pytest.mark.parametrize("key", sorted(DEFAULTS.keys() - REQUIRED_IN_PRODUCTION))
def test_the_shown_value_is_the_default(key: str) -> None:
    assert SHIPPED[key] == DEFAULTS[key]


def test_only_keys_without_a_default_are_commented_out() -> None:
    given = tomllib.loads(TEXT)
    assigned = {name for name, value in given.items() if not isinstance(value, dict)}
    assigned |= {f"{name}.{key}" for name, value in given.items() if isinstance(value, dict) for key in value}
    assert {key for key in DEFAULTS if key not in assigned} == {
        key for key, value in DEFAULTS.items() if value is None and key not in REQUIRED_IN_PRODUCTION
    }


def test_the_commented_keys_are_valid_when_uncommented(tmp_path: Path) -> None:
    uncommented = re.sub(r"(?m)^# (\w+ = )", r"\1", TEXT)
    for name in ("tls.crt", "tls.key", "clients.crt", "root.key", "residency.toml"):
        (tmp_path / name).touch()
    path = tmp_path / "appliance.toml"
    path.write_text(uncommented.replace("/etc/appliance/", ""))
    assert load(path).health.gpus == 2


def test_the_reloadable_keys_say_so() -> None:
    assert {key for key, comment in documented().items() if "(reload)" in comment} == RELOADABLE


def test_the_residency_example_is_valid_with_its_destination_too(tmp_path: Path) -> None:
    assert load_residency(FOLDER / "residency.toml").country == "CZ"
    path = tmp_path / "residency.toml"
    text = (FOLDER / "residency.toml").read_text()
    path.write_text(re.sub(r"(?m)^# (\[\[|\w+ = )", r"\1", text))
    assert [destination.name for destination in load_residency(path).destinations] == ["shop photos"]
