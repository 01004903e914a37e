"""appliance.toml: types, every finding at once, the two profiles, what a reload may change."""

from pathlib import Path

import pytest

from appliance import config as settings
from appliance.config import Config, Section, is_loopback, listen_address, load, locate, restart_needed
from appliance.errors import ConfigInvalid

PUBLIC = """
residency = "residency.toml"
[api]
listen = ["192.0.2.1:443"]
public_url = "https://vision.example.com"
"""
TLS = """
tls_certificate = "tls.crt"
tls_key = "tls.key"
"""


def write(folder: Path, text: str) -> Path:
    for name in ("residency.toml", "tls.crt", "tls.key"):
        (folder / name).touch()
    path = folder / "appliance.toml"
    path.write_text(text)
    return path


def findings(folder: Path, text: str) -> list[str]:
    path = write(folder, text)
    with pytest.raises(ConfigInvalid) as refused:
        load(path)
    assert all(finding.startswith(f"{path}: ") for finding in refused.value.findings)
    return [finding.removeprefix(f"{path}: ") for finding in refused.value.findings]


def test_a_demo_needs_only_its_profile(tmp_path: Path) -> None:
    config = load(write(tmp_path, 'profile = "demo"'))
    assert config == Config(profile="demo")


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 'profile = "demo"\nstate = "here"\n[operator]\nsocket = "/run/there.sock"')
    monkeypatch.chdir(tmp_path)
    config = load(Path("appliance.toml"))
    assert config.state == tmp_path / "here"
    assert config.operator_socket == Path("/run/there.sock")


def test_the_operator_socket_lies_in_the_state_folder_by_default() -> None:
    assert Config(state=Path("/s")).operator_socket == Path("/s/operator.sock")


def test_every_finding_comes_at_once(tmp_path: Path) -> None:
    text = """
    colour = "blue"
    [api]
    listen = ["192.0.2.1:443", "nowhere"]
    tls_key = "tls.key"
    [recognition]
    device = "tpu"
    threads = 0
    max_batch = "8"
    [search]
    ef_construction = 4
    [vault]
    root_key = "absent.key"
    [log]
    level = 3
    """
    assert {finding.split(": ")[0] for finding in findings(tmp_path, text)} == {
        "colour",
        "api.listen.0",
        "api.listen.1",
        "api.tls_certificate",
        "api.public_url",
        "recognition.device",
        "recognition.threads",
        "recognition.max_batch",
        "search.ef_construction",
        "vault.root_key",
        "log.level",
        "residency",
    }


def test_an_engine_that_is_not_installed_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'profile = "demo"\n[search]\nengine = "faiss"'
    assert load(write(tmp_path, text)).search.engine == "faiss"
    monkeypatch.setattr(settings, "find_spec", lambda _: None)
    (finding,) = findings(tmp_path, text)
    assert finding.startswith("search.engine: faiss is not installed: pip install")
    assert findings(tmp_path, text.replace("faiss", "other"))[0].startswith("search.engine: ")


def test_a_path_that_cannot_be_looked_at_is_a_finding(tmp_path: Path) -> None:
    name = "x" * 300
    for key in ("residency", "vault.root_key"):
        (finding,) = findings(tmp_path, f'profile = "demo"\n{key} = "{name}"\n')
        assert finding == f"{key}: cannot be looked at: File name too long"


NUMBERS = [
    (name, key)
    for name, section in Config()
    if isinstance(section, Section)
    for key, field in type(section).model_fields.items()
    if field.annotation in {int, float, int | None}
]


def test_every_section_with_numbers_is_walked() -> None:
    assert {name for name, _ in NUMBERS} == {
        "api",
        "recognition",
        "requests",
        "search",
        "datasets",
        "health",
        "lifecycle",
    }


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "-1", f"{10**30}", "1e30"])
@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_a_number_that_nothing_could_hold_is_a_finding(
    tmp_path: Path, name: str, key: str, number: str
) -> None:
    found = findings(tmp_path, f'profile = "demo"\n[{name}]\n{key} = {number}')
    assert [finding.split(": ")[0] for finding in found] == [f"{name}.{key}"]


@pytest.mark.parametrize(
    "text",
    [
        'profile = "s3cret"',
        'profile = "demo"\ns3cret_key = "x"',
        '[api]\npublic_url = "https://me:s3cret@example.com"',
        '[api]\npublic_url = "https://me:s3cret"',
        '[api]\npublic_url = "https://example.com/?s3cret"',
        '[api]\nlisten = ["s3cret"]',
        '[log]\nlevel = "s3cret"',
        '[vault]\nroot_key = ["s3cret"]',
        'state = "s3cret',
    ],
)
def test_a_value_is_never_repeated(tmp_path: Path, text: str) -> None:
    for finding in findings(tmp_path, text):
        assert "s3cret" not in finding.replace("s3cret_key", "")


def test_syntax_errors_say_where(tmp_path: Path) -> None:
    assert "line 2" in findings(tmp_path, 'profile = "demo"\nstate = =')[0]


def test_a_missing_file_is_a_finding(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="No such file"):
        load(tmp_path / "appliance.toml")


def test_bytes_that_are_not_text_are_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "appliance.toml"
    path.write_bytes(b'profile = "\xff"')
    with pytest.raises(ConfigInvalid, match="not UTF-8 at byte 11"):
        load(path)


def test_a_section_that_is_no_table_is_a_finding(tmp_path: Path) -> None:
    assert [finding.split(": ")[0] for finding in findings(tmp_path, 'profile = "demo"\napi = 3')] == ["api"]


def test_production_refuses_a_public_listener_without_tls(tmp_path: Path) -> None:
    assert findings(tmp_path, PUBLIC) == [
        "api.listen.0: is public and needs api.tls_certificate and api.tls_key"
    ]
    assert load(write(tmp_path, PUBLIC + TLS)).api.tls_key == tmp_path / "tls.key"


def test_production_needs_residency_and_a_public_https_address(tmp_path: Path) -> None:
    assert {finding.split(": ")[0] for finding in findings(tmp_path, "")} == {"residency", "api.public_url"}
    plain = PUBLIC.replace("https:", "http:") + TLS
    assert findings(tmp_path, plain) == ["api.public_url: must begin with https://"]


def test_production_keeps_the_plain_operator_listener_on_loopback(tmp_path: Path) -> None:
    text = PUBLIC + TLS + '[operator]\nlisten = "0.0.0.0:9464"'
    assert findings(tmp_path, text) == ["operator.listen: has no TLS and must be on loopback"]


@pytest.mark.parametrize("listener", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[2001:db8::1]:1"])
@pytest.mark.parametrize("key", ["api", "operator"])
def test_a_demo_listens_on_loopback_only(tmp_path: Path, key: str, listener: str) -> None:
    value = f'["{listener}"]' if key == "api" else f'"{listener}"'
    found = findings(tmp_path, f'profile = "demo"\n[{key}]\nlisten = {value}')
    assert len(found) == 1
    assert found[0].endswith("a demo listens on loopback only")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_listen_addresses(text: str, address: tuple[str, int]) -> None:
    assert listen_address(text) == address
    assert is_loopback(text)


@pytest.mark.parametrize(
    "text",
    ["", ":80", "80", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:-1", "::1:80", "[127.0.0.1]:80", "a.b:1"],
)
def test_what_is_no_listen_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|needs)"):
        listen_address(text)


def test_a_reload_may_change_limits_and_the_log_level() -> None:
    old = Config.model_validate({"api": {"max_connections_per_address": 1}, "log": {"level": "info"}})
    new = Config.model_validate({"api": {"max_connections_per_address": 2}, "log": {"level": "debug"}})
    assert restart_needed(old, new) == []


def test_a_reload_names_what_it_may_not_change() -> None:
    old = Config()
    new = Config.model_validate(
        {"state": "/elsewhere", "api": {"listen": ["127.0.0.1:1"]}, "search": {"m": 8}}
    )
    assert restart_needed(old, new) == ["api.listen", "search.m", "state"]


def test_the_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().api.keep_alive_seconds = 1  # type: ignore[misc]


def test_a_daemon_is_found_whatever_else_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "appliance.toml"
    file.write_text('profil = "demo"\nstate = "here"\n[operator]\nsocket = "run/op.sock"\nlisten = 7\n')
    assert locate(file) == (tmp_path / "here", tmp_path / "run/op.sock")
    file.write_text('state = "here"\noperator = 3\n')
    with pytest.raises(ConfigInvalid):
        locate(file)
    file.write_text("state = 3\nprofil = 1\n")
    with pytest.raises(ConfigInvalid) as refused:
        locate(file)
    assert len(refused.value.findings) >= 2
