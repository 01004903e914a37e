"""The ledger: one SQLite file in the state folder that every acknowledged act is durable in."""

from appliance.ledger.database import Connection
from appliance.ledger.ledger import Ledger, looking_into
from appliance.ledger.lock import StateLock, holder
from appliance.ledger.migrations import newest
from appliance.ledger.pages import PAGE_BYTES, Pages, reading

__all__ = [
    "PAGE_BYTES",
    "Connection",
    "Ledger",
    "Pages",
    "StateLock",
    "holder",
    "looking_into",
    "newest",
    "reading",
]
