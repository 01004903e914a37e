"""TLS behind the door: who may not come in, or not yet another time, gets no handshake."""

import ssl
from asyncio import BaseTransport

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # in no stub

from appliance.api.connections import HttpServer


class Handshake(SSLProtocol):  # type: ignore[misc]
    """TLS on one connection of `http`, which counts at the door from its first moment, before any handshake.

    It is ended when its handshake takes longer than `seconds`. `create_server(ssl=...)` makes the same
    protocol, and tells nobody of a connection before its handshake is done.
    """

    def __init__(self, http: HttpServer, tls: ssl.SSLContext, seconds: float) -> None:
        self._connection = http()
        super().__init__(
            http.loop, self._connection, tls, None, server_side=True, ssl_handshake_timeout=seconds
        )

    def connection_made(self, transport: BaseTransport) -> None:
        if self._connection.enter(transport):
            super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._connection.leave()  # it hears of no end itself unless its handshake was done
