"""The daemon's one run: signals, the start of its parts, readiness, reload, drain."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from appliance import config, health, metrics, residency, systemd
from appliance.accounts import audit
from appliance.accounts.compliance import Compliance
from appliance.api.server import Server
from appliance.background import end_tasks
from appliance.config import Config
from appliance.daemon import notices
from appliance.daemon.state import VERSION, clock, open_state
from appliance.daemon.statement import residency_statement
from appliance.datasets.images import Clocks, open_images
from appliance.errors import (
    ApplianceError,
    ConfigInvalid,
    Declined,
    StorageFailed,
    VolumeFull,
    WorkerLost,
)
from appliance.health import Health, Status
from appliance.ledger import newest
from appliance.recognition import selftest
from appliance.recognition.bundles import Bundles
from appliance.recognition.decoders import Decoders
from appliance.recognition.embedding import Embedding
from appliance.recognition.engine import Engine
from appliance.residency import Residency
from appliance.search.sync.synchronisation import Synchronisation
from appliance.unforeseen import frames_of

_log = logging.getLogger(__name__)

# While parts start or stop, each beat asks the service manager for so much more time; three beats fit in.
EXTENSION_SECONDS = 15.0
STOP_SECONDS = 300.0  # for the parts to stop, when the last request is answered
COUNT_SECONDS = 1.0
RECORD_SECONDS = 20.0  # until an entry that found no room on the volume is tried again


class _Heartbeat:
    """Calls `beat` every `seconds` from the event loop: a loop that hangs beats no more."""

    def __init__(self, seconds: float, beat: Callable[[], None]) -> None:
        self._seconds = seconds
        self._beat = beat

    def __enter__(self) -> Self:
        self._next()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _next(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._next)
        self._beat()


class Daemon:
    """One run from the first signal handler to the wiped keys."""

    def __init__(self, config_path: Path, settings: Config, declared: Residency | None) -> None:
        self._config_path = config_path
        self._settings = settings
        self._declared = declared
        self._phase: Literal["starting", "serving", "stopping"] = "starting"
        self._woken = asyncio.Event()
        self._hurried = asyncio.Event()
        self._stop_asked = False
        self._reload_asked = False
        self._restart_wanted = False

    async def run(self) -> None:
        """Start, serve, reload and stop as the signals say; returns after an orderly stop."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_fault)
        self._began, self._began_at = loop.time(), clock()
        self._task = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        try:
            async with contextlib.AsyncExitStack() as stack:
                watchdog = systemd.watchdog_seconds()
                beat = partial(self._beat, watched=watchdog is not None)
                stack.enter_context(
                    _Heartbeat(min(EXTENSION_SECONDS, watchdog or EXTENSION_SECONDS) / 3, beat)
                )
                await self._start(stack)
                await self._follow_signals()
                await self._leave()
        except asyncio.CancelledError:
            if not self._stop_asked:
                raise
        _tell("stopped")

    def _on_stop(self) -> None:
        if self._stop_asked:
            self._hurried.set()
        elif self._phase == "starting" and self._task is not None:
            self._task.cancel()
        self._stop_asked = True
        self._woken.set()

    def _on_reload(self) -> None:
        self._reload_asked = True
        self._woken.set()

    def _beat(self, *, watched: bool) -> None:
        if self._phase == "stopping" and asyncio.get_running_loop().time() > self._stopped_by:
            return
        if self._phase != "serving":
            systemd.notify(f"EXTEND_TIMEOUT_USEC={int(EXTENSION_SECONDS * 1e6)}")
        if not watched or self._restart_wanted:
            return
        reason = self._health.watchdog() if self._phase == "serving" else None
        if reason is None:
            systemd.notify("WATCHDOG=1")
        else:
            self._restart_wanted = True
            _log.critical(
                "the watchdog is fed no more, so that the service manager restarts this: %s", reason
            )
            systemd.notify(f"STATUS=to be restarted by the watchdog: {reason}")

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        enter, settings = stack.enter_async_context, self._settings
        registry = metrics.create()
        _tell("opening the state folder")
        self._state = state = await open_state(stack, settings, self._declared, registry)
        await self._record_start(stack)
        await enter(state.audit_tree)
        self._compliance = await enter(Compliance(self._verify, state.ledger, clock))
        _tell("starting the decoders")
        decoders = await enter(Decoders(settings.recognition, registry))
        _tell("starting the devices")
        self._engine = await enter(Engine(settings.recognition, registry, damaged=state.bundles.report))
        await self._load(state.bundles, decoders)
        _tell("opening the store of images")
        self._images = await enter(
            open_images(
                settings.state,
                settings.datasets,
                state.ledger,
                state.keyring,
                space=state.space,
                agreements=state.agreements,
                codec=decoders,
                encrypted=settings.profile == "production",
                clocks=Clocks(clock, time.monotonic, state.times.forward),
                registry=registry,
                quotas=state.quotas,
                may_store=self._compliance.require,
                contradicted=state.audit_tree.broken,
            )
        )
        state.requests.go_by(self._images.upkeep.leaps)
        state.times.go_by(self._images.upkeep.leaps.believed())
        for part in (state.requests, state.outbound, state.egress, state.webhooks):
            await enter(part)
        await enter(state.collections.scrub)
        self._synchronisation = await enter(
            Synchronisation(
                state.ledger,
                state.keyring,
                collections=state.collections,
                customers=state.customers,
                outbound=state.outbound,
                embed=Embedding(state.bundles, decoders, self._engine),
                settings=settings.search,
                clock=clock,
                registry=registry,
            )
        )
        self._erasure = await enter(state.erasure(self._images))
        _tell("observing the machine")
        self._health = await enter(Health(settings.health, self._sources(), registry))
        for number, found in enumerate(self._images.upkeep.findings):
            self._health.report(health.Finding("degraded", f"datasets.{number}", found))
        if settings.bundles.allow_unsigned:
            message = "bundles that nobody signed may be installed"
            _log.warning("bundles.allow_unsigned: %s", message)
            self._health.report(health.Finding("notice", "bundles.allow_unsigned", message))
        files = self._images.files
        backups = await enter(state.backups(settings, lambda: contextlib.nullcontext(files)))
        parts = state.parts(
            settings,
            self._declared,
            status=self._status,
            readiness=self._health.readiness,
            decoders=decoders,
            engine=self._engine,
            images=self._images,
            backups=backups,
            synchronisation=self._synchronisation,
            erasure=self._erasure,
            residency_statement=self._residency_statement,
        )
        self._server = Server(parts)
        await enter(self._server)  # its socket answers before its listeners are there
        # What is here now stays: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        self._phase = "serving"
        self._health.serving()
        addresses = " ".join(address for bound in self._server.listeners().values() for address in bound)
        _log.info("appliance %s serves on %s", VERSION, addresses)
        systemd.notify("READY=1", f"STATUS=serving on {addresses}")

    async def _load(self, bundles: Bundles, decoders: Decoders) -> None:
        """Load every bundle; one whose model does not run here is a finding and costs the others nothing."""
        for damaged in bundles.damaged():
            await bundles.report(damaged.pin, damaged.fault)
        for bundle in bundles.list():
            named = f"{bundle.name} {bundle.version}"
            _tell(f"loading {named}")
            try:
                await selftest.serve(bundle, decoders, self._engine)
            except (Declined, WorkerLost) as refusal:
                _log.error("bundle %s is not served: %s", named, refusal)

    def _sources(self) -> health.Sources:
        return health.Sources(
            machine=lambda: residency.examine(self._settings.state, self._settings.residency),
            rules=self._compliance.judge,
            ledger_fault=lambda: self._state.ledger.failure,
            devices=self._engine.devices,
            notices=partial(
                notices.found,
                self._settings.recognition,
                self._engine,
                self._images,
                self._state,
                self._synchronisation,
                self._erasure,
            ),
        )

    def _verify(self, facts: residency.Facts) -> list[residency.Finding]:
        return residency.verify(self._settings, self._declared, facts)

    async def _follow_signals(self) -> None:
        """Reload as often as asked; returns when a stop is asked."""
        while not self._stop_asked:
            await self._woken.wait()
            self._woken.clear()
            if self._reload_asked and not self._stop_asked:
                self._reload_asked = False
                await self._reload()

    async def _reload(self) -> None:
        systemd.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            settings, declared = await asyncio.to_thread(self._read_again)
            await self._server.apply(settings.api)
        except ApplianceError as error:
            _log.error("reload refused, the running configuration stays: %s", error)
            message = f"reload refused: {error}".replace("\n", "; ")
            self._health.report(health.Finding("notice", "config", message))
            systemd.notify("READY=1", f"STATUS={message}")
            return
        self._settings, self._declared = settings, declared
        apply_log_level(settings)
        self._health.withdraw("config")
        with contextlib.suppress(ApplianceError):  # the ledger's failure is a finding of its own
            await self._record(audit.Event.DAEMON_RELOAD, {"log_level": settings.log.level})
        _log.info("configuration reloaded from %s", self._config_path)
        systemd.notify("READY=1", "STATUS=serving with the reloaded configuration")

    def _read_again(self) -> tuple[Config, Residency | None]:
        settings, declared, _ = residency.judge(self._config_path)
        keys = config.restart_needed(self._settings, settings)
        if declared != self._declared:
            keys.append("residency (what the file says)")
        if keys:
            raise ConfigInvalid([f"{self._config_path}: {key}: a change needs a restart" for key in keys])
        return settings, declared

    async def _leave(self) -> None:
        """Not ready while still serving, so that a load balancer looks elsewhere; then the parts stop.

        One that does not is left to the service manager in the end: nothing that was acknowledged needs an
        orderly stop.
        """
        self._health.draining()
        lifecycle = self._settings.lifecycle
        seconds = lifecycle.lame_duck_seconds
        self._stopped_by = (
            asyncio.get_running_loop().time() + seconds + lifecycle.drain_seconds + STOP_SECONDS
        )
        self._phase = "stopping"
        _log.info("stopping: not ready from now on, serving for another %g s", seconds)
        systemd.notify("STOPPING=1", f"STATUS=not ready, serving for another {seconds:g} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), seconds)
        _tell("draining")

    async def _record_start(self, stack: contextlib.AsyncExitStack) -> None:
        """Before anything is served; on a full volume, whose only way out is a start, when it has room."""
        details: dict[str, object] = {
            "version": VERSION,
            "profile": self._settings.profile,
            "schema": newest(),
        }
        try:
            await self._record(audit.Event.DAEMON_START, details)
        except VolumeFull:
            _log.error("this start is not in the audit log yet: it is recorded when there is room")
            recording = asyncio.get_running_loop().create_task(self._record_late(details))
            stack.push_async_callback(end_tasks, recording)

    async def _record_late(self, details: dict[str, object]) -> None:
        while True:
            await asyncio.sleep(RECORD_SECONDS)
            with contextlib.suppress(VolumeFull, StorageFailed):
                await self._record(audit.Event.DAEMON_START, details)
                return

    async def _record(self, event: audit.Event, details: dict[str, object]) -> None:
        actor = audit.Actor("system", "daemon")
        milliseconds = int(clock() * 1000)
        await self._state.ledger.write(
            lambda connection: audit.record(connection, milliseconds, actor, event, None, None, details)
        )

    def _residency_statement(self) -> bytes:
        return residency_statement(
            self._state.keyring.service,
            self._settings,
            self._declared,
            version=VERSION,
            compliance=self._compliance,
            outbound=self._state.outbound,
            listeners=self._server.listeners(),
            began=self._began_at,
            now=clock(),
        )

    async def _status(self) -> dict[str, object]:
        state, observed = self._state, self._health
        readiness = observed.readiness()
        return Status(
            version=VERSION,
            profile=self._settings.profile,
            state=readiness.state,
            findings=readiness.findings,
            pid=os.getpid(),
            uptime_seconds=asyncio.get_running_loop().time() - self._began,
            listeners=self._server.listeners(),
            devices=self._engine.devices(),
            gpus=observed.gpus,
            volume=observed.volume,
            customers=await _count(state.customers.list()),
            collections=await _count(state.collections.list(None)),
            bundles=[
                {
                    "name": bundle.name,
                    "version": bundle.version,
                    "kind": bundle.kind,
                    "task": bundle.task,
                    "active": bundle.active,
                    "loaded": self._engine.loaded(bundle),
                }
                for bundle in state.bundles.list()
            ],
        ).document()


def apply_log_level(settings: Config) -> None:
    """Also what a reload may change."""
    logging.getLogger().setLevel(settings.log.level.upper())


async def _count(listing: Any) -> int | None:
    """How many, None when the ledger does not say so soon: a dead disk must not silence `status`."""
    try:
        return len(await asyncio.wait_for(listing, COUNT_SECONDS))
    except (TimeoutError, ApplianceError):
        return None


def _tell(progress: str) -> None:
    _log.info("%s", progress)
    systemd.notify(f"STATUS={progress}")


def _log_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What no part caught."""
    error = context.get("exception")
    frames = frames_of(error) if error is not None else ""
    _log.error("uncaught in the event loop: %s %s", type(error).__name__, frames)
