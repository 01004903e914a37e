"""Words to commands, exit codes, and what --json promises, without a daemon and without its imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli import main

CONFIG = """\
profile = "demo"
state = "."
[api]
listen = ["127.0.0.1:0"]
[operator]
listen = "127.0.0.1:0"
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "appliance.toml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["customer"],
        ["customer", "add"],
        ["token", "add"],
        ["token", "rotate", "x", "--overlap-seconds", "soon"],
        ["bundle", "build", "efficientnet-lite0"],
        ["status", "--unknown"],
        ["agreement", "sign", "acme"],
        ["grant", "request", "acme", "--reason", "x"],
        ["grant", "request", "acme", "--dataset", "Default", "--image", "x", "--reason", "x"],
        ["audit", "list", "--after", "yesterday"],
        ["audit", "export"],
        ["key", "rotate"],
        ["key", "rotate", "container", "acme"],
    ],
)
def test_words_that_make_no_command_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "usage: appliance" in said.err
    assert main([*words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "usage"


@pytest.mark.parametrize("where", ["before", "after"])
def test_status_without_a_daemon_exits_69(
    where: str, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", str(config_file), "--json"]
    assert main([*options, "status"] if where == "before" else ["status", *options]) == 69
    said = capsys.readouterr()
    refusal = json.loads(said.out)
    assert set(refusal) == {"error", "reason"}
    assert refusal["error"] == "unavailable"
    assert str(config_file.parent) in refusal["reason"]
    assert refusal["reason"] in said.err


def test_a_missing_config_exits_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "absent.toml"), "check-config", "--json"]) == 78
    refusal = json.loads(capsys.readouterr().out)
    assert refusal["error"] == "config_invalid"
    assert "absent.toml" in refusal["reason"]


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["bundle", "--help"], ["token", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
    said = capsys.readouterr().out
    for verb in ("serve", "check-config", "status", "build", "install", "rotate", "revoke"):
        assert verb in said


def test_a_usage_error_loads_no_part() -> None:
    """A typing mistake must answer at once, and `--help` must work where a dependency is broken."""
    program = """
import sys
from appliance.cli import main
code = main(["token", "ad"])
heavy = {"aiohttp", "numpy", "apsw", "pydantic", "cryptography", "onnxruntime", "uvloop"} & set(sys.modules)
sys.exit(f"{code} {sorted(heavy)}" if heavy or code != 2 else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
