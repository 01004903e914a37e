"""What production demands of the files and of the machine, before a start and while it runs."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appliance.config import Config, exposures, read
from appliance.errors import ConfigInvalid
from appliance.residency.declaration import WIDEST, Residency, load
from appliance.volume import SwapFacts, VolumeFacts, swaps
from appliance.volume import facts as volume_facts


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The residency file as it lies there: SHA-256 of its bytes in hexadecimal, or what is wrong with it."""

    sha256: str = ""
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What the machine itself says, as `examine` finds it; `core_limit` is the soft RLIMIT_CORE in bytes.

    `file` is None where none is named or nobody has asked for it.
    """

    volume: VolumeFacts
    swaps: tuple[SwapFacts, ...]
    core_limit: int
    file: FileFacts | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule: "refuse" is what production does not start with, "warn" is only told."""

    severity: Literal["refuse", "warn"]
    key: str
    message: str


def judge(
    config_path: Path, *, machine: bool = True, state: Path | None = None
) -> tuple[Config, Residency | None, list[Finding]]:
    """Configuration, residency file, and what the profile only warns of; blocks on the disk.

    `state` is a state folder in place of the one that the file names.

    Raises ConfigInvalid with every finding of both files and, unless told otherwise, of the machine: a person
    should come back only once.
    """
    config, wrong = read(config_path)
    if state is not None:
        config = config.model_copy(update={"state": state})
    findings = [f"{config_path}: {key}: {reason}" for key, reason in wrong]
    known = {key for key, _ in wrong}
    residency = None
    try:
        if config.residency is not None and "residency" not in known:
            residency = load(config.residency)
    except ConfigInvalid as invalid:
        findings += invalid.findings
    broken = verify(config, residency, examine(config.state) if machine else None)
    refused = [finding for finding in broken if finding.severity == "refuse"]
    findings += [f"{config_path}: {one.key}: {one.message}" for one in refused if one.key not in known]
    if findings:
        raise ConfigInvalid(findings)
    return config, residency, broken


def examine(state: Path, file: Path | None = None) -> Facts:
    """The facts that `verify` judges, those of the residency file `file` among them; blocks on the disk.

    Raises StorageFailed.
    """
    core_limit, _ = resource.getrlimit(resource.RLIMIT_CORE)
    return Facts(volume_facts(state), tuple(swaps()), core_limit, None if file is None else _read_again(file))


def _read_again(file: Path) -> FileFacts:
    try:
        return FileFacts(load(file).sha256)
    except ConfigInvalid as invalid:
        return FileFacts(wrong=tuple(invalid.findings))


def verify(config: Config, residency: Residency | None, facts: Facts | None) -> list[Finding]:
    """Every rule that configuration and machine break together; production starts when none is "refuse".

    Without facts the rules about the machine are left out. What a residency file leaves unsaid is a warning.
    """
    broken = [*exposures(config)]
    if residency is not None and not residency.clients:
        broken.append(("clients", "none are declared in the residency file: nobody may connect"))
    if facts is not None:
        broken += _leaks(config, facts)
        if residency is not None:
            broken += _elsewhere(residency, facts.volume)
    severity: Literal["refuse", "warn"] = "refuse" if config.profile == "production" else "warn"
    findings = [Finding(severity, key, message) for key, message in broken]
    if residency is not None:
        volume = None if facts is None else facts.volume
        findings += [Finding("warn", key, message) for key, message in _unsaid(residency, volume)]
        if facts is not None and facts.file is not None:
            findings += _edited(residency, facts.file)
    return findings


def _edited(residency: Residency, file: FileFacts) -> Iterator[Finding]:
    """Where the file no longer says what is held to; one that no start takes is refused in any profile."""
    if file.wrong:
        wrong = "; ".join(file.wrong)
        yield Finding("refuse", "residency", f"the file would be refused by a start: {wrong}")
    elif file.sha256 != residency.sha256:
        reason = "the file has changed since it was read: what it said then is held to until a restart"
        yield Finding("warn", "residency", reason)


def _leaks(config: Config, facts: Facts) -> Iterator[tuple[str, str]]:
    """Where the machine would let data or images reach a disk unencrypted."""
    volume = facts.volume
    if volume.encryption != "luks":
        where = f"{config.state} lies on {volume.mount} ({volume.filesystem})"
        yield "state", f"{where}, which is {volume.encryption}: production needs a LUKS volume"
    for swap in facts.swaps:
        if swap.encryption in {"plain", "unknown"}:
            risk = "images in memory could reach the disk; encrypt it or swapoff"
            yield "swap", f"{swap.name} is {swap.encryption}: {risk}"
    if facts.core_limit != 0:
        yield "core_dumps", "are on: a crash would write memory with images to disk (LimitCORE=0)"


def _elsewhere(residency: Residency, volume: VolumeFacts) -> Iterator[tuple[str, str]]:
    """Where data lies on another LUKS volume than the declared ones; any other has its own finding."""
    declared = {one.luks for one in residency.volumes}
    if not declared or volume.encryption != "luks" or (volume.luks and declared.issuperset(volume.luks)):
        return
    found = ", ".join(sorted(set(volume.luks) - declared)) or "no LUKS volume"
    wanted = ", ".join(sorted(declared))
    yield "volumes", f"{volume.mount} lies on {found}: the residency file declares {wanted}"


def _unsaid(residency: Residency, volume: VolumeFacts | None) -> Iterator[tuple[str, str]]:
    """What a file from before these keys does not say, and a wall with a hole in it."""
    if residency.controller is None:
        yield "controller", "the residency file does not say who decides about the data (GDPR Art. 4(7))"
    if residency.processor is None:
        yield "processor", "the residency file does not say who runs the appliance for them (GDPR Art. 4(8))"
    if not residency.volumes and volume is not None and volume.luks:
        found = ", ".join(volume.luks)
        yield (
            "volumes",
            f"the residency file declares none, and any LUKS volume would do; this one is {found}",
        )
    for network in residency.clients:
        if network.prefixlen < WIDEST[network.version]:
            reason = "opens the unit's address list in both directions; nftables and the gate still hold"
            yield "clients", f"{network} {reason}"
