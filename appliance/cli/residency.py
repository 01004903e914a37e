"""`residency`: of the files alone, whatever the machine is like."""

import argparse
import re
from pathlib import Path
from typing import Any

from appliance.cli.output import Output, UsageInvalid
from appliance.cli.words import Words
from appliance.errors import ConfigInvalid

SERVICE_USER = "appliance"


def add(words: Words) -> None:
    """The verbs of the residency file."""
    rules = words.noun("residency", "where this appliance stands and whom it may talk to")
    render = rules.verb("render", _render, "the residency file as the kernel enforces it")
    form = render.add_mutually_exclusive_group(required=True)
    form.add_argument("--nftables", action="store_true", help="a ruleset for nft -f")
    form.add_argument("--systemd", action="store_true", help="a drop-in for the unit")
    render.add_argument("--user", default=SERVICE_USER, help=f"whom the rules bind; default {SERVICE_USER}")
    check = rules.verb("verify", _verify, "read a residency file, name every finding")
    check.add_argument("file", type=Path, nargs="?", help="default: the one that the configuration names")


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


def _verify(arguments: argparse.Namespace) -> Output:
    from appliance import residency

    declared = residency.load(arguments.file) if arguments.file else _declared(arguments.config)[1]
    document = {"valid": True, "site": declared.site, "country": declared.country}
    return Output(document, f"{declared.site}, {declared.country}: the residency file is valid")


def _declared(config_path: Path) -> tuple[Any, Any]:
    """What both files say. Not the machine: the wall is built before it is finished."""
    from appliance import residency

    settings, declared, _ = residency.judge(config_path, machine=False)
    if declared is None:
        raise ConfigInvalid([f"{config_path}: residency: missing: no residency file is named"])
    return settings, declared
