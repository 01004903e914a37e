"""The ledger: one SQLite file in the state folder that every acknowledged act is durable in."""

from appliance.ledger.database import Connection
from appliance.ledger.ledger import Ledger
from appliance.ledger.lock import StateLock, holder

__all__ = ["Connection", "Ledger", "StateLock", "holder"]
