"""The gate, nftables and the unit's address list let the same through, whatever a residency file declares."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from appliance import firewall
from appliance.config import Api, Config
from appliance.outbound import admits
from appliance.residency import SPECIAL, Destination, Network, Residency

Address = IPv4Address | IPv6Address
CONFIG = Config(api=Api(listen=("0.0.0.0:8443",)))
PORTS = (53, 80, 123, 443, 6514)
# Wide ones with special networks in them, neighbours, and the special ones themselves.
WIDE = ("100.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.0.0.0/8", "192.0.0.0/8", "10.0.0.0/8")
WIDE6 = ("2001::/16", "2001:db8::/32", "fd00::/16", "fe80::/16", "64:ff9b::/32", "100::/16")

_RULE = re.compile(r"ip6? daddr \{ (?P<networks>[^}]*) \} (?P<protocol>tcp|udp) dport (?P<port>\d+) accept")
_ALLOWED = re.compile(r"IPAddressAllow=(\S+)")


class Walls:
    """What each wall lets through, read from what is rendered and not from how."""

    def __init__(self, residency: Residency) -> None:
        self.residency = residency
        rules = firewall.nftables(CONFIG, residency, "appliance")
        chain = rules.partition("chain from_service {")[2].partition("}\n    chain")[0]
        self._rules = [
            (rule["protocol"], int(rule["port"]), _networks(rule["networks"].split(", ")))
            for rule in _RULE.finditer(chain)
        ]
        self._unit = _networks(_ALLOWED.findall(firewall.systemd(residency)))

    def gate(self, address: Address, port: int) -> bool:
        return any(one.port == port and admits(one, str(address)) for one in self.residency.destinations)

    def nftables(self, protocol: str, address: Address, port: int) -> bool:
        return any(
            (one, number) == (protocol, port) and any(address in network for network in networks)
            for one, number, networks in self._rules
        )

    def unit(self, address: Address) -> bool:
        return any(address in network for network in self._unit)

    def client(self, address: Address) -> bool:
        return any(address in network for network in self.residency.clients)


def _networks(texts: Iterable[str]) -> list[Network]:
    return [ip_network(text) for text in texts]


def named(cidrs: list[Network], port: int, number: int) -> Destination:
    return Destination.model_validate(
        {
            "name": f"destination {number}",
            "host": "host.example",
            "local": True,
            "cidrs": [str(network) for network in cidrs],
            "port": port,
            "country": "CZ",
            "purpose": "any",
        }
    )


networks = st.one_of(
    st.sampled_from([ip_network(text) for text in (*WIDE, *WIDE6)]),
    st.sampled_from([one for one in SPECIAL if one.prefixlen >= (8 if one.version == 4 else 16)]).filter(
        lambda one: one != ip_network("::ffff:0:0/96")
    ),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 32)).map(lambda one: ip_network(one, strict=False)),
)


def may_be_declared(network: Network) -> bool:
    try:
        named([network], 80, 0)
    except ValidationError:
        return False
    return True


destinations = st.lists(
    st.tuples(st.lists(networks.filter(may_be_declared), min_size=1, max_size=3), st.sampled_from(PORTS)),
    max_size=3,
)
clients = st.lists(networks, max_size=2)


def edges(network: Network) -> list[Address]:
    """The addresses at and beside both ends."""
    first, last = int(network[0]), int(network[-1])
    kind = IPv4Address if network.version == 4 else IPv6Address
    around = (first - 1, first, last, last + 1)
    return [kind(at) for at in around if 0 <= at < 2**network.max_prefixlen]


@given(destinations, clients, st.data())
@settings(derandomize=True, max_examples=200, deadline=None)
def test_three_walls_say_the_same(
    declared: list[tuple[list[Network], int]], allowed: list[Network], data: st.DataObject
) -> None:
    listed = tuple(named(cidrs, port, number) for number, (cidrs, port) in enumerate(declared))
    walls = Walls(Residency("Prague", "CZ", False, listed, tuple(allowed)))
    about = [*(network for cidrs, _ in declared for network in cidrs), *allowed, *SPECIAL]
    address = data.draw(st.sampled_from([edge for network in about for edge in edges(network)]))
    for port in (*PORTS, 8443, 1):
        tcp, udp = walls.nftables("tcp", address, port), walls.nftables("udp", address, port)
        match port:
            case 53:
                assert tcp is udp is walls.gate(address, port)
            case 123:  # a time server is asked over UDP, and the gate leads no customer there
                assert (tcp, udp) == (False, walls.gate(address, port))
            case _:
                assert (tcp, udp) == (walls.gate(address, port), False)
    assert walls.unit(address) is (walls.client(address) or any(walls.gate(address, port) for port in PORTS))


@given(st.sampled_from([edge for network in SPECIAL for edge in edges(network)]))
@example(ip_address("169.254.169.254"))
@settings(derandomize=True)
def test_nothing_declared_is_nothing_let_through(address: Address) -> None:
    walls = Walls(Residency("Prague", "CZ", False, (), ()))
    assert not walls.unit(address)
    assert not any(walls.gate(address, port) or walls.nftables("tcp", address, port) for port in PORTS)
