"""Fields of a query and of a body as the cloud's clients write them, read one by one."""

from appliance.api.call import Call
from appliance.errors import InvalidInput


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
