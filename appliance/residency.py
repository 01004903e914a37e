"""The EU rule: where this appliance stands, who may connect, where it may connect to, and what breaks that.

What is declared here is held to by `appliance.outbound`, by the firewall's rules and by the unit's.
"""

import json
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import ValidationInfo as Info
from pydantic_core import ErrorDetails

from appliance.config import Config, exposures, key_of, read, read_toml, reason_of
from appliance.errors import ConfigInvalid
from appliance.volume import SwapFacts, VolumeFacts, swaps
from appliance.volume import facts as volume_facts

# ISO 3166-1 alpha-2: the member states of the European Union, and what the European Economic Area adds.
# fmt: off
EU = frozenset({
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU",
    "IE", "IT", "LT", "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
})
# fmt: on
EEA_ONLY = frozenset({"IS", "LI", "NO"})

_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_LONGEST_VALUE = 200


def _allowed_country(code: str, info: Info) -> str:
    eea = bool((info.context or {}).get("eea"))
    if code in EU or (eea and code in EEA_ONLY):
        return code
    if code in EEA_ONLY:
        raise ValueError("is in the EEA and not in the EU: allowed only with eea = true")
    area = "the EU or the EEA" if eea else "the EU"
    raise ValueError(f"is not a country of {area} (two capital letters of ISO 3166-1, such as CZ)")


def _network(value: object) -> IPv4Network | IPv6Network:
    if not isinstance(value, str):
        raise ValueError("must be a network in quotes, such as 10.0.0.0/8")  # noqa: TRY004 - pydantic's protocol
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError("must be a network such as 10.0.0.0/8, without bits beyond its prefix") from None


def _host(name: str) -> str:
    try:
        ip_address(name)
    except ValueError:
        if len(name) > 253 or not _HOST.fullmatch(name):
            raise ValueError("must be a host name or an IP address") from None
    return name


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
Country = Annotated[str, AfterValidator(_allowed_country)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Use = Literal["images", "webhooks", "feeds"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Destination(_Table):
    """Somewhere outside that the appliance may connect to: where it is, whose country, what for.

    `uses` is what requests of customers may lead there: images and feeds fetched, webhooks called. Without
    `tls` they go over plain HTTP.
    """

    name: Text
    host: Annotated[str, AfterValidator(_host)]
    cidrs: tuple[Network, ...] = Field(min_length=1, strict=False)
    port: int = Field(ge=1, le=65535)
    country: Country
    purpose: Text
    uses: tuple[Use, ...] = Field((), strict=False)
    tls: bool = True


class _Client(_Table):
    cidr: Network


class _File(_Table):
    site: Text
    country: Country
    eea: bool = False
    destinations: tuple[Destination, ...] = Field((), strict=False)
    clients: tuple[_Client, ...] = Field((), strict=False)


@dataclass(frozen=True, slots=True)
class Residency:
    """The residency file. `clients` are the networks that may connect; loopback is not implied."""

    site: str
    country: str
    eea: bool
    destinations: tuple[Destination, ...]
    clients: tuple[IPv4Network | IPv6Network, ...]

    def allows_client(self, address: str) -> bool:
        """Whether a peer of this address may connect; an IPv4-mapped IPv6 address counts as its IPv4 one."""
        try:
            peer = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(peer, IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self.clients)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the machine itself says, as `examine` finds it; `core_limit` is the soft RLIMIT_CORE in bytes."""

    volume: VolumeFacts
    swaps: tuple[SwapFacts, ...]
    core_limit: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule: production is refused for it, a demo warns."""

    severity: Literal["refuse", "warn"]
    key: str
    message: str


def load(path: Path) -> Residency:
    """Read and check a residency file; blocks on the disk.

    Raises ConfigInvalid with every finding as "FILE: KEY: VALUE: reason".
    """
    data = read_toml(path)
    try:
        file = _File.model_validate(data, context={"eea": data.get("eea") is True})
    except ValidationError as error:
        raise ConfigInvalid([_described(path, item) for item in error.errors(include_url=False)]) from None
    clients = tuple(client.cidr for client in file.clients)
    return Residency(file.site, file.country, file.eea, file.destinations, clients)


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


def examine(state: Path) -> Facts:
    """The facts that `verify` judges; blocks on the disk. Raises StorageFailed."""
    return Facts(volume_facts(state), tuple(swaps()), resource.getrlimit(resource.RLIMIT_CORE)[0])


def verify(config: Config, residency: Residency | None, facts: Facts | None) -> list[Finding]:
    """Every rule that configuration and machine break together; empty when production may start.

    Without facts the rules about the machine are left out.
    """
    broken = [*exposures(config)]
    if residency is not None and not residency.clients:
        broken.append(("clients", "none are declared in the residency file: nobody may connect"))
    if facts is not None:
        broken += _leaks(config, facts)
    severity: Literal["refuse", "warn"] = "refuse" if config.profile == "production" else "warn"
    return [Finding(severity, key, message) for key, message in broken]


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


def _described(path: Path, item: ErrorDetails) -> str:
    if item["type"] == "missing":
        return f"{path}: {key_of(item)}: missing"
    value = json.dumps(item["input"], default=str, ensure_ascii=False)
    if len(value) > _LONGEST_VALUE:
        value = value[:_LONGEST_VALUE] + "..."
    return f"{path}: {key_of(item)}: {value}: {reason_of(item)}"
