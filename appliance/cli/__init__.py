"""The command line: nouns and verbs as clients of the REST routes on the operator socket.

Exit codes: 0 done, 1 refused or failed (the reason on stderr), 2 usage, 69 no daemon where one is needed, 78
the configuration or the keyring. With --json stdout holds exactly one document, for a refusal `{"error",
"reason"}`.

Each group of verbs has a module, which imports what a verb works with inside the verb: a usage error and
`--help` must neither wait for what they do not need nor fail where it is broken.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.cli import (
    agreements,
    audit,
    backups,
    bundles,
    collections,
    customers,
    datasets,
    grants,
    keys,
    privacy,
    residency,
    serving,
)
from appliance.cli.output import CONFIG, REFUSED, UNAVAILABLE, USAGE, Output, Refused, UsageInvalid
from appliance.cli.words import DEFAULT_CONFIG, Parser, Words
from appliance.errors import ApplianceError, ConfigInvalid, DaemonNeeded, KeyringInvalid

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; writes to stdout and stderr, never raises for a refusal."""
    words = sys.argv[1:] if words is None else list(words)
    as_json = "--json" in words
    try:
        arguments = _parser().parse_args(words)
        output: Output | None = arguments.run(arguments)
        if output is not None:
            print(json.dumps(output.document) if as_json else output.text)
            sys.stdout.flush()
    except UsageInvalid as error:
        return _refuse(as_json, "usage", str(error), USAGE)
    except ConfigInvalid as error:
        return _refuse(as_json, "config_invalid", str(error), CONFIG)
    except KeyringInvalid as error:
        # A person has to put a file right: trying again would not help, which is what this code says.
        return _refuse(as_json, "keyring_invalid", str(error), CONFIG)
    except DaemonNeeded as error:
        return _refuse(as_json, "unavailable", str(error), UNAVAILABLE)
    except Refused as error:
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
    root = Parser(prog="appliance", description="On-premise image recognition and visual search.")
    root.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"default {DEFAULT_CONFIG}")
    root.add_argument("--json", action="store_true", help="one JSON document on stdout")
    words = Words(root, "COMMAND")
    nouns = (
        serving,
        residency,
        customers,
        agreements,
        privacy,
        audit,
        collections,
        datasets,
        grants,
        bundles,
        keys,
        backups,
    )
    for group in nouns:
        group.add(words)
    return root
