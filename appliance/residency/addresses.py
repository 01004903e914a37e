"""Networks, and which of their addresses the gate, nftables and systemd let through alike."""

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

Network = IPv4Network | IPv6Network


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


LOOPBACK = _networks("127.0.0.0/8", "::1/128")
_NAT64, _SIX_TO_FOUR = _networks("64:ff9b::/96", "2002::/16")

# Where no destination is: RFC 1122, 3927, 4291 and 3879, 5771, 1112 and 919.
NOWHERE: dict[str, tuple[Network, ...]] = {
    "the unspecified address": _networks("0.0.0.0/8", "::/128"),
    "where clouds tell a machine its own credentials": _networks(
        "169.254.169.254/32", "169.254.170.2/32", "100.100.100.200/32", "fd00:ec2::254/128"
    ),
    "link-local": _networks("169.254.0.0/16", "fe80::/10", "fec0::/10"),
    "multicast": _networks("224.0.0.0/4", "ff00::/8"),
    "reserved": _networks("240.0.0.0/4"),
}

# What an address can mean beside "a machine over there". A network that merely contains one of these does not
# declare it: where it may be declared at all, a destination names it or a part of it. RFC 6890 and its
# successors in IANA's registries of special-purpose addresses; RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380
# (Teredo).
SPECIAL: tuple[Network, ...] = (
    *LOOPBACK,
    *(network for networks in NOWHERE.values() for network in networks),
    *_networks("192.0.0.0/24", "::/96", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "2001::/32"),
    _NAT64,
    _SIX_TO_FOUR,
)


@lru_cache(maxsize=1024)
def reachable(declared: tuple[Network, ...]) -> tuple[Network, ...]:
    """All addresses of these networks less the special ones that they merely contain.

    IPv4 before IPv6, sorted and without overlaps.
    """
    ordinary = [part for network in declared for part in _ordinary(network)]
    v4 = collapse_addresses(part for part in ordinary if isinstance(part, IPv4Network))
    v6 = collapse_addresses(part for part in ordinary if isinstance(part, IPv6Network))
    return (*v4, *v6)


def _ordinary(network: Network) -> list[Network]:
    parts = [network]
    for special in SPECIAL:
        if special != network and within(special, network):
            parts = [left for part in parts for left in _without(part, special)]
    return parts


def _without(network: Network, special: Network) -> Iterator[Network]:
    if within(special, network) and special != network:
        yield from network.address_exclude(special)  # type: ignore[arg-type] # of one version, as within says
    elif not within(network, special):
        yield network


def within(inner: Network, outer: Network) -> bool:
    """Whether all of `inner` lies in `outer`, which may be the same."""
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def carried(network: Network) -> Network:
    """The IPv4 network that one of NAT64 or 6to4 stands for; any other network itself."""
    for tunnel in (_NAT64, _SIX_TO_FOUR):
        if within(network, tunnel):
            address = int(network.network_address) >> (96 - tunnel.prefixlen) & 0xFFFF_FFFF
            return IPv4Network((address, min(network.prefixlen - tunnel.prefixlen, 32)))
    return network
