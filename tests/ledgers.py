"""What the log of a ledger holds: it keeps its room on the volume, so its size tells nothing."""

from pathlib import Path


def log_is_empty(folder: Path) -> bool:
    """Whether the log of FOLDER/ledger.db has no byte of anything in it, or is not there."""
    log = folder / "ledger.db-wal"
    return not log.exists() or not any(log.read_bytes())
