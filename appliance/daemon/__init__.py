"""The composition root: builds the parts in the order of a start and takes them down in the reverse.

The only package that knows all parts. `serve` is the daemon, `operating` opens a state folder for one command
of the CLI, `examine` reads a configuration as both would.
"""

import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import uvloop

from appliance import metrics, process, residency, systemd, vault
from appliance.api.server import Server
from appliance.config import Config
from appliance.daemon.running import Daemon, apply_log_level
from appliance.daemon.state import open_state
from appliance.datasets.files import stored_alone
from appliance.errors import ApplianceError, DaemonNeeded
from appliance.health import Readiness

_log = logging.getLogger(__name__)


def serve(config_path: Path) -> None:
    """Run the daemon until SIGTERM or SIGINT, then drain and return; blocks.

    Raises ConfigInvalid (nothing is started then) for findings in the files or against the rules of the
    profile, StateInUse when another process holds the state folder, and what a part says that cannot start.
    """
    process.harden()
    process.give_memory_back()
    logging.basicConfig(level=logging.INFO, handlers=[systemd.log_handler()])
    # No line tells its thread, its process or its place in the source, so none of them is looked for.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001 - as the logging HOWTO has it
    settings, declared, warnings = residency.judge(config_path)
    apply_log_level(settings)
    vault.self_test()
    for warning in warnings:
        _log.warning("%s: %s", warning.key, warning.message)
    uvloop.run(Daemon(config_path, settings, declared).run())


def examine(
    config_path: Path, *, machine: bool = True, state: Path | None = None
) -> tuple[Config, list[residency.Finding]]:
    """The configuration and what its profile only warns of; the process is ready to hold keys.

    As `residency.judge`. Raises ConfigInvalid with every finding.
    """
    process.harden()
    settings, _, warnings = residency.judge(config_path, machine=machine, state=state)
    return settings, warnings


@contextlib.asynccontextmanager
async def operating(config_path: Path) -> AsyncIterator[None]:
    """Within the block this process holds the state folder and serves the operator socket, nothing else.

    Raises what `serve` raises, and DaemonNeeded when the root key comes with the daemon's unit.
    """
    process.harden()
    vault.self_test()
    settings, declared, _ = residency.judge(config_path)
    if not vault.at_hand(settings.vault):
        reason = f"no daemon runs on {settings.state}, and its root key comes with its unit alone"
        raise DaemonNeeded(f"{reason}; start it: systemctl start appliance")
    async with contextlib.AsyncExitStack() as stack:
        state = await open_state(stack, settings, declared, metrics.create())

        async def status() -> dict[str, object]:
            raise ApplianceError("no daemon runs")

        encrypted = settings.profile == "production"
        keys = state.keyring.service
        alone = partial(stored_alone, settings.state / "images", keys, encrypted=encrypted)
        backups = await stack.enter_async_context(state.backups(settings, alone))
        ready = partial(Readiness, "starting")
        parts = state.parts(settings, declared, status=status, readiness=ready, backups=backups)
        await stack.enter_async_context(Server(parts))
        yield
