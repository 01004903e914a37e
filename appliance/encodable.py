"""JSON values that can be encoded again, whatever they are put into."""

from appliance.errors import InvalidInput

INTEGERS = range(-(1 << 63), 1 << 64)
"""What every reader of JSON here can hold, signed or not."""


def check_encodable(value: object, name: str, levels: int) -> None:
    """Raises InvalidInput, which calls `value` by `name`, for an integer of more than 64 bit, and for objects
    and lists that are more than `levels` deep.

    `value` is what a JSON parser gave: of other types nothing is said.
    """
    level = [value]
    for _ in range(levels):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, int) and item not in INTEGERS:
                raise InvalidInput(f"{name}: an integer has more than 64 bit")
        if not below:
            return
        level = below
    raise InvalidInput(f"{name}: nested deeper than {levels} levels")
