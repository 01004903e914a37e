"""The command line: nouns and verbs as clients of the REST routes on the operator socket.

Exit codes: 0 done, 1 refused or failed (the reason on stderr), 2 usage, 69 no daemon where one is needed, 78
the configuration. With --json stdout holds exactly one document, for a refusal `{"error", "reason"}`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from appliance.errors import ApplianceError, ConfigInvalid, DaemonNeeded

DEFAULT_CONFIG = Path("/etc/appliance/appliance.toml")
REFUSED, USAGE, UNAVAILABLE, CONFIG = 1, 2, 69, 78
STARTING_SECONDS = 10.0
SERVICE_USER = "appliance"
# Between the parts of what is sent: nobody can have written it into a file.
_BOUNDARY = os.urandom(16).hex()

Document = dict[str, Any]


class _UsageInvalid(Exception):
    """The words do not make a command."""


class _Refused(ApplianceError):
    """A verb was refused; `error` is a stable word for programs."""

    def __init__(self, error: str, reason: str, exit_code: int = REFUSED) -> None:
        super().__init__(reason)
        self.error = error
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class _Output:
    """What a verb answers: a document for programs and the same as text for people."""

    document: Document
    text: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageInvalid(f"{message}\n{self.format_usage().rstrip()}")


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; writes to stdout and stderr, never raises for a refusal."""
    words = sys.argv[1:] if words is None else list(words)
    as_json = "--json" in words
    try:
        arguments = _parser().parse_args(words)
        output: _Output | None = arguments.run(arguments)
        if output is not None:
            print(json.dumps(output.document) if as_json else output.text)
            sys.stdout.flush()
    except _UsageInvalid as error:
        return _refuse(as_json, "usage", str(error), USAGE)
    except ConfigInvalid as error:
        return _refuse(as_json, "config_invalid", str(error), CONFIG)
    except DaemonNeeded as error:
        return _refuse(as_json, "unavailable", str(error), UNAVAILABLE)
    except _Refused as error:
        return _refuse(as_json, error.error, str(error), error.exit_code)
    except ApplianceError as error:
        return _refuse(as_json, re.sub(r"(?<!^)([A-Z])", r"_\1", type(error).__name__).lower(), str(error))
    except BrokenPipeError:
        # The reader is gone (`| head`): what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except KeyboardInterrupt:
        return _refuse(as_json, "interrupted", "interrupted")
    return 0


def _refuse(as_json: bool, error: str, reason: str, exit_code: int = REFUSED) -> int:
    print(f"appliance: {reason}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": error, "reason": reason}))
    return exit_code


def _parser() -> argparse.ArgumentParser:
    root = _Parser(prog="appliance", description="On-premise image recognition and visual search.")
    root.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"default {DEFAULT_CONFIG}")
    root.add_argument("--json", action="store_true", help="one JSON document on stdout")
    # The same options after the verb; without SUPPRESS their defaults would undo what stood before it.
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    shared.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    nouns = root.add_subparsers(metavar="COMMAND", required=True)

    def verb(
        parent: Any, name: str, run: Callable[[argparse.Namespace], _Output | None], summary: str
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = parent.add_parser(
            name, help=summary, description=summary, parents=[shared]
        )
        added.set_defaults(run=run)
        return added

    def noun(name: str, summary: str) -> Any:
        parent = nouns.add_parser(name, help=summary, description=summary)
        return parent.add_subparsers(metavar="VERB", required=True)

    verb(nouns, "serve", _serve, "run the daemon in the foreground, as systemd does")
    verb(nouns, "check-config", _check_config, "read the configuration as a start would, name every finding")
    verb(nouns, "status", _status, "what the running daemon says about itself")

    _add_residency(noun, verb)

    customers = noun("customer", "whose data and tokens everything else belongs to")
    verb(customers, "add", _client(_customer_add), "create a customer").add_argument("name")
    verb(customers, "list", _client(_customer_list), "all customers")

    tokens = noun("token", "what clients authenticate with")
    add = verb(tokens, "add", _client(_token_add), "issue a token; it is shown once")
    add.add_argument("customer", help="id or name")
    add.add_argument("--scope", action="append", help="repeat; default: first token all, later no admin")
    add.add_argument("--expires-at", metavar="TIME", help="ISO 8601 with a UTC offset; default: never")
    listing = verb(tokens, "list", _client(_token_list), "tokens without their secrets")
    listing.add_argument("customer", nargs="?", help="id or name; default: of all")
    rotate = verb(tokens, "rotate", _client(_token_rotate), "issue a successor of a token")
    rotate.add_argument("id")
    rotate.add_argument(
        "--overlap-seconds", type=int, metavar="N", help="both are valid so long; default a day"
    )
    verb(tokens, "revoke", _client(_token_revoke), "refuse a token from now on").add_argument("id")

    collections = noun("collection", "what is searched")
    add = verb(collections, "add", _client(_collection_add), "create a collection")
    add.add_argument("customer", help="id or name")
    add.add_argument("name")
    listing = verb(collections, "list", _client(_collection_list), "collections with their record counts")
    listing.add_argument("customer", nargs="?", help="id or name; default: of all")
    remove = verb(collections, "remove", _client(_collection_remove), "erase a collection and its records")
    remove.add_argument("id")

    _add_bundles(noun, verb)
    return root


def _add_bundles(noun: Callable[[str, str], Any], verb: Callable[..., argparse.ArgumentParser]) -> None:
    bundles = noun("bundle", "the models that recognise and embed")
    build = verb(bundles, "build", _bundle_build, "make a bundle from an installed data package")
    build.add_argument("name", help="efficientnet-lite0, -lite1 or -lite2, each more precise and slower")
    build.add_argument(
        "--to", type=Path, required=True, metavar="PATH", help="a folder that does not exist yet"
    )
    key = verb(bundles, "key", _bundle_key, "make a key to sign bundles with; prints its public half")
    key.add_argument("file", type=Path, help="a file that does not exist yet, for the private half")
    sign = verb(bundles, "sign", _bundle_sign, "sign a bundle, so that whoever trusts the key may install it")
    sign.add_argument("folder", type=Path)
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="of `appliance bundle key`")
    install = verb(bundles, "install", _client(_bundle_install), "verify a bundle and install it")
    install.add_argument(
        "path",
        type=Path,
        help="a bundle (folder, .tar, .tar.zst), a Hugging Face export, or the ONNX file of a YOLO detector",
    )
    install.add_argument("--customer", action="append", metavar="CUSTOMER", help="who alone may use it")
    install.add_argument("--name", help="of an export's bundle; default: the folder's or file's")
    install.add_argument("--no-activate", action="store_true", help="not even the first version of its name")
    verb(bundles, "list", _client(_bundle_list), "installed bundles")
    verb(bundles, "verify", _client(_bundle_verify), "read every file of every installed bundle again")
    for name, run, summary in (
        ("activate", _bundle_activate, "have a version answer for its task and routes"),
        ("remove", _bundle_remove, "take a version away, its files included"),
    ):
        change = verb(bundles, name, _client(run), summary)
        change.add_argument("name")
        change.add_argument("version")


def _add_residency(noun: Callable[[str, str], Any], verb: Callable[..., argparse.ArgumentParser]) -> None:
    rules = noun("residency", "where this appliance stands and whom it may talk to")
    render = verb(rules, "render", _residency_render, "the residency file as the kernel enforces it")
    form = render.add_mutually_exclusive_group(required=True)
    form.add_argument("--nftables", action="store_true", help="a ruleset for nft -f")
    form.add_argument("--systemd", action="store_true", help="a drop-in for the unit")
    render.add_argument("--user", default=SERVICE_USER, help=f"whom the rules bind; default {SERVICE_USER}")
    check = verb(rules, "verify", _residency_verify, "read a residency file, name every finding")
    check.add_argument("file", type=Path, nargs="?", help="default: the one that the configuration names")


# Verbs that need no operator socket.


def _serve(arguments: argparse.Namespace) -> None:
    from appliance import daemon

    daemon.serve(arguments.config)


def _check_config(arguments: argparse.Namespace) -> _Output:
    from appliance import daemon

    settings, warnings = daemon.examine(arguments.config)
    document = {
        "valid": True,
        "profile": settings.profile,
        "warnings": [{"key": warning.key, "message": warning.message} for warning in warnings],
    }
    lines = [f"{arguments.config}: valid, profile {settings.profile}"]
    lines += [f"warning: {warning.key}: {warning.message}" for warning in warnings]
    return _Output(document, "\n".join(lines))


def _residency_render(arguments: argparse.Namespace) -> _Output:
    from appliance import firewall

    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", arguments.user):
        raise _UsageInvalid(f"argument --user: {arguments.user!r} is not the name or number of a user")
    settings, declared = _declared(arguments.config)
    if arguments.systemd:
        text = firewall.systemd(declared)
        return _Output({"systemd": text}, text)
    text = firewall.nftables(settings, declared, arguments.user)
    return _Output({"nftables": text}, text)


def _residency_verify(arguments: argparse.Namespace) -> _Output:
    from appliance import residency

    declared = residency.load(arguments.file) if arguments.file else _declared(arguments.config)[1]
    document = {"valid": True, "site": declared.site, "country": declared.country}
    return _Output(document, f"{declared.site}, {declared.country}: the residency file is valid")


def _declared(config_path: Path) -> tuple[Any, Any]:
    """What both files say. Not the machine: the wall is built before it is finished."""
    from appliance import residency

    settings, declared, _ = residency.judge(config_path, machine=False)
    if declared is None:
        raise ConfigInvalid([f"{config_path}: residency: missing: no residency file is named"])
    return settings, declared


def _bundle_build(arguments: argparse.Namespace) -> _Output:
    from appliance.recognition import starter

    target = arguments.to.absolute()
    print(f"building {arguments.name}", file=sys.stderr)
    try:
        starter.build(arguments.name, target)
    except ImportError as error:
        message = f"{error}; the data packages come with extras: pip install 'appliance[starter,sisters]'"
        raise _Refused("not_installed", message) from error
    except OSError as error:
        raise _Refused("storage_failed", f"{target}: {error.strerror}") from error
    return _Output({"name": arguments.name, "path": str(target)}, f"{arguments.name} built at {target}")


# The client of the operator socket.


class _Operator:
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
    ) -> Document:
        """The answer's document ({} for none); raises _Refused with the problem's own title and detail.

        What is sent is the document `body` or the multipart `parts`.
        """
        url = f"http://appliance/appliance/v1{path}"
        headers = {} if parts is None else {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        async with self._session.request(
            method, url, params=query, json=body, data=parts, headers=headers
        ) as response:
            document: Document = {} if response.status == 204 else await response.json(content_type=None)
            if response.status >= 400:
                error = str(document.get("title", "refused")).lower().replace(" ", "_")
                raise _Refused(error, str(document.get("detail") or document.get("title")))
            return document

    async def customer_id(self, id_or_name: str) -> str:
        """The id of a customer named either way; an unknown one is left to the route to refuse."""
        found = (await self.call("GET", "/customers"))["customers"]
        return next(
            (str(row["id"]) for key in ("id", "name") for row in found if row[key] == id_or_name), id_or_name
        )


Verb = Callable[[_Operator, argparse.Namespace], Awaitable[_Output]]


def _client(verb: Verb) -> Callable[[argparse.Namespace], _Output]:
    """A verb over the socket: of the daemon that holds the state, or of the state opened here meanwhile."""

    def run(arguments: argparse.Namespace) -> _Output:
        async def session() -> _Output:
            async with _operator(arguments.config) as operator:
                return await verb(operator, arguments)

        return asyncio.run(session())

    return run


@contextlib.asynccontextmanager
async def _operator(config_path: Path, *, only_running: bool = False) -> AsyncIterator[_Operator]:
    from appliance import config

    state, socket = config.locate(config_path)
    async with contextlib.AsyncExitStack() as stack:
        if not _held(state):
            if only_running:
                config.load(config_path)
                raise _Refused("unavailable", f"no daemon runs on {state}", UNAVAILABLE)
            from appliance import daemon

            await stack.enter_async_context(daemon.operating(config_path))
        yield _Operator(await stack.enter_async_context(_connected(socket, state)))


def _held(state: Path) -> bool:
    from appliance import ledger

    try:
        return ledger.holder(state) is not None
    except PermissionError:
        # A member of the operators' group may not look into the state folder, and needs the daemon anyhow.
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
            raise _Refused("forbidden", reason) from None
        except OSError as error:
            # A daemon holds its folder before it listens.
            if not _held(state) or asyncio.get_running_loop().time() > deadline:
                reason = f"the daemon does not answer at {socket}: {error.strerror}; is it running?"
                raise _Refused("unavailable", reason, UNAVAILABLE) from None
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
        raise _Refused("unavailable", f"the daemon went away: {error}", UNAVAILABLE) from error


# Verbs over the socket.


def _status(arguments: argparse.Namespace) -> _Output:
    async def ask() -> Document:
        async with _operator(arguments.config, only_running=True) as operator:
            return await operator.call("GET", "/status")

    status = asyncio.run(ask())
    return _Output(status, _status_text(status))


async def _customer_add(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    made = await operator.call("POST", "/customers", body={"name": arguments.name})
    return _Output(made, f"customer {made['name']} has the id {made['id']}")


async def _customer_list(operator: _Operator, _: argparse.Namespace) -> _Output:
    answer = await operator.call("GET", "/customers")
    return _Output(answer, _table(answer["customers"], "id", "name", "created_at"))


async def _token_add(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    body: Document = {"customer": await operator.customer_id(arguments.customer)}
    if arguments.scope:
        body["scopes"] = arguments.scope
    if arguments.expires_at:
        body["expires_at"] = arguments.expires_at
    return _issued(await operator.call("POST", "/tokens", body=body))


async def _token_list(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    answer = await operator.call("GET", "/tokens", query=await _of_customer(operator, arguments))
    return _Output(
        answer, _table(answer["tokens"], "id", "customer", "scopes", "created_at", "expires_at", "revoked_at")
    )


async def _token_rotate(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    body = {} if arguments.overlap_seconds is None else {"overlap_seconds": arguments.overlap_seconds}
    return _issued(await operator.call("POST", f"/tokens/{arguments.id}/rotate", body=body))


def _issued(made: Document) -> _Output:
    return _Output(made, f"{made['token']}\nThis is the only time that token {made['id']} is shown.")


async def _token_revoke(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    await operator.call("DELETE", f"/tokens/{arguments.id}")
    return _Output({"id": arguments.id, "revoked": True}, f"token {arguments.id} is revoked")


async def _collection_add(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    customer = await operator.customer_id(arguments.customer)
    made = await operator.call("POST", "/collections", body={"customer": customer, "name": arguments.name})
    return _Output(made, f"collection {arguments.name} has the id {made['id']}")


async def _collection_list(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    answer = await operator.call("GET", "/collections", query=await _of_customer(operator, arguments))
    return _Output(answer, _table(answer["collections"], "id", "customer", "name", "count", "backbone"))


async def _collection_remove(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    await operator.call("DELETE", f"/collections/{arguments.id}")
    return _Output({"id": arguments.id, "removed": True}, f"collection {arguments.id} is removed")


async def _bundle_install(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    from aiohttp import ClientError

    from appliance.errors import InvalidInput
    from appliance.recognition import staging

    path = arguments.path.absolute()
    query = [("customer", await operator.customer_id(one)) for one in arguments.customer or ()]
    query += [("activate", "false")] if arguments.no_activate else []
    parts = _form(staging.from_path(path, arguments.name))
    try:
        made = await operator.call("POST", "/bundles", query=query, parts=parts)
    except InvalidInput as refusal:
        raise _Refused("bad_request", str(refusal)) from refusal
    except ClientError as error:
        if isinstance(error.__cause__, InvalidInput):
            raise _Refused("bad_request", str(error.__cause__)) from error
        raise
    except _Refused as refusal:
        raise _Refused(refusal.error, f"{path}: {refusal}") from refusal
    waits = "" if made["active"] else "; it answers once it is activated"
    return _Output(made, f"{made['name']} {made['version']} is installed as task {made['task']}{waits}")


async def _form(files: AsyncIterable[tuple[str, AsyncIterable[bytes]]]) -> AsyncIterator[bytes]:
    """Files as multipart/form-data (RFC 7578), each read when it is sent: an archive is read once."""
    async for name, content in files:
        yield f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        async for piece in content:
            yield piece
        yield b"\r\n"
    yield f"--{_BOUNDARY}--\r\n".encode()


def _bundle_key(arguments: argparse.Namespace) -> _Output:
    from appliance.vault import create_signing_key, public_key

    private = create_signing_key()
    try:
        with open(arguments.file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(private)
    except OSError as error:
        raise _Refused("failed", f"{arguments.file}: {error.strerror}") from error
    public = public_key(private)
    return _Output({"file": str(arguments.file), "public_key": public}, public)


def _bundle_sign(arguments: argparse.Namespace) -> _Output:
    from appliance.recognition import manifest, trust

    try:
        verified = manifest.verify(arguments.folder)
        signature = trust.signature(arguments.key.read_bytes(), verified.digest)
        (arguments.folder / manifest.SIGNATURE).write_bytes(signature)
    except OSError as error:
        raise _Refused("failed", f"{error.filename}: {error.strerror}") from error
    made = verified.manifest
    return _Output({"name": made.name, "version": made.version}, f"{made.name} {made.version} is signed")


async def _bundle_list(operator: _Operator, _: argparse.Namespace) -> _Output:
    answer = await operator.call("GET", "/bundles")
    return _Output(answer, _table(answer["bundles"], "name", "version", "kind", "active", "task", "routes"))


async def _bundle_verify(operator: _Operator, _: argparse.Namespace) -> _Output:
    answer = await operator.call("GET", "/bundles/verification")
    damaged = [f"{one['name']} {one['version']}: {one['fault']}" for one in answer["bundles"] if one["fault"]]
    if damaged:
        raise _Refused("damaged", "; ".join(damaged))
    return _Output(answer, f"{len(answer['bundles'])} bundles are as they were installed")


async def _bundle_activate(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    made = await operator.call(
        "POST", f"/bundles/{_word(arguments.name)}/{_word(arguments.version)}/activate"
    )
    return _Output(made, f"{made['name']} {made['version']} answers from now on")


async def _bundle_remove(operator: _Operator, arguments: argparse.Namespace) -> _Output:
    name, version = _word(arguments.name), _word(arguments.version)
    await operator.call("DELETE", f"/bundles/{name}/{version}")
    return _Output({"name": name, "version": version, "removed": True}, f"{name} {version} is removed")


def _word(text: str) -> str:
    """A name or version as a segment of a path."""
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,64}", text) or text in {".", ".."}:
        raise _Refused("not_found", f"{text}: no such bundle")
    return text


async def _of_customer(operator: _Operator, arguments: argparse.Namespace) -> dict[str, str]:
    if arguments.customer is None:
        return {}
    return {"customer": await operator.customer_id(arguments.customer)}


# Text for people.


def _status_text(status: Document) -> str:
    minutes = int(status["uptime_seconds"]) // 60
    up = f"up {minutes // 1440} d {minutes // 60 % 24} h {minutes % 60} min"
    lines = [
        f"appliance {status['version']} ({status['profile']}): {status['state']}, pid {status['pid']}, {up}",
        *(
            f"{finding['severity']:<9} {finding['key']}: {finding['message']}"
            for finding in status["findings"]
        ),
        *(f"{name:<9} {' '.join(addresses)}" for name, addresses in status["listeners"].items()),
    ]
    if (volume := status["volume"]) is not None:
        lines.append(
            f"volume    {volume['mount']} {volume['filesystem']} {volume['encryption']}, "
            f"{volume['free_bytes'] / 2**30:.1f} of {volume['total_bytes'] / 2**30:.1f} GiB free"
        )
    lines.append(f"holds     {status['customers']} customers, {status['collections']} collections")
    for name in ("bundles", "devices"):
        lines += [f"\n{name}", _table(status[name], *status[name][0])] if status[name] else []
    gpus = status["gpus"]["devices"]
    lines += ["\ngpus", _table(gpus, *gpus[0])] if gpus else []
    return "\n".join(lines)


def _table(rows: Sequence[Document], *columns: str) -> str:
    """Aligned columns under their names; lists are joined, absent values a dash."""
    lines = [list(columns)] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None or value == "" else str(value)
