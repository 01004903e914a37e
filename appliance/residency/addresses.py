"""Networks, and which of their addresses the gate, nftables and systemd let through alike."""

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

Network = IPv4Network | IPv6Network

# What an address can mean beside "a machine over there". A network that merely contains one of these does not
# declare it: a destination must name the special network itself or a part of it. RFC 6890 and its successors
# in IANA's registries of special-purpose addresses; RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo).
SPECIAL: tuple[Network, ...] = tuple(
    ip_network(network)
    for network in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/128", "::1/128", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64"),
        *("2001::/32", "2002::/16", "fe80::/10", "fec0::/10", "ff00::/8"),
        # Where clouds tell a machine its own credentials.
        *("169.254.169.254/32", "169.254.170.2/32", "100.100.100.200/32", "fd00:ec2::254/128"),
    )
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
