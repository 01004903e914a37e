"""`residency render` and `verify`: of the files alone, without a daemon and whatever the machine is like."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.cli import main
from appliance.vault import Keys, enveloped

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


@pytest.fixture
def report(tmp_path: Path) -> tuple[Path, Path]:
    """A report and its key, as they came from some appliance."""
    keys = Keys(bytes(range(32)))
    predicate = {
        "made_at": "2027-01-15T08:00:00.000+00:00",
        "appliance": {"public_key": keys.public("node")},
        "verdict": "broken",
        "findings": [{"severity": "refuse", "key": "swap", "message": "/dev/sdb is plain"}],
        "declared": {"site": "here", "country": "CZ"},
        "connections": {
            "since": "2027-01-15T07:00:00.000+00:00",
            "by_destination": [
                {
                    "destination": "shop",
                    "allowed": 5,
                    "refused": 1,
                    "sent_bytes": 0,
                    "received_bytes": 9,
                    "seconds": 1.5,
                }
            ],
        },
    }
    file, key = tmp_path / "report", tmp_path / "report.pub"
    file.write_bytes(enveloped(keys, "node", "urn:appliance:residency:v1", predicate, {"a": "b"}))
    key.write_text(keys.public("node") + "\n")
    return file, key


def test_a_report_is_proven_by_two_files_alone(
    report: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", "/nowhere", "residency", "verify", *map(str, report)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "here, CZ: broken" in told
    assert "/dev/sdb is plain" in told
    assert "shop" in told
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["valid"], document["statement"]["predicate"]["verdict"]) == (True, "broken")


@given(st.data())
@settings(
    derandomize=True,
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_flipped_bit_in_either_file_exits_1(report: tuple[Path, Path], data: st.DataObject) -> None:
    changed = data.draw(st.sampled_from(report))
    before = changed.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    after = bytearray(before)
    after[bit // 8] ^= 1 << bit % 8
    changed.write_bytes(after)
    try:
        assert main(["residency", "verify", *map(str, report)]) == 1
    finally:
        changed.write_bytes(before)


def test_what_else_is_not_proven_exits_1_with_the_reason(
    report: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file, key = report
    for content in (b"", b"{}", file.read_bytes() + b"\n", b"\xff" * 100):
        file.with_name("other").write_bytes(content)
        assert main(["residency", "verify", str(file.with_name("other")), str(key), "--json"]) == 1
        said = capsys.readouterr()
        assert json.loads(said.out)["error"] == "not_proven"
        assert "other: it is no" in said.err
    for content in (b"", key.read_bytes() * 2, key.read_bytes().strip(), b"\xff\n"):
        file.with_name("other").write_bytes(content)
        assert main(["residency", "verify", str(file), str(file.with_name("other"))]) == 1
        assert "is no public key" in capsys.readouterr().err
    assert main(["residency", "verify", str(file), str(file.with_name("absent"))]) == 1
    assert "absent: No such file" in capsys.readouterr().err
