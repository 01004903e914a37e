"""Lists as the cloud has them, page by page, and the fields that its clients send about a list.

`next` is relative and without a prefix, so that clients can go on from whatever endpoint they have. Beside
the page's number it tells where the page begins, so that one deep in a list costs what the first one does,
and what was counted, where counting was work.
"""

from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import urlencode

from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.api.payload import integer
from appliance.datasets.catalogue import Datasets
from appliance.datasets.pages import Cut, Page
from appliance.datasets.records import Dataset
from appliance.errors import InvalidInput

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


def word(call: Call, name: str) -> str | None:
    """A query field. Clients append theirs to what `next` has already: the last one counts."""
    return call.query.getall(name, [None])[-1]


def words(call: Call, name: str) -> list[str]:
    """A query field that may come several times, or several values with commas between; each once."""
    given = [one for text in call.query.getall(name, []) for one in text.split(",") if one]
    return list(dict.fromkeys(given))


def truth(call: Call, name: str) -> bool | None:
    """A query field that is true or false, as Python and JSON write it. Raises InvalidInput."""
    given = word(call, name)
    if given is None:
        return None
    if given.lower() in {"true", "1"}:
        return True
    if given.lower() in {"false", "0"}:
        return False
    raise InvalidInput(f"{name}: true or false is expected")


def identity(call: Call, name: str) -> str:
    """The id in a field of the body. Raises InvalidInput."""
    given = call.payload.text(name)
    if given is None:
        raise InvalidInput(f"{name}: an id is expected")
    return given


def value(call: Call) -> float | None:
    """The value of a label in the body, None for null. Raises InvalidInput."""
    given = call.payload.fields.get("value")
    if given is None:
        return None
    if isinstance(given, int | float) and not isinstance(given, bool) and abs(given) <= 1e300:
        return float(given)
    raise InvalidInput("value: a number is expected")


def meta_data(call: Call) -> dict[str, object] | None:
    """The metadata in the body, empty for null, None where there is none. Raises InvalidInput."""
    if "meta_data" not in call.payload.fields:
        return None
    given = call.payload.fields["meta_data"]
    if given is None:
        return {}
    if isinstance(given, dict):
        return given
    raise InvalidInput("meta_data: an object is expected")


def _address(call: Call, more: dict[str, int]) -> str:
    kept = [(name, text) for name, text in call.query.items() if name not in _OWN]
    return f"{call.path}/?{urlencode([*more.items(), *kept])}"
