"""`residency`: what the files say, whatever the machine is like, and what the running appliance states."""

import argparse
import base64
import json
import re
from pathlib import Path
from typing import Any

from appliance.cli.client import Operator, client
from appliance.cli.output import Document, Output, Refused, UsageInvalid, table
from appliance.cli.words import Words
from appliance.errors import ConfigInvalid, SealBroken

SERVICE_USER = "appliance"


def add(words: Words) -> None:
    """The verbs of the residency file."""
    rules = words.noun("residency", "where this appliance stands and whom it may talk to")
    render = rules.verb("render", _render, "the residency file as the kernel enforces it")
    form = render.add_mutually_exclusive_group(required=True)
    form.add_argument("--nftables", action="store_true", help="a ruleset for nft -f")
    form.add_argument("--systemd", action="store_true", help="a drop-in for the unit")
    render.add_argument("--user", default=SERVICE_USER, help=f"whom the rules bind; default {SERVICE_USER}")
    report = rules.verb(
        "report", client(_report, only_running=True), "what the running appliance states, signed"
    )
    report.add_argument("--out", type=Path, metavar="FILE", help="write it there, and its key to FILE.pub")
    check = rules.verb(
        "verify", _verify, "read a residency file, name every finding; with a key: prove a report"
    )
    check.add_argument("file", type=Path, nargs="?", help="default: the one that the configuration names")
    check.add_argument("key", type=Path, nargs="?", metavar="FILE.pub", help="FILE is a report of this key")


def _render(arguments: argparse.Namespace) -> Output:
    from appliance import firewall

    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", arguments.user):
        raise UsageInvalid(f"argument --user: {arguments.user!r} is not the name or number of a user")
    settings, declared = _declared(arguments.config)
    if arguments.systemd:
        text = firewall.systemd(declared)
        return Output({"systemd": text}, text)
    text = firewall.nftables(settings, declared, arguments.user)
    return Output({"nftables": text}, text)


async def _report(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance import vault

    envelope = await operator.call("GET", "/residency")
    # Byte for byte what the route answered, which is the one form that is signed.
    signed = json.dumps(envelope, separators=(",", ":")).encode()
    statement = json.loads(base64.b64decode(envelope["payload"]))
    public = str(statement["predicate"]["appliance"]["public_key"])
    statement = vault.opened(signed, public)
    if arguments.out is None:
        return Output({"public_key": public, "envelope": envelope, "statement": statement}, _told(statement))
    key = arguments.out.with_name(arguments.out.name + ".pub")
    _write(arguments.out, signed)
    _write(key, f"{public}\n".encode())
    return Output({"report": str(arguments.out), "key": str(key)}, f"{arguments.out}, its key in {key}")


def _verify(arguments: argparse.Namespace) -> Output:
    from appliance import residency

    if arguments.key is not None:
        return _proven(arguments.file, arguments.key)
    declared = residency.load(arguments.file) if arguments.file else _declared(arguments.config)[1]
    document = {"valid": True, "site": declared.site, "country": declared.country}
    return Output(document, f"{declared.site}, {declared.country}: the residency file is valid")


def _proven(report: Path, key: Path) -> Output:
    """Of two files alone: no configuration, no state, no network."""
    from appliance import vault

    envelope, public = _read(report), _read(key)
    if not re.fullmatch(rb"[A-Za-z0-9+/]{43}=\n", public):
        raise Refused("not_proven", f"{key}: is no public key as `residency report --out` writes it")
    try:
        statement = vault.opened(envelope, public.decode().rstrip("\n"))
    except SealBroken as broken:
        raise Refused("not_proven", f"{report}: {broken}") from None
    return Output({"valid": True, "statement": statement}, _told(statement))


def _told(statement: Document) -> str:
    predicate = statement["predicate"]
    declared, connections = predicate["declared"], predicate["connections"]
    lines = [
        f"{declared['site']}, {declared['country']}: {predicate['verdict']} at {predicate['made_at']}",
        *(f"{one['severity']:<9} {one['key']}: {one['message']}" for one in predicate["findings"]),
        f"residency.toml has SHA-256 {statement['subject'][0]['digest']['sha256']}",
        f"\nconnections since {connections['since']}",
        table(
            connections["by_destination"],
            "destination",
            "allowed",
            "refused",
            "sent_bytes",
            "received_bytes",
        ),
    ]
    return "\n".join(lines)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused("failed", f"{path}: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise Refused("failed", f"{path}: {error.strerror}") from None


def _declared(config_path: Path) -> tuple[Any, Any]:
    """What both files say. Not the machine: the wall is built before it is finished."""
    from appliance import residency

    settings, declared, _ = residency.judge(config_path, machine=False)
    if declared is None:
        raise ConfigInvalid([f"{config_path}: residency: missing: no residency file is named"])
    return settings, declared
