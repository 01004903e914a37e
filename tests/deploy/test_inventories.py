"""A wrong inventory stops in the first play, for all its servers, before any of them is touched.

Several servers are examined at once, each with one thing wrong: all reasons come in the same run.
"""

import copy
from pathlib import Path

import pytest
import trustme

from tests.deploy.playing import Played, Variables, play

SECOND_PLAY = "PLAY [Bring the appliance to every server]"


def right(folder: Path) -> Variables:
    """Variables that the first play has nothing against."""
    for name in ("appliance-1.0-0123456789ab-cpu-cp311-x86_64.tar", "tls.crt", "tls.key"):
        (folder / name).touch()
    return {
        "appliance_archive": str(folder / "appliance-1.0-0123456789ab-cpu-cp311-x86_64.tar"),
        "appliance_device": "cpu",
        "appliance_listen": ["127.0.0.1:8443"],
        "appliance_public_url": "https://vision.example.com",
        "appliance_tls_certificate": str(folder / "tls.crt"),
        "appliance_tls_key": str(folder / "tls.key"),
        "appliance_residency": {"site": "Prague", "country": "CZ", "clients": ["10.20.0.0/16"]},
        "luks_volume_device": "/dev/disk/by-id/there-is-no-such-disk",
    }


def wrong(folder: Path, **changes: object) -> Variables:
    """The same with these variables; `country` and `eea` go into the residency, None takes a variable out."""
    variables = copy.deepcopy(right(folder))
    residency = variables["appliance_residency"]
    assert isinstance(residency, dict)
    for name, value in changes.items():
        (residency if name in {"country", "eea"} else variables)[name] = value
    return {name: value for name, value in variables.items() if value is not None}


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Servers whose variables are not what the roles expect."""
    folder = tmp_path_factory.mktemp("incomplete")
    hosts = {
        "no-residency": wrong(folder, appliance_residency=None),
        "overseas": wrong(folder, country="US"),
        "norway-unquoted": wrong(folder, country=False),
        "several": wrong(folder, appliance_public_url=None, appliance_device="tpu"),
        "nobody": wrong(folder, appliance_residency={"site": "Prague", "country": "CZ"}),
        "right": right(folder),
    }
    return play(folder, hosts)


@pytest.fixture(scope="module")
def contradictory(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Servers whose variables are of the right kind and cannot be true."""
    folder = tmp_path_factory.mktemp("contradictory")
    hosts = {
        "no-archive": wrong(folder, appliance_archive=str(folder / "appliance-cpu-.tar")),
        "cpu-for-cuda": wrong(folder, appliance_device="cuda"),
        "no-certificate": wrong(folder, appliance_tls_certificate=str(folder / "gone.crt")),
        "no-key": wrong(folder, appliance_tls_key=str(folder / "gone.key")),
        "plain-http": wrong(folder, appliance_public_url="http://vision.example.com"),
        "eea": wrong(folder, country="NO"),
        "eea-allowed": wrong(folder, country="NO", eea=True),
        "right": right(folder),
    }
    return play(folder, hosts)


@pytest.fixture(scope="module")
def unfit(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Servers that are not what their variables need; this machine may lack other things beside."""
    folder = tmp_path_factory.mktemp("unfit")
    authority = trustme.CA()
    for name in ("own", "other"):
        issued = authority.issue_cert("vision.example.com")
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.crt"))
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
    pair = {
        "appliance_tls_certificate": str(folder / "own.crt"),
        "appliance_tls_key": str(folder / "own.key"),
    }
    other_machine = folder / "appliance-1.0-0123456789ab-cpu-cp39-riscv64.tar"
    other_machine.touch()
    hosts = {
        "pair": wrong(folder, **pair),
        "other-key": wrong(folder, **pair | {"appliance_tls_key": str(folder / "other.key")}),
        "no-pem": wrong(folder),
        "other-machine": wrong(folder, **pair, appliance_archive=str(other_machine)),
        "stranger": wrong(folder, **pair, appliance_operators=["root", "nobody-of-this-name"]),
    }
    return play(folder, hosts)


def assert_stopped(played: Played) -> None:
    """In the first play, with nothing changed on any server."""
    assert played.code != 0, played.output[-3000:]
    assert SECOND_PLAY not in played.output
    assert played.changed == {0}


@pytest.mark.parametrize(
    ("host", "reasons"),
    [
        ("no-residency", ["missing required arguments: appliance_residency"]),
        ("overseas", ["country", "got: US"]),
        ("norway-unquoted", ["country", "got: False"]),
        ("several", ["missing required arguments: appliance_public_url", "appliance_device", "got: tpu"]),
        ("nobody", ["missing required arguments: clients"]),
    ],
)
def test_variables_that_the_roles_do_not_take_are_all_named(
    incomplete: Played, host: str, reasons: list[str]
) -> None:
    assert_stopped(incomplete)
    for reason in reasons:
        assert reason in incomplete.said_of(host), incomplete.output[-6000:]


def test_a_server_with_nothing_wrong_is_not_begun_either(incomplete: Played, contradictory: Played) -> None:
    assert_stopped(incomplete)
    assert_stopped(contradictory)
    assert incomplete.said_of("right") == contradictory.said_of("right") == ""


@pytest.mark.parametrize(
    ("host", "reasons"),
    [
        ("no-archive", ["appliance_archive", "no such file", "./dev wheelhouse"]),
        ("cpu-for-cuda", ["appliance-1.0-0123456789ab-cpu-", "cuda", "./dev wheelhouse --gpu"]),
        ("no-certificate", ["appliance_tls_certificate", "gone.crt", "no such file"]),
        ("no-key", ["appliance_tls_key", "gone.key", "no such file"]),
        ("plain-http", ["appliance_public_url", "must begin with https://"]),
        ("eea", ["country", "eea"]),
    ],
)
def test_variables_that_cannot_be_true_are_refused_with_the_reason(
    contradictory: Played, host: str, reasons: list[str]
) -> None:
    assert_stopped(contradictory)
    for reason in reasons:
        assert reason in contradictory.said_of(host), contradictory.output[-6000:]


def test_eea_is_taken_where_it_is_allowed(contradictory: Played) -> None:
    assert contradictory.said_of("eea-allowed") == ""


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (
            "other-key",
            "appliance_tls_certificate and appliance_tls_key are no pair of PEM files: KEY_VALUES_MISMATCH",
        ),
        ("no-pem", "appliance_tls_certificate and appliance_tls_key are no pair of PEM files"),
        ("other-machine", "-cp39-riscv64 is not for this server's Python and processor"),
        ("stranger", "appliance_operators: nobody-of-this-name: no such user on this server"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_with_the_reason(unfit: Played, host: str, reason: str) -> None:
    assert_stopped(unfit)
    assert reason in unfit.said_of(host), unfit.output[-6000:]


def test_what_fits_is_no_reason(unfit: Played) -> None:
    said = unfit.said_of("pair")
    assert "appliance_tls" not in said
    assert "appliance_operators" not in said
