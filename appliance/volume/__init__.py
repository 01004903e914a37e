"""The volume that data lies on: its facts, durable changes to it, and the guarded way to stored images."""

from appliance.volume.at_hand import NotAtHand, open_at_hand, read_at_hand
from appliance.volume.ballast import FULL, Ballast
from appliance.volume.condition import Condition
from appliance.volume.durable import (
    AtomicFile,
    create,
    failing_as_storage,
    is_removed,
    publish_tree,
    remove_drafts,
    remove_tree,
    sync_filesystem,
    sync_folder,
    write_atomically,
    write_whole,
)
from appliance.volume.facts import Encryption, SwapFacts, VolumeFacts, facts, swaps
from appliance.volume.guard import DataFolder, is_lack
from appliance.volume.held import HeldFolder
from appliance.volume.space import BALLAST, Space
from appliance.volume.watch import Watch

__all__ = [
    "BALLAST",
    "FULL",
    "AtomicFile",
    "Ballast",
    "Condition",
    "DataFolder",
    "Encryption",
    "HeldFolder",
    "NotAtHand",
    "Space",
    "SwapFacts",
    "VolumeFacts",
    "Watch",
    "create",
    "facts",
    "failing_as_storage",
    "is_lack",
    "is_removed",
    "open_at_hand",
    "publish_tree",
    "read_at_hand",
    "remove_drafts",
    "remove_tree",
    "swaps",
    "sync_filesystem",
    "sync_folder",
    "write_atomically",
    "write_whole",
]
