"""The EU rule: where this appliance stands, who may connect, where it may connect to, and what breaks that.

What is declared here is held to by `appliance.outbound`, by the firewall's rules and by the unit's.
"""

from appliance.residency.addresses import SPECIAL, Network, reachable
from appliance.residency.declaration import (
    EEA_ONLY,
    EU,
    BackupTarget,
    Destination,
    LogSink,
    Residency,
    Use,
    Volume,
    load,
)
from appliance.residency.rules import Facts, Finding, examine, judge, verify

__all__ = [
    "EEA_ONLY",
    "EU",
    "SPECIAL",
    "BackupTarget",
    "Destination",
    "Facts",
    "Finding",
    "LogSink",
    "Network",
    "Residency",
    "Use",
    "Volume",
    "examine",
    "judge",
    "load",
    "reachable",
    "verify",
]
