"""Lists as the cloud has them, page by page.

`next` is relative and without a prefix, so that clients can go on from whatever endpoint they have. Beside
the page's number it tells where the page begins, so that one deep in a list costs what the first one does,
and what was counted, where counting was work.
"""

from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import urlencode

from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.api.fields import word
from appliance.api.payload import integer
from appliance.datasets.catalogue import Datasets
from appliance.datasets.pages import Cut, Page
from appliance.datasets.records import Dataset

T = TypeVar("T")

PAGE, MAX_PAGE = 20, 100

_NUMBERS = 1 << 31
_POSITIONS = (1 << 32) - 1
_OWN = {"page", "after", "counted"}


async def workspace(call: Call, datasets: Datasets) -> Dataset:
    """The dataset that a call selects in its body or its query, else the default one. Raises NotFound."""
    named = call.payload.text("workspace") or word(call, "workspace") or "Default"
    return await datasets.get(call.customer, named)


def wanted(call: Call, size: int = PAGE) -> Cut:
    """The page that a query asks for, `size` rows unless it says otherwise. Raises InvalidInput."""
    after, counted = word(call, "after"), word(call, "counted")
    return Cut(
        number=integer(word(call, "page"), "page", 1, 1, _NUMBERS),
        size=integer(word(call, "page_size"), "page_size", size, 1, MAX_PAGE),
        after=None if after is None else integer(after, "after", 0, 0, _POSITIONS),
        counted=None if counted is None else integer(counted, "counted", 0, 0, _POSITIONS),
    )


def listing(call: Call, cutting: Cut, page: Page[T], results: Sequence[object]) -> Answer:
    """The answer for a page whose rows are shown as `results`."""
    following = previous = None
    if page.after is not None:
        more = {"page": cutting.number + 1, "after": page.after}
        if page.worked:
            more["counted"] = page.count
        following = _address(call, more)
    if cutting.number > 1:
        previous = _address(call, {"page": cutting.number - 1})
    return Answer({"count": page.count, "next": following, "previous": previous, "results": results})


def whole(results: Sequence[object]) -> Answer:
    """The answer for a list that fits on one page."""
    return Answer({"count": len(results), "next": None, "previous": None, "results": results})


def _address(call: Call, more: dict[str, int]) -> str:
    kept = [(name, text) for name, text in call.query.items() if name not in _OWN]
    return f"{call.path}/?{urlencode([*more.items(), *kept])}"
