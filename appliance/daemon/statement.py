"""What the appliance states of where it stands, for an auditor: what is declared, found and counted."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from appliance import vault
from appliance.accounts.compliance import Compliance
from appliance.config import Config
from appliance.errors import NotFound
from appliance.outbound import Outbound
from appliance.residency import Finding, Residency

PREDICATE_TYPE = "urn:appliance:residency:v1"


def residency_statement(
    keys: vault.Keys,
    settings: Config,
    declared: Residency | None,
    *,
    version: str,
    compliance: Compliance,
    outbound: Outbound,
    listeners: Mapping[str, Sequence[str]],
    began: float,
    now: float,
) -> bytes:
    """A signed statement in a DSSE envelope; `began` and `now` are unix seconds.

    Raises NotFound where no residency file is named: there is nothing to state.
    """
    if declared is None:
        raise NotFound("no residency file is named in the configuration: there is nothing to state")
    findings = compliance.findings
    predicate = {
        "made_at": _moment(now),
        "appliance": {
            "version": version,
            "profile": settings.profile,
            "public_key": keys.public(vault.NODE),
        },
        "verdict": _verdict(settings, findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "declared": _declared(declared),
        "facts": _facts(settings, compliance, listeners),
        "connections": {
            "since": _moment(began),
            "by_destination": [dataclasses.asdict(one) for one in outbound.traffic()],
        },
    }
    return vault.enveloped(
        keys, vault.NODE, PREDICATE_TYPE, predicate, subject={"residency.toml": declared.sha256}
    )


def _verdict(settings: Config, findings: Sequence[Finding]) -> str:
    if settings.profile == "demo":
        return "demonstration"
    return "broken" if any(finding.severity == "refuse" for finding in findings) else "conforming"


def _declared(declared: Residency) -> dict[str, object]:
    tables = {
        name: [table.model_dump(mode="json") for table in getattr(declared, name)]
        for name in ("volumes", "backups", "logs", "destinations")
    }
    return {
        "site": declared.site,
        "country": declared.country,
        "eea": declared.eea,
        "controller": declared.controller,
        "processor": declared.processor,
        **tables,
        "clients": [str(network) for network in declared.clients],
    }


def _facts(
    settings: Config, compliance: Compliance, listeners: Mapping[str, Sequence[str]]
) -> dict[str, object]:
    machine: object = msgspec.to_builtins(compliance.facts, enc_hook=str)
    return {
        "machine": machine,
        "listeners": dict(listeners),
        "tls": settings.api.tls_certificate is not None,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
