"""The words of the command line: nouns, verbs, and the options that every verb has."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from appliance.cli.output import Output, UsageInvalid

DEFAULT_CONFIG = Path("/etc/appliance/appliance.toml")

Run = Callable[[argparse.Namespace], Output | None]


class Parser(argparse.ArgumentParser):
    """Raises UsageInvalid where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageInvalid(f"{message}\n{self.format_usage().rstrip()}")


class Words:
    """One level of the command line, which verbs and nouns are added to."""

    def __init__(self, parser: argparse.ArgumentParser, metavar: str) -> None:
        self._below = parser.add_subparsers(metavar=metavar, required=True)
        # The same options after the verb; without SUPPRESS their defaults would undo what stood before it.
        self._shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
        self._shared.add_argument("--config", type=Path, help=argparse.SUPPRESS)
        self._shared.add_argument("--json", action="store_true", help=argparse.SUPPRESS)

    def noun(self, name: str, summary: str, metavar: str = "VERB") -> "Words":
        """The verbs of a noun."""
        return Words(self._below.add_parser(name, help=summary, description=summary), metavar)

    def verb(self, name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        """A verb, which `run` carries out; its own arguments are added to what comes back."""
        added = self._below.add_parser(name, help=summary, description=summary, parents=[self._shared])
        added.set_defaults(run=run)
        return added
