"""Where clients come from, as far as they are counted by it."""

from ipaddress import ip_network

_IPV6_SITE = 64  # bits: what one host chooses from at will (RFC 4291, 2.5.1)


def source(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 one; a Unix socket's "" is itself."""
    return str(ip_network((address, _IPV6_SITE), strict=False)) if ":" in address else address
