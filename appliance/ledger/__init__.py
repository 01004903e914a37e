"""The ledger: one SQLite file in the state folder that every acknowledged act is durable in."""

from appliance.ledger.database import Connection
from appliance.ledger.ledger import Ledger, looking_into
from appliance.ledger.lock import StateLock, holder
from appliance.ledger.migrations import newest, shipped
from appliance.ledger.pages import PAGE_BYTES, Pages, reading
from appliance.ledger.schema import differences, log_damage

__all__ = [
    "PAGE_BYTES",
    "Connection",
    "Ledger",
    "Pages",
    "StateLock",
    "differences",
    "holder",
    "log_damage",
    "looking_into",
    "newest",
    "reading",
    "shipped",
]
