"""The EU rule: the file, who may connect, and what production refuses."""

import hashlib
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config import Config
from appliance.errors import ConfigInvalid
from appliance.residency import (
    EEA_ONLY,
    EU,
    SPECIAL,
    Facts,
    Network,
    Residency,
    examine,
    load,
    reachable,
    verify,
)
from appliance.volume import Encryption, SwapFacts, VolumeFacts

HEAD = 'site = "Prague"\ncountry = "CZ"\ncontroller = "Shop"\nprocessor = "Shop"\n'
DESTINATION = """
[[destinations]]
name = "syslog"
host = "syslog.example.cz"
cidrs = ["10.30.0.7/32", "2001:db8::/64"]
port = 6514
country = "CZ"
purpose = "log forwarding"
"""


BACKUPS = '\n[[backups]]\nname = "tapes"\npath = "/mnt/backups"\ncountry = "CZ"\n'
LUKS = "3f0c2a4e-6f1b-4a7e-9d55-0b8e1c2d3f4a"
VOLUME = f'\n[[volumes]]\nname = "data"\nluks = "{LUKS}"\ncountry = "CZ"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "residency.toml"
    path.write_text(text)
    return path


def findings(folder: Path, text: str) -> list[str]:
    path = write(folder, text)
    with pytest.raises(ConfigInvalid) as refused:
        load(path)
    assert all(finding.startswith(f"{path}: ") for finding in refused.value.findings)
    return [finding.removeprefix(f"{path}: ") for finding in refused.value.findings]


def clients(folder: Path, *networks: str) -> Residency:
    return load(
        write(folder, HEAD + VOLUME + "".join(f'[[clients]]\ncidr = "{network}"\n' for network in networks))
    )


def test_a_whole_file(tmp_path: Path) -> None:
    residency = load(write(tmp_path, HEAD + DESTINATION + '[[clients]]\ncidr = "10.0.0.0/8"\n'))
    assert (residency.site, residency.country, residency.eea) == ("Prague", "CZ", False)
    assert residency.destinations[0].port == 6514
    assert [str(network) for network in residency.destinations[0].cidrs] == ["10.30.0.7/32", "2001:db8::/64"]
    assert [str(network) for network in residency.clients] == ["10.0.0.0/8"]


def test_the_union_has_27_members() -> None:
    assert len(EU) == 27
    assert not EU & EEA_ONLY


@pytest.mark.parametrize("country", sorted(EU))
def test_members_are_allowed(tmp_path: Path, country: str) -> None:
    assert load(write(tmp_path, f'site = "a"\ncountry = "{country}"')).country == country


@pytest.mark.parametrize("country", ["US", "GB", "CH", "UK", "EL", "cz", "CZE", "", "EU", "Česko"])
@pytest.mark.parametrize("eea", ["false", "true"])
def test_others_are_refused_by_name(tmp_path: Path, country: str, eea: str) -> None:
    found = findings(tmp_path, f'site = "a"\ncountry = "{country}"\neea = {eea}')
    assert len(found) == 1
    assert found[0].startswith(f'country: "{country}": is not a country of ')


@pytest.mark.parametrize("country", sorted(EEA_ONLY))
def test_the_eea_is_a_switch(tmp_path: Path, country: str) -> None:
    text = f'site = "a"\ncountry = "{country}"\n'
    assert "eea = true" in findings(tmp_path, text)[0]
    assert load(write(tmp_path, text + "eea = true")).country == country


def test_a_destination_abroad_is_refused(tmp_path: Path) -> None:
    found = findings(tmp_path, HEAD + DESTINATION.replace('"CZ"', '"US"'))
    assert [finding.split(": ")[:2] for finding in found] == [["destinations.0.country", '"US"']]


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ('contry = "DE"', "contry", '"DE"'),
        ('eea = "yes"', "eea", '"yes"'),
        ("eea = 1", "eea", "1"),
        ('[[clients]]\ncidr = "10.0.0.1/8"', "clients.0.cidr", '"10.0.0.1/8"'),
        ('[[clients]]\ncidr = "everyone"', "clients.0.cidr", '"everyone"'),
        ("[[clients]]\ncidr = 7", "clients.0.cidr", "7"),
        ('[[clients]]\ncidr = "10.0.0.0/8"\ncountry = "US"', "clients.0.country", '"US"'),
        (DESTINATION.replace("6514", "65536"), "destinations.0.port", "65536"),
        (DESTINATION.replace("6514", '"6514"'), "destinations.0.port", '"6514"'),
        (DESTINATION.replace("syslog.example.cz", "http://x"), "destinations.0.host", '"http://x"'),
        (DESTINATION.replace('"10.30.0.7/32", "2001:db8::/64"', ""), "destinations.0.cidrs", "[]"),
        (DESTINATION + 'zone = "eu"', "destinations.0.zone", '"eu"'),
        (DESTINATION + "hourly_bytes = 0", "destinations.0.hourly_bytes", "0"),
        (DESTINATION + "hourly_seconds = -1.5", "destinations.0.hourly_seconds", "-1.5"),
        (VOLUME.replace("3f0c", "3f0"), "volumes.0.luks", f'"{LUKS.replace("3f0c", "3f0")}"'),
        (VOLUME.replace("CZ", "US"), "volumes.0.country", '"US"'),
        (BACKUPS.replace("/mnt", "mnt"), "backups.0.path", '"mnt/backups"'),
        (BACKUPS.replace("CZ", "GB"), "backups.0.country", '"GB"'),
        ('[[logs]]\nname = "a"\npurpose = "b"\ncountry = "CH"', "logs.0.country", '"CH"'),
    ],
)
def test_a_finding_names_file_key_and_value(tmp_path: Path, line: str, key: str, value: str) -> None:
    found = findings(tmp_path, HEAD + line)
    assert [finding.split(": ")[:2] for finding in found] == [[key, value]]


def test_every_finding_comes_at_once(tmp_path: Path) -> None:
    found = findings(tmp_path, 'country = "US"\ncontry = "DE"\n' + DESTINATION.replace('"CZ"', '"CH"'))
    assert {finding.split(": ")[0] for finding in found} == {
        "site",
        "country",
        "contry",
        "destinations.0.country",
    }


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    assert len(findings(tmp_path, HEAD + f'wrong = "{"x" * 10_000}"')[0]) < 300


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fe80::1%eth0", "2001:db8::5"])
def test_declared_clients_may_connect(tmp_path: Path, address: str) -> None:
    assert clients(tmp_path, "10.0.0.0/8", "fe80::/10", "2001:db8::/64").allows_client(address)


@pytest.mark.parametrize(
    "address",
    ["11.0.0.1", "::ffff:11.0.0.1", "2001:db8:0:1::5", "127.0.0.1", "::1", "", "localhost", "10.1.2"],
)
def test_nobody_else_may_connect(tmp_path: Path, address: str) -> None:
    assert not clients(tmp_path, "10.0.0.0/8", "fe80::/10", "2001:db8::/64").allows_client(address)


def facts(encryption: Encryption = "luks", swap: Encryption | None = None, core_limit: int = 0) -> Facts:
    volume = VolumeFacts(
        mount=Path("/srv"),
        filesystem="ext4",
        encryption=encryption,
        read_only=False,
        free_bytes=1,
        total_bytes=2,
        free_inodes=3,
        luks=(LUKS,) if encryption == "luks" else (),
    )
    return Facts(volume, () if swap is None else (SwapFacts("/dev/sdz9", swap),), core_limit)


PRODUCTION = Config.model_validate(
    {"residency": "/r.toml", "api": {"public_url": "https://vision.example.com"}}
)


def test_a_sound_production_machine_has_no_finding(tmp_path: Path) -> None:
    assert verify(PRODUCTION, clients(tmp_path, "10.0.0.0/8"), facts()) == []


@pytest.mark.parametrize(
    ("machine", "key"),
    [
        (facts(encryption="plain"), "state"),
        (facts(encryption="unknown"), "state"),
        (facts(encryption="volatile"), "state"),
        (facts(encryption="dm-crypt"), "state"),
        (facts(swap="plain"), "swap"),
        (facts(swap="unknown"), "swap"),
        (facts(core_limit=-1), "core_dumps"),
        (facts(core_limit=4096), "core_dumps"),
    ],
)
def test_a_machine_that_leaks_is_refused_in_production_only(tmp_path: Path, machine: Facts, key: str) -> None:
    residency = clients(tmp_path, "10.0.0.0/8")
    demo = PRODUCTION.model_copy(update={"profile": "demo"})
    assert [(f.severity, f.key) for f in verify(PRODUCTION, residency, machine)] == [("refuse", key)]
    assert [(f.severity, f.key) for f in verify(demo, residency, machine)] == [("warn", key)]


@pytest.mark.parametrize("swap", ["luks", "dm-crypt", "volatile"])
def test_swap_that_keeps_secrets_is_allowed(tmp_path: Path, swap: Encryption) -> None:
    assert verify(PRODUCTION, clients(tmp_path, "10.0.0.0/8"), facts(swap=swap)) == []


def test_the_message_names_volume_and_reason(tmp_path: Path) -> None:
    (finding,) = verify(PRODUCTION, clients(tmp_path, "10.0.0.0/8"), facts(encryption="plain"))
    assert "/srv (ext4), which is plain" in finding.message


def test_a_file_that_changed_is_told_of_and_one_that_no_start_would_take_is_refused(tmp_path: Path) -> None:
    declared = clients(tmp_path, "10.0.0.0/8")
    file = tmp_path / "residency.toml"

    def found(profile: str = "production") -> list[tuple[str, str]]:
        machine = replace(facts(), file=examine(tmp_path, file).file)
        config = PRODUCTION.model_copy(update={"profile": profile})
        return [(one.severity, one.key) for one in verify(config, declared, machine)]

    assert found() == []
    sound = file.read_text()
    file.write_text(sound + DESTINATION)
    assert found() == [("warn", "residency")]
    for broken in (sound.replace("CZ", "US"), "not TOML", ""):
        file.write_text(broken)
        assert found() == found("demo") == [("refuse", "residency")]
    file.unlink()
    assert found() == [("refuse", "residency")]
    file.write_text(sound)
    assert found() == []


def test_nobody_declared_is_a_finding(tmp_path: Path) -> None:
    assert [finding.key for finding in verify(PRODUCTION, clients(tmp_path), facts())] == ["clients"]


def test_a_bare_demo_is_warned_of_everything_it_lacks(tmp_path: Path) -> None:
    machine = replace(facts(encryption="plain", swap="plain"), core_limit=1)
    found = verify(Config(profile="demo"), None, machine)
    assert {finding.severity for finding in found} == {"warn"}
    assert {finding.key for finding in found} == {
        "residency",
        "api.public_url",
        "state",
        "swap",
        "core_dumps",
    }


def test_this_machine_can_be_examined(tmp_path: Path) -> None:
    found, nearest = examine(tmp_path / "not" / "there" / "yet").volume, examine(tmp_path).volume
    assert found.total_bytes > 0
    assert (found.mount, found.encryption) == (nearest.mount, nearest.encryption)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"10.30.0.7/32"', '"0.0.0.0/0"', "cidrs.0"),
        ('"10.30.0.7/32"', '"128.0.0.0/1"', "cidrs.0"),
        ('"10.30.0.7/32"', '"126.0.0.0/7"', "cidrs.0"),
        ('"2001:db8::/64"', '"::/0"', "cidrs.1"),
        ('"2001:db8::/64"', '"2000::/3"', "cidrs.1"),
        ('"2001:db8::/64"', '"f000::/4"', "cidrs.1"),
        ('"syslog.example.cz"', '"*"', "host"),
        ('"syslog.example.cz"', '"*.example.cz"', "host"),
    ],
)
def test_a_wildcard_is_refused_with_the_reason(tmp_path: Path, old: str, new: str, key: str) -> None:
    (found,) = findings(tmp_path, HEAD + DESTINATION.replace(old, new))
    assert found.startswith(f"destinations.0.{key}: {new}: is a wildcard")
    assert "country" in found


@pytest.mark.parametrize("networks", [["everywhere"], ["0.0.0.0/0"], ["everywhere", "10.0.0.1/8"]])
def test_networks_that_are_all_refused_are_found_once_each(tmp_path: Path, networks: list[str]) -> None:
    """And are not said to be missing as well."""
    cidrs = ", ".join(f'"{network}"' for network in networks)
    found = findings(tmp_path, HEAD + DESTINATION.replace('"10.30.0.7/32", "2001:db8::/64"', cidrs))
    keys = [f'destinations.0.cidrs.{place}: "{network}"' for place, network in enumerate(networks)]
    assert [": ".join(finding.split(": ")[:2]) for finding in found] == keys


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        ("169.254.169.254/32", "credentials"),
        ("100.100.100.200/32", "credentials"),
        ("fd00:ec2::254/128", "credentials"),
        ("169.254.0.0/16", "link-local"),
        ("169.254.7.0/24", "link-local"),
        ("fe80::/10", "link-local"),
        ("fe80::1/128", "link-local"),
        ("224.0.0.0/8", "multicast"),
        ("239.1.2.3/32", "multicast"),
        ("ff02::1/128", "multicast"),
        ("0.0.0.0/32", "unspecified"),
        ("0.0.0.0/8", "unspecified"),
        ("::/128", "unspecified"),
        ("255.255.255.255/32", "reserved"),
        ("64:ff9b::a9fe:a9fe/128", "credentials"),
        ("2002:a9fe:a9fe::/48", "credentials"),
        ("2002:e000::/24", "multicast"),
        ("64:ff9b::/96", "wildcard"),
        ("127.0.0.1/32", "local = true"),
        ("127.0.0.0/8", "local = true"),
        ("::1/128", "local = true"),
        ("64:ff9b::7f00:1/128", "local = true"),
    ],
)
def test_no_destination_is_declared_where_none_can_be(tmp_path: Path, network: str, kind: str) -> None:
    (found,) = findings(tmp_path, HEAD + DESTINATION.replace("10.30.0.7/32", network))
    assert found.startswith(f'destinations.0.cidrs.0: "{network}": is ')
    assert kind in found


def test_a_service_on_this_server_is_declared_as_one(tmp_path: Path) -> None:
    server = DESTINATION.replace("10.30.0.7/32", "127.0.0.53/32").replace("6514", "53") + "local = true\n"
    assert load(write(tmp_path, HEAD + server)).destinations[0].local
    (found,) = findings(tmp_path, HEAD + server.replace("127.0.0.53", "169.254.169.254"))
    assert "credentials" in found


def test_ipv4_in_ipv6_is_to_be_written_as_ipv4(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, HEAD + DESTINATION.replace("2001:db8::/64", "::ffff:10.0.0.0/104"))
    assert found.endswith("write it as IPv4")


def test_names_and_time_come_from_destinations_that_no_customer_leads_to(tmp_path: Path) -> None:
    for port in (53, 123):
        server = DESTINATION.replace("6514", str(port))
        assert load(write(tmp_path, HEAD + server)).destinations[0].port == port
        (found,) = findings(tmp_path, HEAD + server + 'uses = ["images"]')
        assert found.startswith("destinations.0.uses: ")
        assert "DNS or NTP" in found


def test_a_file_from_before_is_taken_and_what_it_leaves_unsaid_is_a_warning(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'site = "Prague"\ncountry = "CZ"\n[[clients]]\ncidr = "10.0.0.0/8"\n' + DESTINATION
    )
    found = verify(PRODUCTION, load(path), facts())
    assert {finding.severity for finding in found} == {"warn"}
    assert [finding.key for finding in found] == ["controller", "processor", "volumes"]
    assert LUKS in found[-1].message  # to be copied into the file


def test_what_is_declared_beside_destinations(tmp_path: Path) -> None:
    logs = '[[logs]]\nname = "journal"\ncountry = "CZ"\npurpose = "90 days"\n'
    residency = load(write(tmp_path, HEAD + VOLUME.replace(LUKS, LUKS.upper()) + BACKUPS + logs))
    assert (residency.controller, residency.processor) == ("Shop", "Shop")
    assert [volume.luks for volume in residency.volumes] == [LUKS]
    assert [sink.name for sink in residency.logs] == ["journal"]
    content = (tmp_path / "residency.toml").read_bytes()
    assert residency.sha256 == hashlib.sha256(content).hexdigest()
    commented = load(write(tmp_path, content.decode() + "# of today\n"))
    assert commented == residency
    assert commented.sha256 != residency.sha256


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (replace(facts().volume, luks=("0" * 8 + LUKS[8:],)), "00000000-"),
        (replace(facts().volume, luks=(LUKS, "0" * 8 + LUKS[8:])), "00000000-"),
        (replace(facts().volume, luks=()), "no LUKS volume"),
    ],
)
def test_another_volume_than_the_declared_one_is_refused(
    tmp_path: Path, machine: VolumeFacts, said: str
) -> None:
    (finding,) = verify(PRODUCTION, clients(tmp_path, "10.0.0.0/8"), replace(facts(), volume=machine))
    assert (finding.severity, finding.key) == ("refuse", "volumes")
    assert said in finding.message
    assert LUKS in finding.message


def test_clients_from_everywhere_are_told_of(tmp_path: Path) -> None:
    found = verify(PRODUCTION, clients(tmp_path, "0.0.0.0/0", "10.0.0.0/8"), facts())
    assert [(finding.severity, finding.key) for finding in found] == [("warn", "clients")]


def test_backups_stay_below_declared_folders(tmp_path: Path) -> None:
    declared, elsewhere = tmp_path / "declared", tmp_path / "elsewhere"
    declared.mkdir()
    elsewhere.mkdir()
    (declared / "out").symlink_to(elsewhere)
    residency = load(write(tmp_path, HEAD + BACKUPS.replace("/mnt/backups", str(declared))))
    for inside in (declared, declared / "not there yet" / "deep"):
        assert residency.allows_backup(inside)
    for outside in (elsewhere, tmp_path, declared / "out", declared / ".." / "elsewhere", Path("/")):
        assert not residency.allows_backup(outside)


NETWORKS = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 32)).map(
        lambda given: ip_network((given[0], given[1]), strict=False)
    ),
    st.sampled_from([network for network in SPECIAL if network.prefixlen > 0]),
    st.sampled_from(["100.0.0.0/8", "169.254.0.0/16", "fd00::/16", "2001::/16", "100::/16"]).map(ip_network),
)


@given(st.lists(NETWORKS, max_size=4), st.data())
@settings(derandomize=True, max_examples=80, deadline=None)
def test_a_special_address_is_reached_only_where_it_is_named(
    declared: list[Network], data: st.DataObject
) -> None:
    """The definition: the narrowest special network around an address must be named, or a part of it."""
    edges = [network[at] for network in (*declared, *SPECIAL) for at in (0, -1)]
    address = data.draw(st.sampled_from(edges))
    meanings = [network for network in SPECIAL if address in network]
    narrowest = max(meanings, key=lambda network: network.prefixlen, default=None)
    expected = any(
        address in network and (narrowest is None or network.prefixlen >= narrowest.prefixlen)
        for network in declared
    )
    assert any(address in network for network in reachable(tuple(declared))) is expected
