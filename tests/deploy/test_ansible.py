"""The roles hold together: choices, defaults, rendered files, and the example inventory."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance import config, residency
from tests.deploy.playing import ANSIBLE, Variables, play, run

ROLES = ("luks_volume", "appliance", "firewall")
HOSTILE = [
    'a "quoted" name',
    "C:\\new\\table",
    "two\nlines\tand a tab",
    "Žižkov, naïve 東京 🏢",
    "'single' # no comment",
    "[not.a.table]\nprofile = 'demo'",
    "${HOME} $(id) `id` %s %(name)s",
    "trailing backslash \\",
    "\x01 control",
]


def role_file(role: str, path: str) -> Any:
    return yaml.safe_load((ANSIBLE / "roles" / role / path).read_text())


def options(role: str) -> dict[str, Any]:
    found = role_file(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variables]:
    """Variables by host, as Ansible reads the example inventory."""
    told = run(
        tmp_path_factory.mktemp("example"),
        "ansible-inventory",
        "-i",
        str(ANSIBLE / "inventory.example"),
        "--list",
    )
    assert told.code == 0, told.output
    hosts = json.loads(told.output)["_meta"]["hostvars"]
    assert isinstance(hosts, dict)
    return hosts


def test_countries_are_those_of_the_eu_rule() -> None:
    choices = options("appliance")["appliance_residency"]["options"]["country"]["choices"]
    assert sorted(choices) == sorted(residency.EU | residency.EEA_ONLY)


def test_every_residency_key_can_be_declared() -> None:
    declared = options("appliance")["appliance_residency"]["options"]
    assert set(declared) == set(residency.declaration._File.model_fields)
    destination = declared["destinations"]["options"]
    assert set(destination) == set(residency.Destination.model_fields)
    needed = {name for name, field in residency.Destination.model_fields.items() if field.is_required()}
    assert {name for name, one in destination.items() if one.get("required")} == needed


@pytest.mark.parametrize("role", ROLES)
def test_defaults_are_as_the_specification_says(role: str) -> None:
    path = ANSIBLE / "roles" / role / "defaults/main.yml"
    defaults = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
    declared = {name: spec["default"] for name, spec in options(role).items() if "default" in spec}
    unset = {name for name, value in defaults.items() if value is None}
    assert {name: value for name, value in defaults.items() if name not in unset} == declared
    assert unset <= {name for name, spec in options(role).items() if not spec.get("required")}


@pytest.mark.parametrize(
    ("role", "name"),
    [("appliance", "appliance_root_key"), ("luks_volume", "luks_volume_recovery_passphrase")],
)
def test_secrets_are_declared_as_secrets(role: str, name: str) -> None:
    assert options(role)[name]["no_log"] is True


def test_example_inventory_has_what_the_roles_need_and_nothing_unknown(
    example: dict[str, Variables], tmp_path: Path
) -> None:
    known = {name for role in ROLES for name in options(role)}
    needed = {name for role in ROLES for name, spec in options(role).items() if spec.get("required")}
    assert example
    for variables in example.values():
        own = {name for name in variables if not name.startswith("ansible_")}
        assert own <= known
        assert needed <= own | {"luks_volume_device"}


def test_example_inventory_is_taken_by_the_roles_specifications(
    example: dict[str, Variables], tmp_path: Path
) -> None:
    tasks = [
        {
            "ansible.builtin.validate_argument_spec": {
                "argument_spec": {
                    n: s for n, s in options(role).items() if s.get("required") or n in variables
                },
                "provided_arguments": {n: variables[n] for n in options(role) if n in variables},
            }
        }
        for variables in example.values()
        for role in ROLES
        if role != "luks_volume" or "luks_volume_device" in variables
    ]
    book = tmp_path / "validate.yml"
    book.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    played = play(tmp_path, {"example": {}}, book)
    assert played.code == 0, played.output


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files, rendered from texts that a careless template breaks on."""
    folder = tmp_path_factory.mktemp("rendered")
    inventory: Variables = {
        "appliance_archive": "appliance-1.0-0123456789ab-cpu-cp311-x86_64.tar",
        "appliance_device": "cpu",
        "appliance_listen": ["0.0.0.0:8443", "[::]:8443"],
        "appliance_public_url": 'https://vision.example.com/a"b\\c',
        "appliance_settings": {
            "operator": {"group": HOSTILE[0] + HOSTILE[1]},
            "health": {"gpus": 2, "gpu_seconds": 0.5},
            "log": {"level": "debug"},
            "api": {"listen": ["203.0.113.1:1"], "max_body_bytes": 2048},
        },
        "appliance_residency": {
            "site": HOSTILE[0],
            "country": "NO",
            "eea": True,
            "clients": ["10.0.0.0/8", "2001:db8::/32"],
            "destinations": [
                {
                    "name": text,
                    "host": "198.51.100.7",
                    "cidrs": ["198.51.100.7/32", "2001:db8::7/128"],
                    "port": 6514,
                    "country": "CZ",
                    "purpose": text,
                }
                for text in HOSTILE
            ],
        },
    }
    book = folder / "render.yml"
    role = ANSIBLE / "roles/appliance"
    tasks = [
        {
            "ansible.builtin.template": {
                "src": f"{role}/templates/{name}.toml.j2",
                "dest": f"{folder}/{name}.toml",
                "mode": "0600",
            }
        }
        | {"check_mode": False}
        for name in ("appliance", "residency")
    ]
    files = [f"{role}/vars/main.yml"]
    book.write_text(
        yaml.safe_dump([{"hosts": "all", "gather_facts": False, "vars_files": files, "tasks": tasks}])
    )
    played = play(folder, {"server": inventory}, book)
    assert played.code == 0, played.output
    return folder


def test_configuration_says_what_the_inventory_says(rendered: Path) -> None:
    settings, findings = config.read(rendered / "appliance.toml")
    # The files that it names are on a server, not here.
    assert {key for key, reason in findings if reason == "there is no such file"} == {
        key for key, _ in findings
    }
    assert settings.profile == "production"
    assert settings.state == Path("/var/lib/appliance")
    assert settings.residency == Path("/etc/appliance/residency.toml")
    assert settings.api.public_url == 'https://vision.example.com/a"b\\c'
    assert settings.operator.group == HOSTILE[0] + HOSTILE[1]
    assert settings.operator_socket == Path("/run/appliance/operator.sock")
    assert (settings.health.gpus, settings.health.gpu_seconds) == (2, 0.5)
    assert settings.log.level == "debug"
    assert settings.api.max_body_bytes == 2048


def test_settings_do_not_undo_what_the_role_decides(rendered: Path) -> None:
    settings, _ = config.read(rendered / "appliance.toml")
    assert settings.api.listen == ("0.0.0.0:8443", "[::]:8443")
    assert settings.api.tls_key == Path("/etc/appliance/tls.key")
    assert settings.recognition.device == "cpu"


def test_residency_file_says_what_the_inventory_says(rendered: Path) -> None:
    declared = residency.load(rendered / "residency.toml")
    assert (declared.site, declared.country, declared.eea) == (HOSTILE[0], "NO", True)
    assert [str(network) for network in declared.clients] == ["10.0.0.0/8", "2001:db8::/32"]
    assert [one.name for one in declared.destinations] == HOSTILE
    assert [one.purpose for one in declared.destinations] == HOSTILE


def test_only_what_a_reload_applies_is_reloaded(tmp_path: Path) -> None:
    """By the lines that differ; the keys are those that the daemon takes without a restart."""
    per_minute = {f"api.{what}_per_minute" for what in ("failed_tokens", "requests", "bytes")}
    assert {"api.max_connections_per_address", "log.level", *per_minute} == config.RELOADABLE
    old = '[api]\nlisten = ["127.0.0.1:1"]\nmax_connections_per_address = 64\n\n[log]\nlevel = "info"\n'
    cases = {
        "level": (old, old.replace("info", "debug"), True),
        "rates": (
            old.replace("64", "64\nbytes_per_minute = 0"),
            old.replace("64", "64\nbytes_per_minute = 9"),
            True,
        ),
        "both": (old, old.replace("info", "debug").replace("64", "8"), True),
        "listen": (old, old.replace(":1", ":2"), False),
        "level-and-listen": (old, old.replace(":1", ":2").replace("info", "debug"), False),
        "a-key-less": (old, old.replace('listen = ["127.0.0.1:1"]\n', ""), False),
        "first": ("", old, False),
        "nothing": (old, old, True),
        "a-section-more": (old.partition("\n[log]")[0], old, True),
    }
    hosts: dict[str, Variables] = {
        name: {
            "appliance_configuration": {"diff": [{"before": before, "after": after}]},
            "expected": expected,
            "changed": before != after,
        }
        for name, (before, after, expected) in cases.items()
    }
    hosts["no-diff"] = {"appliance_configuration": {"skipped": True}, "expected": True, "changed": False}
    book = tmp_path / "judge.yml"
    files = [str(ANSIBLE / "roles/appliance/vars/main.yml")]
    claims = ["appliance_reload_is_enough == expected", "(appliance_changed_lines | length > 0) == changed"]
    task = {"ansible.builtin.assert": {"that": claims}}
    book.write_text(
        yaml.safe_dump([{"hosts": "all", "gather_facts": False, "vars_files": files, "tasks": [task]}])
    )
    played = play(tmp_path, hosts, book)
    assert played.code == 0, played.output
