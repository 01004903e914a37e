"""What name servers of tests answer."""

import socket
from collections.abc import Iterable

from aiohttp.abc import ResolveResult


def resolved(host: str, port: int, addresses: Iterable[str]) -> list[ResolveResult]:
    """That a name has these addresses."""
    return [
        ResolveResult(
            hostname=host,
            host=address,
            port=port,
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            proto=socket.IPPROTO_TCP,
            flags=socket.AI_NUMERICHOST,
        )
        for address in addresses
    ]
