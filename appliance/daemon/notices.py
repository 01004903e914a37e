"""What the parts have to say of themselves, as findings of `status` and of readiness."""

from collections.abc import Iterator

from appliance import config
from appliance.accounts.rotations import Rotations
from appliance.accounts.tokens import Tokens
from appliance.accounts.transparency.tree import AuditTree
from appliance.daemon.state import State
from appliance.datasets.images import Images
from appliance.health import Finding
from appliance.ledger import Ledger
from appliance.privacy.erasure import Erasure
from appliance.recognition.bundles import Bundles
from appliance.recognition.engine import Engine
from appliance.search.collections import Collections
from appliance.search.erasing import AGAIN_SECONDS
from appliance.search.scrub import Scrub
from appliance.search.sync.synchronisation import Synchronisation

_NAMED = 10
"""Of many of a kind."""


def found(  # noqa: PLR0917 - the parts
    settings: config.Recognition,
    engine: Engine,
    images: Images,
    state: State,
    synchronisation: Synchronisation,
    erasure: Erasure,
) -> list[Finding]:
    """All that is wrong, or to be done, now; from memory."""
    return [
        *_of_models(settings, engine, state.bundles),
        *_of_images(images),
        *_of_collections(state.collections.scrub),
        *_of_removed(state.collections),
        *_of_feeds(synchronisation),
        *_of_ledger(state.ledger),
        *_of_audit(state.audit_tree),
        *_of_tokens(state.tokens),
        *_of_erasures(erasure),
        *_of_keys(state.rotations),
    ]


def _of_models(settings: config.Recognition, engine: Engine, bundles: Bundles) -> Iterator[Finding]:
    for one in bundles.damaged():
        message = f"{one.name} {one.version} is damaged and left out: {one.fault}; install it again"
        yield Finding("degraded", f"bundle.{one.name}", message)
    for name, message in engine.refused():
        yield Finding("degraded", f"bundle.{name}", message)
    budget, taken = settings.memory_bytes, engine.pinned_bytes()
    if 0 < budget < taken:
        yield Finding(
            "notice",
            "recognition.memory_bytes",
            f"backbones and `pinned` take {taken >> 20} of the {budget >> 20} MiB for models: the others have"
            " room for one at a time, and are loaded anew after another was asked for: allow more, pin fewer",
        )


def _of_images(images: Images) -> Iterator[Finding]:
    if (condition := images.folder.condition).reason is not None:
        message = f"stored images are out of reach: {condition.reason}"
        if condition.state == "offline":
            message += "; mount its volume there again, or restart"
        yield Finding("degraded", "datasets.volume", message)
    if (shortage := images.upkeep.shortage()) is not None:
        yield Finding("degraded", "volume.ballast", shortage)
    if (unfinished := images.upkeep.unfinished()) is not None:
        yield Finding("degraded", "datasets.deletions", unfinished)
    if damaged := images.upkeep.damaged:
        message = f"{damaged} stored images are damaged: the log and the audit log name them"
        yield Finding("degraded", "datasets.damaged", message)
    if (doubt := images.upkeep.doubt()) is not None:
        yield Finding("degraded", "datasets.clock", doubt)


def _of_collections(scrub: Scrub) -> Iterator[Finding]:
    if any(scrub.damaged):
        told = [
            f"{scrub.damaged.frames} blocks of stored vectors" if scrub.damaged.frames else "",
            f"{scrub.damaged.records} records" if scrub.damaged.records else "",
        ]
        message = f"{' and '.join(filter(None, told))} are damaged: the log and the audit log name them"
        yield Finding("degraded", "search.damaged", message)
    if scrub.keyless:
        message = (
            f"{len(scrub.keyless)} collections have no key, the log names them: keyring and ledger are not of"
            " the same time; remove these, or restore a backup of both"
        )
        yield Finding("degraded", "search.keys", message)


def _of_removed(collections: Collections) -> Iterator[Finding]:
    if count := collections.unerased:
        message = (
            f"{count} removed, emptied or replaced collections are not erased yet, the log says why: each is"
            f" tried again every {AGAIN_SECONDS:g} seconds, and after a restart"
        )
        yield Finding("degraded", "search.erasures", message)


def _of_feeds(synchronisation: Synchronisation) -> Iterator[Finding]:
    if asking := synchronisation.asking:
        message = f"{asking} feeds have lost many items: their customers confirm it, or put them right"
        yield Finding("notice", "search.feeds", message)


def _of_ledger(ledger: Ledger) -> Iterator[Finding]:
    """No restart mends it, which would refuse to serve at all: reads go on meanwhile."""
    if ledger.alteration is not None:
        message = f"nothing is written to the ledger: {ledger.alteration}"
        yield Finding("failed", "ledger.altered", message)


def _of_audit(tree: AuditTree) -> Iterator[Finding]:
    if tree.finding is not None:
        yield Finding("degraded", "audit.log", f"the audit log is not signed any further: {tree.finding}")


def _of_tokens(tokens: Tokens) -> Iterator[Finding]:
    if damaged := tokens.damaged:
        named = ", ".join(damaged[:_NAMED]) + (" and others" if len(damaged) > _NAMED else "")
        message = (
            f"{len(damaged)} tokens are not taken: something else than the appliance has changed their rows."
            f" They are {named}; `appliance audit verify` names them all, and what else was changed."
            " `appliance token revoke` ends one, and its customer issues another"
        )
        yield Finding("degraded", "tokens.damaged", message)


def _of_erasures(erasure: Erasure) -> Iterator[Finding]:
    if held_up := erasure.held_up:
        message = (
            f"{len(held_up)} erasures of customers are held up, the log says by what: `customer erase` or a"
            " restart goes on with them"
        )
        yield Finding("degraded", "privacy.erasures", message)


def _of_keys(rotations: Rotations) -> Iterator[Finding]:
    if (rotation := rotations.rotation) is not None:
        fix = {
            "restart": "put the new one in place as root.key and restart",
            "retire": "`appliance key retire` takes the old one away",
        }
        yield Finding("notice", "keys.root", f"two root keys open the keyring: {fix[rotation]}")
