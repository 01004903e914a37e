"""`serve`, `check-config` and `status`."""

import argparse

from appliance.cli.client import Operator, client
from appliance.cli.output import Document, Output, table
from appliance.cli.words import Words


def add(words: Words) -> None:
    """The verbs of the daemon itself."""
    words.verb("serve", _serve, "run the daemon in the foreground, as systemd does")
    words.verb("check-config", _check_config, "read the configuration as a start would, name every finding")
    words.verb("status", client(_status, only_running=True), "what the running daemon says about itself")


def _serve(arguments: argparse.Namespace) -> None:
    from appliance import daemon

    daemon.serve(arguments.config)


def _check_config(arguments: argparse.Namespace) -> Output:
    from appliance import daemon

    settings, warnings = daemon.examine(arguments.config)
    document = {
        "valid": True,
        "profile": settings.profile,
        "warnings": [{"key": warning.key, "message": warning.message} for warning in warnings],
    }
    lines = [f"{arguments.config}: valid, profile {settings.profile}"]
    lines += [f"warning: {warning.key}: {warning.message}" for warning in warnings]
    return Output(document, "\n".join(lines))


async def _status(operator: Operator, _: argparse.Namespace) -> Output:
    status = await operator.call("GET", "/status")
    return Output(status, _status_text(status))


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
    lines.append(f"holds     customers {status['customers']}, collections {status['collections']}")
    for name in ("bundles", "devices"):
        lines += [f"\n{name}", table(status[name], *status[name][0])] if status[name] else []
    gpus = status["gpus"]["devices"]
    lines += ["\ngpus", table(gpus, *gpus[0])] if gpus else []
    return "\n".join(lines)
