"""appliance.toml: typed, frozen sections; loaded whole or refused with every finding at once."""

import base64
import binascii
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from appliance.errors import ConfigInvalid

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
DAY = 86_400

# What a reload (SIGHUP) applies to the running daemon; every other change needs a restart.
RELOADABLE = frozenset(
    {
        "api.max_connections_per_address",
        "api.failed_tokens_per_minute",
        "api.requests_per_minute",
        "api.bytes_per_minute",
        "log.level",
    }
)


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {}).get("folder", Path.cwd())
    return folder / path


def _listener(text: str) -> str:
    listen_address(text)
    return text


# Strict refuses "8" for 8 and 1 for true; TOML has no paths and no tuples, so those two convert.
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_beside_the_file)]
Listener = Annotated[str, AfterValidator(_listener)]


class Section(BaseModel):
    """A frozen table of the file: unknown keys are refused, and no error repeats a value.

    Every number has a lower and an upper bound: far beyond what anybody needs, and within what the parts that
    get it can hold.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, allow_inf_nan=False
    )


def _public_url(text: str) -> str:
    shape = "must be https://HOST[:PORT][/PATH]"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # its text repeats the address, and with it a password
        raise ValueError(shape) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError(shape)
    if parts.query or parts.fragment:
        raise ValueError(shape)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password")
    return text.rstrip("/")


class Api(Section):
    """The public listeners and their limits."""

    listen: tuple[Listener, ...] = Field(("127.0.0.1:8080",), min_length=1, strict=False)
    public_url: Annotated[str, AfterValidator(_public_url)] | None = None
    tls_certificate: FilePath | None = None
    tls_key: FilePath | None = None
    tls_minimum: Literal["1.2", "1.3"] = "1.3"
    tls_client_ca: FilePath | None = None
    max_body_bytes: int = Field(64 * MIB, ge=1024, le=GIB)
    max_connections_per_address: int = Field(64, ge=1, le=65_535)
    failed_tokens_per_minute: int = Field(20, ge=1, le=1_000_000)
    requests_per_minute: int = Field(0, ge=0, le=1_000_000_000)
    bytes_per_minute: int = Field(0, ge=0, le=TIB)
    keep_alive_seconds: float = Field(20, gt=0, le=3600)
    body_seconds: float = Field(10, gt=0, le=3600)
    body_bytes_per_second: int = Field(50_000, ge=1, le=GIB)


class Operator(Section):
    """Where operators, probes and the metrics scraper connect."""

    listen: Listener | None = "127.0.0.1:9464"
    socket: FilePath | None = None
    group: str = Field("appliance-operators", min_length=1)


class Vault(Section):
    """Where the root key comes from."""

    root_key: FilePath | None = None


class Recognition(Section):
    """Decoding and inference: device, queues and limits."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(0, ge=0, le=64)
    memory_bytes: int = Field(0, ge=0, le=TIB)
    pinned: tuple[str, ...] = Field((), strict=False)
    threads: int = Field(1, ge=1, le=256)
    max_batch: int = Field(8, ge=1, le=1024)
    queue: int = Field(256, ge=1, le=1_000_000)
    queue_bytes: int = Field(256 * MIB, ge=MIB, le=TIB)
    decoders: int = Field(0, ge=0, le=256)
    max_pixels: int = Field(50_000_000, ge=1, le=65_535**2)
    max_side: int = Field(16384, ge=1, le=65535)
    decode_seconds: float = Field(2.0, gt=0, le=3600)
    decoder_memory_bytes: int = Field(GIB, ge=256 * MIB, le=TIB)
    infer_seconds: float = Field(30.0, gt=0, le=3600)


def _public_key(text: str) -> str:
    try:
        length = len(base64.b64decode(text, validate=True))
    except binascii.Error:
        length = 0
    if length != 32:
        raise ValueError("must be a public key as `appliance bundle key` prints it")
    return text


class Bundles(Section):
    """Whose bundles may be installed."""

    allow_unsigned: bool = False
    trusted_keys: tuple[Annotated[str, AfterValidator(_public_key)], ...] = Field((), strict=False)


class Requests(Section):
    """Asynchronous requests: how long results stay, how much may wait, of all and of one customer."""

    keep_seconds: float = Field(14 * DAY, gt=0, le=3650 * DAY)
    pending: int = Field(1000, ge=1, le=1_000_000)
    pending_bytes: int = Field(256 * MIB, ge=MIB, le=TIB)
    max_jobs: int = Field(1000, ge=0, le=1_000_000)


class Search(Section):
    """Collections: limits, and the parameters of the graphs over them."""

    engine: Literal["hnswlib", "faiss"] = "hnswlib"
    flat_bytes: int = Field(10 * MIB, ge=0, le=TIB)
    memory_bytes: int = Field(8 * GIB, ge=0, le=1024 * TIB)
    capacity: int = Field(1_000_000, ge=1, le=1_000_000_000)
    max_collections: int = Field(10_000, ge=1, le=1_000_000)
    max_records: int = Field(100_000_000, ge=1, le=1_000_000_000_000)
    max_snapshots: int = Field(8, ge=1, le=1000)
    max_metadata_bytes: int = Field(64 << 10, ge=2, le=64 * MIB)
    max_id_bytes: int = Field(1024, ge=1, le=MIB)
    feed_bytes: int = Field(2 * GIB, ge=1024, le=TIB)
    m: int = Field(16, ge=2, le=128)
    ef_construction: int = Field(200, ge=2, le=100_000)
    ef: int = Field(16, ge=1, le=100_000)
    tail_bytes: int = Field(4 * MIB, ge=1, le=TIB)
    scrub_days: float = Field(30, gt=0, le=3650)


class Datasets(Section):
    """Stored images: what their volume keeps free, what a customer may have, how long links live."""

    reserve_fraction: float = Field(0.05, ge=0, le=0.9)
    reserve_bytes: int = Field(20 * GIB, ge=0, le=1024 * TIB)
    ballast_bytes: int = Field(256 * MIB, ge=0, le=TIB)
    max_images: int = Field(100_000_000, ge=0, le=1_000_000_000_000)
    max_bytes: int = Field(100 * TIB, ge=0, le=1024 * TIB)
    scrub_days: float = Field(30, gt=0, le=3650)
    link_seconds: int = Field(3600, ge=1, le=3600)


class Agreements(Section):
    """What counts as agreed."""

    require_acceptance: bool = False


class Grants(Section):
    """Access of operators to stored images, as customers grant it."""

    four_eyes: bool = False


class Health(Section):
    """What is watched, how often, and what is too little."""

    min_free_bytes: int = Field(GIB, ge=0, le=1024 * TIB)
    interval_seconds: float = Field(10, gt=0, le=3600)
    gpus: int | None = Field(None, ge=0, le=64)
    gpu_seconds: float = Field(2.0, gt=0, le=3600)


class Lifecycle(Section):
    """How the daemon stops."""

    lame_duck_seconds: float = Field(5, ge=0, le=3600)
    drain_seconds: float = Field(30, gt=0, le=3600)


class Log(Section):
    """What is written to the journal."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(Section):
    """The whole file. Relative paths are already resolved against its folder."""

    profile: Literal["production", "demo"] = "production"
    state: FilePath = Path("/var/lib/appliance")
    residency: FilePath | None = None
    api: Api = Api()
    operator: Operator = Operator()
    vault: Vault = Vault()
    recognition: Recognition = Recognition()
    bundles: Bundles = Bundles()
    requests: Requests = Requests()
    search: Search = Search()
    datasets: Datasets = Datasets()
    agreements: Agreements = Agreements()
    grants: Grants = Grants()
    health: Health = Health()
    lifecycle: Lifecycle = Lifecycle()
    log: Log = Log()

    @property
    def operator_socket(self) -> Path:
        """`[operator] socket`, or its place in the state folder."""
        return self.operator.socket or self.state / "operator.sock"

    def listeners(self) -> Iterator[tuple[str, str]]:
        """Every TCP listener as (key, "host:port")."""
        for index, listener in enumerate(self.api.listen):
            yield f"api.listen.{index}", listener
        if self.operator.listen is not None:
            yield "operator.listen", self.operator.listen


def load(path: Path) -> Config:
    """The configuration of a file without findings. Raises ConfigInvalid with all that `read` finds."""
    config, findings = read(path)
    if findings:
        raise ConfigInvalid([f"{path}: {key}: {reason}" for key, reason in findings])
    return config


def read(path: Path) -> tuple[Config, list[tuple[str, str]]]:
    """Every finding of a file as (key, reason), and the configuration without the keys that are wrong.

    Blocks on the disk. A value is never repeated. Besides the types, findings are: certificate without key,
    client CA without either, files that do not exist, a demo that listens beyond loopback, and in production
    everything that `exposures` finds. Raises ConfigInvalid for a file that cannot be read or is not TOML.
    """
    data = read_toml(path)
    folder = path.absolute().parent
    findings: list[tuple[str, str]] = []
    try:
        config = Config.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False, include_context=False)
        findings = [(key_of(item), reason_of(item)) for item in details]
        # What is left without the wrong keys is checked too: a person should have to come back only once.
        sound = _without(data, [item["loc"] for item in details])
        config = Config.model_validate(sound, context={"folder": folder})
    reported = {key for key, _ in findings}
    further = [*_contradictions(config), *(exposures(config) if config.profile == "production" else ())]
    findings += [item for item in further if item[0] not in reported]
    return config, findings


def locate(path: Path) -> tuple[Path, Path]:
    """The state folder and the operator socket that a file names, whatever else is wrong with it.

    A running daemon keeps its configuration while the file is being edited; this is how it is found then.
    Where one of these two keys is wrong itself, all findings are raised as `load` does.
    """
    config, findings = read(path)
    if {key for key, _ in findings} & {"state", "operator", "operator.socket"}:
        load(path)
    return config.state, config.operator_socket


def read_toml(path: Path) -> dict[str, Any]:
    """The file as a dictionary. Raises ConfigInvalid when it cannot be read or is not TOML."""
    return parse_toml(path, read_file(path))


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises ConfigInvalid when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigInvalid([f"{path}: cannot be read: {error.strerror}"]) from None


def parse_toml(path: Path, content: bytes) -> dict[str, Any]:
    """The content of `path` as a dictionary. Raises ConfigInvalid when it is not TOML."""
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigInvalid([f"{path}: not UTF-8 at byte {error.start}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid([f"{path}: not TOML: {error}"]) from None


def key_of(item: ErrorDetails) -> str:
    """The dotted path of a pydantic finding, "(file)" for the whole."""
    return ".".join(str(part) for part in item["loc"]) or "(file)"


def reason_of(item: ErrorDetails) -> str:
    """The reason of a pydantic finding, in our words where pydantic's would puzzle an operator."""
    match item["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "missing"
        case "too_short":
            return "must not be empty"
        case "value_error":
            return item["msg"].removeprefix("Value error, ")
        case _:
            return item["msg"].removeprefix("Input ")


def exposures(config: Config) -> list[tuple[str, str]]:
    """What production refuses and a demo only warns of, as (key, reason), as far as the file alone tells."""
    found: list[tuple[str, str]] = []
    if config.residency is None:
        found.append(("residency", "missing: production runs only with a residency file"))
    if config.api.public_url is None:
        found.append(("api.public_url", "missing: links need the address that clients use"))
    elif not config.api.public_url.startswith("https://"):
        found.append(("api.public_url", "must begin with https://"))
    for key, listener in config.listeners():
        if is_loopback(listener):
            continue
        if key == "operator.listen":
            found.append((key, "has no TLS and must be on loopback"))
        elif config.api.tls_certificate is None:
            found.append((key, "is public and needs api.tls_certificate and api.tls_key"))
    return found


def restart_needed(old: Config, new: Config) -> list[str]:
    """The dotted keys that differ and that a reload may not change, sorted."""
    before, after = _flat(old), _flat(new)
    return sorted(key for key in before if before[key] != after[key] and key not in RELOADABLE)


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of a listener: an IP address ("[...]" around IPv6) or localhost, a port from 0 to 65535.

    Raises ValueError.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be ADDRESS:PORT")
    if host == "localhost":
        return host, int(port)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        version = ip_address(bare).version
    except ValueError:
        raise ValueError("must begin with an IP address or localhost") from None
    if (version == 6) != (bare is not host):
        raise ValueError("needs brackets around an IPv6 address, and only there")
    return bare, int(port)


def is_loopback(listener: str) -> bool:
    """Whether only this machine can reach the listener."""
    host = listen_address(listener)[0]
    return host == "localhost" or ip_address(host).is_loopback


def _contradictions(config: Config) -> Iterator[tuple[str, str]]:
    if (config.api.tls_certificate is None) != (config.api.tls_key is None):
        key = "api.tls_key" if config.api.tls_key is None else "api.tls_certificate"
        yield key, "missing: certificate and key come together"
    if config.api.tls_client_ca is not None and config.api.tls_certificate is None:
        yield (
            "api.tls_client_ca",
            "clients can show certificates over TLS alone: api.tls_certificate is missing",
        )
    named = {
        "residency": config.residency,
        "api.tls_certificate": config.api.tls_certificate,
        "api.tls_key": config.api.tls_key,
        "api.tls_client_ca": config.api.tls_client_ca,
        "vault.root_key": config.vault.root_key,
    }
    for key, path in named.items():
        if path is not None and (reason := _absent(path)) is not None:
            yield key, reason
    if config.search.ef_construction < config.search.m:
        yield "search.ef_construction", "must be at least search.m"
    if config.search.engine == "faiss" and find_spec("faiss") is None:
        yield "search.engine", "faiss is not installed: pip install 'appliance[faiss]', or take hnswlib"
    if config.profile == "demo":
        for key, listener in config.listeners():
            if not is_loopback(listener):
                yield key, "a demo listens on loopback only"


def _absent(path: Path) -> str | None:
    try:
        return None if path.is_file() else "there is no such file"
    except OSError as error:  # a member of the operators' group may not look into every folder
        return f"cannot be looked at: {error.strerror}"


def _without(data: dict[str, Any], places: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy of the file's tables less each key that one of `places` lies in."""
    kept = {name: dict(value) if isinstance(value, dict) else value for name, value in data.items()}
    for place in places:
        section = kept.get(str(place[0]))
        if len(place) > 1 and isinstance(section, dict):
            value = section.pop(str(place[1]), None)
            if len(place) > 2 and isinstance(value, list):
                section[str(place[1])] = [item for item in value if item != value[int(place[2])]]
        else:
            kept.pop(str(place[0]), None)
    return kept


def _flat(config: Config) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in config:
        if isinstance(value, Section):
            flat.update({f"{name}.{key}": inner for key, inner in value})
        else:
            flat[name] = value
    return flat
