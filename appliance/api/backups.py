"""`/appliance/v1/backup`: the whole state as ciphertext, over the operator socket alone."""

from appliance.api.answers import Answer, Stream
from appliance.api.call import Call
from appliance.backup.source import Backups as Source
from appliance.errors import NotInstalled

_MEDIA = "application/vnd.appliance.backup"


class Backups:
    """The handler. What it streams `backup.wire` says; the command line makes a folder of it."""

    def __init__(self, source: Source | None) -> None:
        self._source = source

    async def make(self, call: Call) -> Answer:
        """A backup of this moment. One that breaks off says why in its last frame, and has no end."""
        if self._source is None:
            raise NotInstalled("no backup is made by this process")
        making = await self._source.begin(call.actor)
        return Answer(content_type=_MEDIA, stream=Stream(None, making.pieces(), making.close))
