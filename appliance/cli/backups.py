"""`backup` and `restore`."""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from appliance.cli.client import Operator, client
from appliance.cli.output import Document, Output, Refused
from appliance.cli.words import Words
from appliance.errors import DaemonNeeded

KEEP_DAYS = 30
_TOLD_EVERY = 2.0
_UNIT = (
    "systemd-run --pipe --wait -p LoadCredentialEncrypted=root.key:/etc/appliance/root.key.cred"
    " appliance restore ..."
)


def add(words: Words) -> None:
    """The verbs of backups."""
    backup = words.verb("backup", client(_backup), "copy the whole state as ciphertext, its keyring apart")
    backup.add_argument("--to", type=Path, required=True, metavar="DIR", help="where backups lie")
    backup.add_argument(
        "--keyring-to", type=Path, required=True, metavar="DIR", help="where keyrings lie, on another medium"
    )
    backup.add_argument(
        "--keep-days",
        type=float,
        default=KEEP_DAYS,
        metavar="N",
        help=f"keyrings there that are older are removed; default {KEEP_DAYS}",
    )

    restore = words.verb("restore", _restore, "make a state folder from a backup, without a daemon")
    restore.add_argument(
        "--from", dest="backup", type=Path, required=True, metavar="DIR/NAME", help="a backup"
    )
    restore.add_argument("--keyring", type=Path, required=True, metavar="FILE", help="its keyring or a newer")
    restore.add_argument("--state", type=Path, metavar="DIR", help="default: the one that the config names")
    restore.add_argument(
        "--verify-only", action="store_true", help="prove every file and seal, and restore nothing"
    )
    since = restore.add_mutually_exclusive_group()
    since.add_argument("--tombstones", type=Path, metavar="FILE", help="the newest export: ends it all again")
    since.add_argument(
        "--without-tombstones", action="store_true", help="what was erased since the backup comes back"
    )


async def _backup(operator: Operator, arguments: argparse.Namespace) -> Output:
    from appliance import config
    from appliance.backup import destination, receiving

    folder, keyrings = arguments.to.absolute(), arguments.keyring_to.absolute()
    state, _ = config.locate(arguments.config)
    _check_declared(arguments.config, folder, keyrings)
    if destination.check_apart(folder, keyrings, state):
        print(f"{folder} and {keyrings} lie on one medium: whoever gets it has both", file=sys.stderr)
    made = await receiving.receive(
        operator.stream("POST", "/backup"),
        folder,
        keyrings,
        keep_days=arguments.keep_days,
        progress=_Progress(),
    )
    document: Document = {
        "id": str(made.header.backup),
        "backup": str(made.folder),
        "keyring": str(made.keyring),
        "tombstones": str(made.tombstones),
        "ledger_entry": made.header.entry,
        "files": made.files,
        "bytes": made.bytes,
        "absent": made.absent,
        "removed": [str(path) for path in made.removed],
    }
    lines = [
        f"backup {made.folder}: {made.files} files, {made.bytes / 2**20:.1f} MiB, read again and as sent",
        f"its keyring is {made.keyring}",
        *(f"left out, {absent}" for absent in made.absent),
    ]
    return Output(document, "\n".join(lines))


def _check_declared(config_path: Path, *folders: Path) -> None:
    """Raises Refused for a folder that is not declared; a file without `[[backups]]` is only told of."""
    from appliance import config, residency

    settings, _ = config.read(config_path)
    if settings.residency is None:
        return
    declared = residency.load(settings.residency)
    if not declared.backups:
        print(f"{settings.residency} declares no [[backups]]: any folder is taken", file=sys.stderr)
        return
    for folder in folders:
        if not declared.allows_backup(folder):
            reason = f"lies below no path of [[backups]] in {settings.residency}"
            raise Refused("not_declared", f"{folder}: {reason}")


def _restore(arguments: argparse.Namespace) -> Output:
    from appliance import daemon, vault

    only = arguments.verify_only
    state = None if arguments.state is None else arguments.state.absolute()
    settings, warnings = daemon.examine(arguments.config, machine=not only, state=state)
    for warning in () if only else warnings:
        print(f"warning: {warning.key}: {warning.message}", file=sys.stderr)
    vault.self_test()
    if not vault.at_hand(settings.vault):
        raise DaemonNeeded(
            f"the root key comes with the daemon's unit alone; hand it to this as well: {_UNIT}"
        )
    if only:
        return _verified(arguments, vault.read_root(settings.vault))
    if arguments.tombstones is None and not arguments.without_tombstones:
        raise Refused("tombstones_needed", _which_tombstones(arguments.keyring.absolute()))
    if arguments.tombstones is not None:
        _require_newest(arguments.tombstones.absolute(), arguments.keyring.absolute())
    return _restored(arguments, settings, vault.read_root(settings.vault))


def _verified(arguments: argparse.Namespace, root: bytearray) -> Output:
    from appliance.backup.verification import opened, verify
    from appliance.vault import Keyring

    folder = arguments.backup.absolute()
    keyring = Keyring.open(arguments.keyring, root)
    try:
        with opened(folder, keyring, arguments.tombstones) as backup:
            found = verify(backup, keyring, _Progress())
            document = _document(folder, backup.header, found)
    finally:
        keyring.wipe()
    text = (
        f"{folder}: {found.files} files are as they were made, {found.images} images open with this keyring"
    )
    return Output(document, "\n".join([text, *found.damaged]))


def _restored(arguments: argparse.Namespace, settings: Any, root: bytearray) -> Output:
    from appliance.accounts.audit import Actor
    from appliance.backup.restoration import check_empty, restore
    from appliance.ledger import StateLock

    folder, state = arguments.backup.absolute(), settings.state
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused("storage_failed", f"{state}: {error.strerror}") from error
    lock = StateLock(state)
    lock.acquire()
    try:
        check_empty(state)
        done = asyncio.run(
            restore(
                folder,
                arguments.keyring,
                state,
                root,
                newer=arguments.tombstones,
                clock=time.time,  # noqa: TID251 - there is nobody above to hand one in
                actor=Actor("operator", str(os.getuid())),
                progress=_Progress(),
            )
        )
    finally:
        lock.release()
    found = done.verified
    document = {"state": str(state), **_document(folder, done.header, found)}
    lines = [f"{state} holds {folder.name} again: {found.images} images; start the daemon", *found.damaged]
    if ended := [f"{count} {what}" for what, count in found.ended.items() if count]:
        lines.insert(1, f"ended or suspended since, and so again: {', '.join(ended)}")
    return Output(document, "\n".join(lines))


def _document(folder: Path, header: Any, found: Any) -> Document:
    return {
        "id": str(header.backup),
        "backup": str(folder),
        "version": header.version,
        "ledger_entry": header.entry,
        "files": found.files,
        "bytes": found.bytes,
        "images": found.images,
        "damaged": found.damaged,
        "ended": found.ended,
    }


def _which_tombstones(keyring: Path) -> str:
    """Why tombstones are needed, and which are the newest that are at hand."""
    reason = "what was erased or revoked since this backup would come back: give the newest --tombstones FILE"
    beside = _tombstones_beside(keyring)
    hint = f", such as {beside[-1]}" if beside else ""
    return f"{reason}{hint}, or say --without-tombstones"


def _require_newest(given: Path, keyring: Path) -> None:
    """Raises Refused where newer ones lie beside the keyring; by their names, which a copy may not have."""
    beside = _tombstones_beside(keyring)
    if beside and 0 < _numbers(given.name)[0] < _numbers(beside[-1].name)[0]:
        reason = "what was erased or revoked between them would come back: give that one, or move it away"
        raise Refused("tombstones_needed", f"{beside[-1]} is newer than {given}: {reason}")


def _tombstones_beside(keyring: Path) -> list[Path]:
    """The newest last, by the entry that they end at: the time in a name may be of a clock that was ahead."""
    return sorted(keyring.parent.glob("tombstones-*"), key=lambda path: _numbers(path.name))


def _numbers(name: str) -> tuple[int, str]:
    entry = name.rpartition("-")[2]
    return (int(entry) if entry.isdecimal() else 0, name)


class _Progress:
    """Tells on stderr, at each step and now and then, how far it has come."""

    def __init__(self) -> None:
        self._step = ""
        self._told = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        if step == self._step and now - self._told < _TOLD_EVERY:
            return
        self._step, self._told = step, now
        reached = f": {done >> 20} of {total >> 20} MiB of images" if done else ""
        print(f"{step}{reached}", file=sys.stderr)
