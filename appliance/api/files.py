"""Images by their links: whole or by ranges, with nothing left in anybody's cache.

A link needs no token. An image of a restricted dataset is served to its customer's token alone, and sealed:
the key of that one file is handed out separately.
"""

import base64
import re

from appliance.accounts.rights import Scope
from appliance.api.answers import Answer, Refused, Stream
from appliance.api.call import Call
from appliance.datasets import permits
from appliance.datasets.images import Images
from appliance.datasets.store import Opened
from appliance.errors import Forbidden, Unauthenticated

_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_SEALED = "application/octet-stream"
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))", re.ASCII | re.IGNORECASE)
# What a browser may do with it is to show it; where it was seen, nobody else is told.
_HEADERS = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "private, no-store",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
}


class Files:
    """The handlers of `files/`, and of the keys that open sealed ones."""

    def __init__(self, images: Images) -> None:
        self._store = images.store
        self._datasets = images.datasets
        self._links = images.links

    async def get(self, call: Call) -> Answer:
        """An image by its link, or by its customer's token."""
        name, query = call.parameters["name"], call.raw_query
        if not query and call.principal.customer is None:
            raise Unauthenticated("this needs a signed link, or a token")
        if query:
            permit, variant = await self._links.permit(name, query)
            opened = await self._store.open(permit, variant)
        else:
            opened = await self._of_token(call, name)
        try:
            return answered(call, opened)
        except BaseException:
            opened.close()
            raise

    async def key(self, call: Call) -> Answer:
        """What opens the sealed file of one image of a restricted dataset, for its customer."""
        call.owner(call.query.get("customer"))
        image = await self._store.get(call.customer, call.parameters["id"])
        opened = await self._store.open(await permits.of_token(call.customer, image), "sealed")
        try:
            key, nonce = opened.key[:32], opened.key[32:]
        finally:
            opened.close()
        document = {
            "id": image.id,
            "suite": "Cobblestone-256",
            "key": base64.b64encode(key).decode(),
            "base_nonce": base64.b64encode(nonce).decode(),
            "size": image.size,
            "thumbnail_size": image.thumbnail,
            "content_type": _TYPES[image.format],
        }
        return Answer(document)

    async def _of_token(self, call: Call, name: str) -> Opened:
        if Scope.DATASETS_READ not in call.principal.scopes:
            raise Forbidden(f"the token lacks the scope {Scope.DATASETS_READ}")
        identity, variant = self._links.named(name)
        image = await self._store.get(call.customer, identity)
        dataset = await self._datasets.get(call.customer, image.dataset)
        permit = await permits.of_token(call.customer, image)
        return await self._store.open(permit, "sealed" if dataset.visibility == "restricted" else variant)


def answered(call: Call, opened: Opened) -> Answer:
    """What is opened, or the part that is asked for, as a stream that closes it."""
    tag = f'"{opened.etag}"'
    headers = {**_HEADERS, "ETag": tag}
    if {tag, "*"} & _tags(call.headers.get("If-None-Match", "")):
        opened.close()
        return Answer(status=304, headers=headers)
    start, stop, status = 0, opened.length, 200
    wanted = call.headers.get("Range", "")
    if call.headers.get("If-Range", tag) == tag and (part := _part(wanted, opened.length)) is not None:
        start, stop = part
        if start >= stop:
            raise Refused(416, "the range lies outside", {"Content-Range": f"bytes */{opened.length}"})
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{opened.length}"
    media = _SEALED if opened.variant == "sealed" else _media(opened)
    stream = Stream(stop - start, opened.read(start, stop), opened.close)
    return Answer(status=status, headers=headers, content_type=media, stream=stream)


def _media(opened: Opened) -> str:
    return _TYPES["jpeg" if opened.variant == "thumbnail" else opened.image.format]


def _part(header: str, length: int) -> tuple[int, int] | None:
    """From where up to where one range of bytes goes (RFC 9110, 14.1.2), empty when it lies outside.

    None for what is no single valid range, which is to be answered with the whole.
    """
    found = _RANGE.fullmatch(header)
    if found is None or (found[2] is not None and int(found[2]) < int(found[1])):
        return None
    if found[3] is not None:
        return max(0, length - int(found[3])), length
    return int(found[1]), length if found[2] is None else min(int(found[2]) + 1, length)


def _tags(header: str) -> set[str]:
    """As they are compared where a weak one is as good (RFC 9110, 13.1.2)."""
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
