"""The residency file: typed, frozen tables; loaded whole or refused with every finding at once."""

import hashlib
import json
import re
import uuid
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import ValidationInfo as Info
from pydantic_core import ErrorDetails

from appliance.config import key_of, parse_toml, read_file, reason_of
from appliance.errors import ConfigInvalid
from appliance.residency.addresses import LOOPBACK, NOWHERE, Network, carried, within

# ISO 3166-1 alpha-2: the member states of the European Union, and what the European Economic Area adds.
# fmt: off
EU = frozenset({
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU",
    "IE", "IT", "LT", "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
})
# fmt: on
EEA_ONLY = frozenset({"IS", "LI", "NO"})

DNS, NTP = 53, 123

# Nobody is assigned more: IANA hands IPv4 out by /8; of IPv6 a /16 is the most that any one holder has.
WIDEST = {4: 8, 6: 16}
_LOCAL = ip_network("fc00::/7")  # on no wide area: RFC 4193
_MAPPED = ip_network("::ffff:0:0/96")

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


def _network(value: object) -> Network:
    if not isinstance(value, str):
        raise ValueError("must be a network in quotes, such as 10.0.0.0/8")  # noqa: TRY004 - pydantic's protocol
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError("must be a network such as 10.0.0.0/8, without bits beyond its prefix") from None


def _named_network(network: Network, info: Info) -> Network:
    """One that says where data goes, to a machine over there, or with `local` to this one."""
    if within(network, _MAPPED):
        raise ValueError("is IPv4 in the clothes of IPv6, and no packet has them on: write it as IPv4")
    meant = carried(network)
    for kind, networks in NOWHERE.items():
        if any(within(meant, one) for one in networks):
            raise ValueError(f"is {kind}: no destination of this appliance is there")
    widest = WIDEST[meant.version]
    if meant.prefixlen < widest and not within(meant, _LOCAL):
        reason = "nobody could say in whose country that is; name the networks of this destination"
        raise ValueError(f"is a wildcard, wider than /{widest}: {reason}")
    if any(within(meant, one) for one in LOOPBACK) and not info.data.get("local"):
        raise ValueError("is this machine itself: local = true says that the destination is a service on it")
    return network


def _host(name: str) -> str:
    if "*" in name:
        raise ValueError("is a wildcard: nobody could say in whose country that is; declare each host")
    try:
        ip_address(name)
    except ValueError:
        if len(name) > 253 or not _HOST.fullmatch(name):
            raise ValueError("must be a host name or an IP address") from None
    return name


def _luks_uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError("must be the UUID that `cryptsetup luksUUID DEVICE` prints") from None


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("must be an absolute path")
    return text


AnyNetwork = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
NamedNetwork = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network), AfterValidator(_named_network)]
Country = Annotated[str, AfterValidator(_allowed_country)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Use = Literal["images", "webhooks", "feeds"]


def _uses(uses: tuple[Use, ...], info: Info) -> tuple[Use, ...]:
    if uses and info.data.get("port") in {DNS, NTP}:
        raise ValueError("is for HTTP, and this is the port of DNS or NTP")
    return uses


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Destination(_Table):
    """Somewhere outside that the appliance may connect to: where it is, whose country, what for.

    `local` is a service on this server, such as its own name server: without it no address of `cidrs` is on
    loopback. `uses` is what requests of customers may lead there: images and feeds fetched, webhooks called.
    Without `tls` they go over plain HTTP. Port 53 is a name server (TCP and UDP), port 123 a time server
    (UDP). `hourly_bytes`, sent and received, and `hourly_seconds` bound what all of it takes in an hour.
    """

    name: Text
    host: Annotated[str, AfterValidator(_host)]
    local: bool = False  # before cidrs, which are judged by it
    cidrs: tuple[NamedNetwork, ...] = Field(min_length=1, strict=False)
    port: int = Field(ge=1, le=65535)
    country: Country
    purpose: Text
    uses: Annotated[tuple[Use, ...], Field(strict=False), AfterValidator(_uses)] = ()
    tls: bool = True
    hourly_bytes: int | None = Field(None, ge=1)
    hourly_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)


class Volume(_Table):
    """A volume that data may lie on; `luks` is the UUID in its LUKS header."""

    name: Text
    luks: Annotated[str, AfterValidator(_luks_uuid)]
    country: Country


class BackupTarget(_Table):
    """A folder that backups and their keyrings may be written below."""

    name: Text
    path: Annotated[str, AfterValidator(_absolute)]
    country: Country


class LogSink(_Table):
    """Who keeps what the appliance writes to the journal."""

    name: Text
    country: Country
    purpose: Text


class _Client(_Table):
    cidr: AnyNetwork


class _File(_Table):
    site: Text
    country: Country
    eea: bool = False
    controller: Text | None = None
    processor: Text | None = None
    volumes: tuple[Volume, ...] = Field((), strict=False)
    backups: tuple[BackupTarget, ...] = Field((), strict=False)
    logs: tuple[LogSink, ...] = Field((), strict=False)
    destinations: tuple[Destination, ...] = Field((), strict=False)
    clients: tuple[_Client, ...] = Field((), strict=False)


@dataclass(frozen=True, slots=True)
class Residency:
    """The residency file. `clients` are the networks that may connect; loopback is not implied.

    `controller` and `processor` are those of the GDPR, Art. 4(7) and (8). `sha256` is of the file's bytes, in
    hexadecimal, empty where there was no file; two that say the same are equal whatever their bytes.
    """

    site: str
    country: str
    eea: bool
    destinations: tuple[Destination, ...]
    clients: tuple[Network, ...]
    controller: str | None = None
    processor: str | None = None
    volumes: tuple[Volume, ...] = ()
    backups: tuple[BackupTarget, ...] = ()
    logs: tuple[LogSink, ...] = ()
    sha256: str = field(default="", compare=False)

    def allows_client(self, address: str) -> bool:
        """Whether a peer of this address may connect; an IPv4-mapped IPv6 address counts as its IPv4 one."""
        try:
            peer = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(peer, IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self.clients)

    def allows_backup(self, folder: Path) -> bool:
        """Whether backups may be written into this folder; links are followed, which blocks on the disk."""
        real = folder.resolve()
        return any(real.is_relative_to(Path(target.path).resolve()) for target in self.backups)


def load(path: Path) -> Residency:
    """Read and check a residency file; blocks on the disk.

    Raises ConfigInvalid with every finding as "FILE: KEY: VALUE: reason".
    """
    content = read_file(path)
    data = parse_toml(path, content)
    try:
        file = _File.model_validate(data, context={"eea": data.get("eea") is True})
    except ValidationError as error:
        found = _causes(error.errors(include_url=False))
        raise ConfigInvalid([_described(path, item) for item in found]) from None
    return Residency(
        site=file.site,
        country=file.country,
        eea=file.eea,
        destinations=file.destinations,
        clients=tuple(client.cidr for client in file.clients),
        controller=file.controller,
        processor=file.processor,
        volumes=file.volumes,
        backups=file.backups,
        logs=file.logs,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _causes(items: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are too short because all that is in them is refused, each by itself."""
    within = {item["loc"][:-1] for item in items}
    return [item for item in items if item["type"] != "too_short" or item["loc"] not in within]


def _described(path: Path, item: ErrorDetails) -> str:
    if item["type"] == "missing":
        return f"{path}: {key_of(item)}: missing"
    value = json.dumps(item["input"], default=str, ensure_ascii=False)
    if len(value) > _LONGEST_VALUE:
        value = value[:_LONGEST_VALUE] + "..."
    return f"{path}: {key_of(item)}: {value}: {reason_of(item)}"
