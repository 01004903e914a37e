"""`residency render` and `verify`: of the files alone, without a daemon and whatever the machine is like."""

import json
from pathlib import Path

import pytest

from appliance.cli import main

CONFIG = """\
profile = "production"
state = "/proc/no/state/can/be/made/here"
residency = "residency.toml"
[api]
listen = ["0.0.0.0:8443", "[::]:9443", "127.0.0.1:8080"]
public_url = "https://vision.example.com"
tls_certificate = "tls.crt"
tls_key = "tls.key"
"""
RESIDENCY = """\
site = "here"
country = "CZ"
[[clients]]
cidr = "10.0.0.0/8"
[[clients]]
cidr = "10.1.0.0/16"
[[clients]]
cidr = "2001:db8::/32"
[[destinations]]
name = "log host"
host = "log.example.cz"
cidrs = ["192.0.2.7/32", "2001:db8:7::/64"]
port = 6514
country = "CZ"
purpose = "log forwarding"
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "residency.toml").write_text(RESIDENCY)
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).touch()
    path = tmp_path / "appliance.toml"
    path.write_text(CONFIG)
    return path


def test_rules_name_every_declared_network_and_public_port(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(config_file), "residency", "render", "--nftables"]
    assert main(words) == 0
    rules = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert 'meta skuid "appliance" jump from_service' in rules
    assert "tcp dport { 8443, 9443 } jump to_service" in rules
    assert "ip saddr { 10.0.0.0/8 } accept" in rules
    assert "ip6 saddr { 2001:db8::/32 } accept" in rules
    assert "ip daddr { 192.0.2.7/32 } tcp dport 6514 accept" in rules
    assert "ip6 daddr { 2001:db8:7::/64 } tcp dport 6514 accept" in rules
    assert main([*words, "--json", "--user", "4711"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"nftables"}
    assert 'meta skuid "4711" jump from_service' in document["nftables"]


def test_the_drop_in_allows_what_is_declared(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config_file), "residency", "render", "--systemd", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"systemd"}
    assert document["systemd"].splitlines()[1:] == [
        "[Service]",
        "IPAddressAllow=10.0.0.0/8",
        "IPAddressAllow=192.0.2.7/32",
        "IPAddressAllow=2001:db8::/32",
    ]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--nftables", "--systemd"],
        ["--nftables", "--user", 'a" accept #'],
        ["--nftables", "--user", ""],
    ],
)
def test_words_that_render_nothing(
    words: list[str], config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config_file), "residency", "render", *words]) == 2
    assert capsys.readouterr().out == ""


def test_findings_of_both_files_come_at_once(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_file.write_text(CONFIG.replace("https:", "http:").replace("tls.key", "absent.key"))
    residency = config_file.with_name("residency.toml")
    residency.write_text(RESIDENCY.replace('country = "CZ"\n[[clients]]', 'country = "US"\n[[clients]]'))
    for verb in (["render", "--nftables"], ["render", "--systemd"], ["verify"]):
        assert main(["--config", str(config_file), "residency", *verb]) == 78
        said = capsys.readouterr()
        assert said.out == ""
        for key in ("api.public_url", "api.tls_key", f'{residency}: country: "US"'):
            assert key in said.err


def test_rules_under_which_nobody_could_connect_are_refused(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file.with_name("residency.toml").write_text('site = "here"\ncountry = "CZ"\n')
    assert main(["--config", str(config_file), "residency", "render", "--nftables"]) == 78
    assert "nobody may connect" in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["demo", "production"])
def test_without_a_residency_file_there_is_nothing_to_render(
    profile: str, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CONFIG.replace('residency = "residency.toml"\n', "").replace("production", profile)
    config_file.write_text(text.replace("0.0.0.0", "127.0.0.1").replace('"[::]:9443", ', ""))
    assert main(["--config", str(config_file), "residency", "render", "--nftables"]) == 78
    assert "residency" in capsys.readouterr().err


def test_a_file_is_verified_before_it_is_anybody_s(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file.with_name("residency.toml")
    assert main(["--config", "/nowhere", "residency", "verify", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "site": "here", "country": "CZ"}
    file.write_text('site = "here"\ncountry = "US"\n')
    assert main(["--config", "/nowhere", "residency", "verify", str(file)]) == 78
    assert 'country: "US"' in capsys.readouterr().err
