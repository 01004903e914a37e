"""The residency file in the kernel's words: rules for nftables, and the same for systemd as a second line.

Undeclared means refused, in both directions. The rules are about the service's user and its public ports
alone; other users, ports and tables of the server stay as they are.
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from appliance.config import Config, is_loopback, listen_address
from appliance.residency import Destination, Network, Residency, reachable

TABLE = "appliance"
# A name server is asked over UDP first, a time server over nothing else.
_PROTOCOLS = {53: ("tcp", "udp"), 123: ("udp",)}


def nftables(config: Config, residency: Residency, user: str) -> str:
    """A ruleset for `nft -f`; loading it replaces what an earlier one has set up, in one transaction.

    New connections of `user` are rejected at once, loopback included, but to declared destinations. The ports
    of public listeners are open to declared clients and to the server itself.
    """
    lines = [
        f"# New connections of the user {user}, and new connections to its public ports.",
        f"table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        "    chain output {",
        "        type filter hook output priority filter; policy accept;",
        # A jump, not `!= accept`: packets of the kernel have no user, and would pass neither.
        f'        meta skuid "{user}" jump from_service',
        "    }",
        "    chain from_service {",
        "        ct state established,related accept",
        *(f"        {rule}" for each in residency.destinations for rule in _destination(each)),
        # An ICMPv6 error would be heeded only when the first packet is sent again, a second later.
        "        meta nfproto ipv6 meta l4proto tcp counter reject with tcp reset",
        "        counter reject with icmpx admin-prohibited",
        "    }",
    ]
    if ports := _public_ports(config):
        lines += [
            "    chain input {",
            "        type filter hook input priority filter; policy accept;",
            f"        tcp dport {{ {', '.join(map(str, ports))} }} jump to_service",
            "    }",
            "    chain to_service {",
            "        ct state established,related accept",
            '        iifname "lo" accept',
            *(f"        {rule} accept" for rule in _matches("saddr", residency.clients)),
            "        counter drop",
            "    }",
        ]
    return "\n".join([*lines, "}"])


def systemd(residency: Residency) -> str:
    """A drop-in for the unit: the addresses that IPAddressDeny=any lets through, either way."""
    reached = (network for each in residency.destinations for network in reachable(each.cidrs))
    networks = [*residency.clients, *reached]
    allowed = [f"IPAddressAllow={network}" for family in _families(networks) for network in family]
    return "\n".join(["# Declared clients and destinations.", "[Service]", *allowed])


def _destination(destination: Destination) -> list[str]:
    # The name is a person's text; what it could break out of a comment with is gone.
    name = "".join(character if character.isprintable() else " " for character in destination.name)
    rules = _matches("daddr", reachable(destination.cidrs))
    protocols = _PROTOCOLS.get(destination.port, ("tcp",))
    ports = [f"{protocol} dport {destination.port}" for protocol in protocols]
    return [f"# {name}", *(f"{rule} {port} accept" for rule in rules for port in ports)]


def _matches(side: str, networks: Iterable[Network]) -> list[str]:
    """`ip saddr { ... }` and `ip6 saddr { ... }`, as far as there are networks of the family."""
    return [
        f"{word} {side} {{ {', '.join(map(str, family))} }}"
        for word, family in zip(("ip", "ip6"), _families(networks), strict=True)
        if family
    ]


def _families(networks: Iterable[Network]) -> tuple[Sequence[Network], Sequence[Network]]:
    """IPv4 and IPv6, sorted and without overlaps, which sets of nftables refuse."""
    listed = list(networks)
    v4 = collapse_addresses(network for network in listed if isinstance(network, IPv4Network))
    v6 = collapse_addresses(network for network in listed if isinstance(network, IPv6Network))
    return list(v4), list(v6)


def _public_ports(config: Config) -> list[int]:
    public = {listen_address(listener)[1] for listener in config.api.listen if not is_loopback(listener)}
    return sorted(public - {0})
