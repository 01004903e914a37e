"""Links to images: signed, ending after an hour at most, or stable and unguessable where a dataset is public.

A link is `files/<image>.jpg?exp=<unix seconds>&sig=<signature>`, a thumbnail's `files/<image>-thumb.jpg?..`;
a public one has no `exp`. The signature covers method, image, variant, customer, expiry and the dataset's
epoch, and is compared as text: there is one way to write it.
"""

import asyncio
import base64
import contextlib
import hmac
import re
from collections.abc import Callable
from functools import partial
from typing import Self

from appliance.accounts.forward import TOLD_EVERY_SECONDS, tell_time
from appliance.background import end_tasks
from appliance.datasets import rows
from appliance.datasets.catalogue import Datasets
from appliance.datasets.records import Dataset, Image, ReadPermit, Variant
from appliance.errors import Forbidden, InvalidInput, NotFound, StorageFailed, VolumeFull
from appliance.ledger import Ledger
from appliance.vault import Keys

LONGEST_SECONDS = 3600

_LABEL = "links"
_NAME = re.compile(
    r"([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})(-thumb)?\.jpg", re.ASCII
)
_QUERY = re.compile(r"(?:exp=([1-9][0-9]{0,11})&)?sig=([A-Za-z0-9_-]{43})", re.ASCII)
_ENDED = "the link is not valid, or it has ended: ask for the image again and use its new link"


class Links:
    """Makes links and turns genuine ones into permits.

    Time only goes forward: a clock that is set back, also across a restart or a crash, revives no link that
    had ended. `forward` is that time, in unix seconds, the one that access grants end by; this has the ledger
    know it, told now and then with what `clock` says, so that the next run begins from there.
    """

    def __init__(
        self,
        ledger: Ledger,
        datasets: Datasets,
        keys: Keys,
        *,
        clock: Callable[[], float],
        forward: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._datasets = datasets
        self._keys = keys
        self._clock = clock
        self._forward = forward
        self._known = 0.0  # the time that this has last told the ledger

    async def __aenter__(self) -> Self:
        await self.keep()
        self._keeping = asyncio.get_running_loop().create_task(self._keep_on(), name="links")
        return self

    async def __aexit__(self, *_: object) -> None:
        await end_tasks(self._keeping)
        await self.keep()

    def now(self) -> float:
        """Unix seconds, never less than before."""
        return self._forward()

    def address(
        self, dataset: Dataset, image: Image, variant: Variant = "image", seconds: int = LONGEST_SECONDS
    ) -> str:
        """The path and query of a link to an image of `dataset`, without a leading slash.

        It ends in `seconds`; a public dataset's never does, a restricted one's needs a token and is not
        signed. Raises InvalidInput for more than an hour.
        """
        if not 1 <= seconds <= LONGEST_SECONDS:
            raise InvalidInput(f"a link lives for 1 to {LONGEST_SECONDS} seconds")
        name = f"files/{image.id}{'' if variant == 'image' else '-thumb'}.jpg"
        if dataset.visibility == "restricted":
            return name
        if dataset.visibility == "public":
            return f"{name}?sig={self._signature(image, variant, dataset.epoch, 'public')}"
        expiry = str(int(self.now()) + seconds)
        return f"{name}?exp={expiry}&sig={self._signature(image, variant, dataset.epoch, expiry)}"

    async def permit(self, name: str, query: str) -> tuple[ReadPermit, Variant]:
        """What a link gives the right to see; `name` is the last segment of its path, `query` its raw query.

        Raises Forbidden, with one and the same message, when it is not exactly a link that was made here and
        lives: forged, ended, of an image or a dataset that is no more, or changed by one character.
        """
        identity, variant = self.named(name)
        given = _QUERY.fullmatch(query)
        if given is None:
            raise Forbidden(_ENDED)
        expiry: str | None = given[1]
        ends, now = None if expiry is None else int(expiry), self.now()
        if now - self._known >= TOLD_EVERY_SECONDS or (ends is not None and self._known < ends <= now):
            await self.keep()  # so that no crash brings back what was refused
        if ends is not None and not now < ends <= now + LONGEST_SECONDS:
            raise Forbidden(_ENDED)
        linked = await self._ledger.read(lambda connection: rows.linked(connection, identity))
        if linked is None:
            raise Forbidden(_ENDED)
        image, visibility, epoch = linked
        try:
            self._datasets.keys_at(image)
        except NotFound:
            raise Forbidden(_ENDED) from None
        allowed = visibility == ("link" if expiry is not None else "public")
        expected = self._signature(image, variant, epoch, expiry or "public")
        if not hmac.compare_digest(expected, given[2]) or not allowed:
            raise Forbidden(_ENDED)
        permit = ReadPermit(image.customer, image.dataset, image.id, "public" if expiry is None else "link")
        return permit, variant

    def named(self, name: str) -> tuple[str, Variant]:
        """The image and the variant that the last segment of a link's path names. Raises NotFound."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise NotFound("nothing is served at this path")
        return found[1], "image" if found[2] is None else "thumbnail"

    def _signature(self, image: Image, variant: Variant, epoch: int, expiry: str) -> str:
        signed = "\n".join(("GET", image.id, variant, image.customer, expiry, str(epoch)))
        return base64.urlsafe_b64encode(self._keys.mac(_LABEL, signed.encode())).decode().rstrip("=")

    async def keep(self) -> None:
        """Have the ledger know how late it is; the time that the appliance is off counts from there.

        A ledger that takes no write says so itself, and what is stored is served on: it is tried again.
        """
        now, clock = self.now(), self._clock()
        with contextlib.suppress(StorageFailed, VolumeFull):
            await self._ledger.write(partial(tell_time, time=now, clock=clock))
            self._known = now

    async def _keep_on(self) -> None:
        while True:
            await asyncio.sleep(TOLD_EVERY_SECONDS)
            await self.keep()
