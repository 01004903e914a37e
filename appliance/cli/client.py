"""The client of the operator socket: of the daemon that holds the state, or of the state opened here."""

import argparse
import asyncio
import contextlib
import os
import re
import signal
import socket as sockets
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.cli.output import UNAVAILABLE, Document, Output, Refused
from appliance.errors import ApplianceError

STARTING_SECONDS = 10.0
BOUNDARY = os.urandom(16).hex()
"""Between the parts of what is sent: nobody can have written it into a file."""
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


class Operator:
    """The management routes, as one method. `session` is an aiohttp client bound to the operator socket."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        body: Document | None = None,
        parts: AsyncIterable[bytes] | None = None,
        raw: bytes | bytearray | None = None,
        pieces: AsyncIterable[bytes] | None = None,
        media: str = "application/x-tar",
    ) -> Document:
        """The answer's document ({} for none); raises Refused with the problem's own title and detail.

        What is sent is the document `body`, multipart `parts`, `pieces` of a `media` type, or `raw` bytes.
        Raises what those who give them do for what cannot be read.
        """
        import aiohttp

        url = f"http://appliance/appliance/v1{path}"
        headers = {}
        if parts is not None:
            headers["Content-Type"] = MULTIPART
        elif pieces is not None:
            headers["Content-Type"] = media
        elif raw is not None:
            headers["Content-Type"] = "application/octet-stream"
        data = next((sent for sent in (parts, pieces, raw) if sent is not None), None)
        # Of pieces that are refused nothing is sent: who still sends would not hear why.
        try:
            async with self._session.request(
                method, url, params=query, json=body, data=data, headers=headers, expect100=pieces is not None
            ) as response:
                document: Document = {} if response.status == 204 else await response.json(content_type=None)
                if response.status >= 400:
                    raise _refused(document)
                return document
        except aiohttp.ClientError as error:
            if isinstance(error.__cause__, ApplianceError):  # the connection was given up for it
                raise error.__cause__ from None
            raise

    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        token: str | None = None,
    ) -> AsyncIterator[bytes]:
        """The answer as it comes; raises Refused as `call`, and when it ends before its end.

        With a customer's `token` it is that customer who asks, and no operator.
        """
        import aiohttp

        url = f"http://appliance/appliance/v1{path}"
        headers = {} if token is None else {"Authorization": f"Token {token}"}
        async with self._session.request(method, url, params=query, headers=headers) as response:
            if response.status >= 400:
                raise _refused(await response.json(content_type=None))
            try:
                async for piece in response.content.iter_any():
                    yield piece
            except aiohttp.ClientPayloadError as error:
                raise Refused("unavailable", "the daemon went away in the middle", UNAVAILABLE) from error

    async def customer_id(self, id_or_name: str) -> str:
        """The id of a customer named either way; an unknown one is left to the route to refuse."""
        found = (await self.call("GET", "/customers"))["customers"]
        return next(
            (str(row["id"]) for key in ("id", "name") for row in found if row[key] == id_or_name), id_or_name
        )

    async def of_customer(self, id_or_name: str | None) -> dict[str, str]:
        """The query of a listing: for everybody's things none."""
        return {} if id_or_name is None else {"customer": await self.customer_id(id_or_name)}


async def form(parts: AsyncIterable[tuple[str, AsyncIterable[bytes]]]) -> AsyncIterator[bytes]:
    """Parts as multipart/form-data (RFC 7578), each read when it is sent."""
    async for name, content in parts:
        yield f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        async for piece in content:
            yield piece
        yield b"\r\n"
    yield f"--{BOUNDARY}--\r\n".encode()


def token_of(file: str) -> str:
    """A customer's token, in a file or, for `-`, on stdin. Raises Refused."""
    try:
        text = sys.stdin.readline() if file == "-" else Path(file).read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise Refused("failed", f"{file}: {getattr(error, 'strerror', None) or 'is no token'}") from None
    token = text.strip()
    if not token or len(token) > 100 or not token.isprintable() or not token.isascii():
        raise Refused("bad_request", f"{'stdin' if file == '-' else file}: is no token")
    return token


def _refused(document: Document) -> Refused:
    error = str(document.get("title", "refused")).lower().replace(" ", "_")
    return Refused(error, str(document.get("detail") or document.get("title")))


def segment(text: str, what: str) -> str:
    """An id, a name or a version as a segment of a path. Raises Refused where it can be none of `what`."""
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,64}", text) or text in {".", ".."}:
        raise Refused("not_found", f"{text}: no such {what}")
    return text


Verb = Callable[[Operator, argparse.Namespace], Awaitable[Output]]


def client(verb: Verb, *, only_running: bool = False) -> Callable[[argparse.Namespace], Output]:
    """A verb over the socket: of the daemon that holds the state, or of the state opened here meanwhile.

    With `only_running` it is refused without a daemon, exit code 69.
    """

    def run(arguments: argparse.Namespace) -> Output:
        async def session() -> Output:
            # Ended as by Ctrl-C: what is half made is put away.
            ended = asyncio.current_task()
            assert ended is not None
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.cancel)
            async with _operator(arguments.config, only_running=only_running) as operator:
                return await verb(operator, arguments)

        try:
            return asyncio.run(session())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    return run


@contextlib.asynccontextmanager
async def _operator(config_path: Path, *, only_running: bool) -> AsyncIterator[Operator]:
    from appliance import config

    state, socket = config.locate(config_path)
    async with contextlib.AsyncExitStack() as stack:
        if not (_held(state) or _answers(socket)):
            if only_running:
                config.load(config_path)
                raise Refused("unavailable", f"no daemon runs on {state}", UNAVAILABLE)
            from appliance import daemon

            await stack.enter_async_context(daemon.operating(config_path))
        yield Operator(await stack.enter_async_context(_connected(socket, state)))


def _held(state: Path) -> bool:
    from appliance import ledger

    try:
        return ledger.holder(state) is not None
    except PermissionError:
        # A member of the operators' group may not look into the state folder, and needs the daemon anyhow.
        return True


def _answers(socket: Path) -> bool:
    """Whether a daemon listens, also one whose state another filesystem covers: it can tell of that."""
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(str(socket))
        except OSError:
            return False
        return True


@contextlib.asynccontextmanager
async def _connected(socket: Path, state: Path) -> AsyncIterator[Any]:
    import aiohttp

    deadline = asyncio.get_running_loop().time() + STARTING_SECONDS
    while True:
        try:
            _, writer = await asyncio.open_unix_connection(socket)
        except PermissionError:
            reason = f"{socket} is for root, the daemon's user and the operators' group"
            raise Refused("forbidden", reason) from None
        except OSError as error:
            # A daemon holds its folder before it listens.
            if not _held(state) or asyncio.get_running_loop().time() > deadline:
                reason = f"the daemon does not answer at {socket}: {error.strerror}; is it running?"
                raise Refused("unavailable", reason, UNAVAILABLE) from None
            await asyncio.sleep(0.05)
        else:
            writer.close()
            break
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    connector = aiohttp.UnixConnector(str(socket))
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            yield session
    except aiohttp.ClientError as error:
        raise Refused("unavailable", f"the daemon went away: {error}", UNAVAILABLE) from error
