"""The only way out: a client that connects to the destinations of the residency file, and to nothing else.

Every socket is made by a destination's own connector, for an address that was checked; what goes, what comes
and what is refused is counted by destination.
"""

from appliance.outbound.gate import UNDECLARED, Fetched, Outbound
from appliance.outbound.way import Traffic, admits

__all__ = ["UNDECLARED", "Fetched", "Outbound", "Traffic", "admits"]
