"""Which files stand for the graphs of a collection, of which each is over a range of labels.

A graph that is built is kept, and then the files go whose ranges overlap with its own: those of the graphs
that it replaces, and any that were left. A crash in between leaves a file within the range of another one.
"""

import logging

from appliance.errors import NotFound, StorageFailed
from appliance.search.graph_files import GraphFolder, SavedGraph
from appliance.search.sealed import Sealed, SealedGraphs
from appliance.search.vectors import View

_log = logging.getLogger(__name__)


async def keep(
    graphs: SealedGraphs, folder: GraphFolder, view: View, sealed: Sealed | None, *, above: int, through: int
) -> None:
    """Have on the disk the graph of the records with labels above one and up to another, None where none
    lives, in the place of others of these records. What cannot be done is said.
    """
    try:
        before = await folder.saved()
        if sealed is None or await graphs.save(sealed, view, folder) is not None:
            stale = (one for one in before if one.manifest.after < through and above < one.manifest.through)
            await folder.remove(*stale)
    except StorageFailed as error:
        _log.warning("graphs that are not needed any more stay for now: %s", error)
    except NotFound:
        return  # the collection is being removed, and its key is gone


async def kept(folder: GraphFolder) -> list[SavedGraph]:
    """The files in order of labels; one within the range of another is removed.

    Raises StorageFailed, and NotFound when the key is destroyed.
    """
    outer: list[SavedGraph] = []
    inner: list[SavedGraph] = []
    # Of two with the same range the younger comes first: fewer records lived when it was built.
    for one in sorted(await folder.saved(), key=_place):
        within = outer and one.manifest.through <= outer[-1].manifest.through
        (inner if within else outer).append(one)
    await folder.remove(*inner)
    return outer


def _place(saved: SavedGraph) -> tuple[int, int, int]:
    return saved.manifest.after, -saved.manifest.through, saved.manifest.size
