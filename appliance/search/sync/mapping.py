"""Which fields of a feed's items are a record's id, image and metadata."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from appliance.errors import InvalidInput

Raw = dict[str, Any]
"""An item as its feed has it: what JSON can hold, of CSV and XML texts alone."""

IDS = ("id", "_id", "ITEM_ID")
IMAGES = ("image_link", "image_url", "image", "_url", "IMGURL")
MOST_FIELDS = 200
_PATH = re.compile(r"[^.\x00-\x1f]{1,256}(\.[^.\x00-\x1f]{1,256}){0,15}")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How items become records; paths lead into nested fields by dots (`size.eu`).

    `items` is where the items are: the path of the list in JSON, the name of the element in XML. Of `id` and
    `image` the first path counts that leads to a text. `metadata` is the paths to keep, under their own names
    or, in an object, under those that are its keys; without it all fields but id and image. `numbers` are
    those of metadata that are kept as numbers: of "12.90 EUR" 12.9.
    """

    format: Literal["auto", "jsonl", "json", "csv", "xml"] = "auto"
    items: str | None = None
    id: str | tuple[str, ...] = IDS
    image: str | tuple[str, ...] = IMAGES
    metadata: tuple[str, ...] | dict[str, str] | None = None
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mapped:
    """An item of which a record can be made."""

    id: str
    url: str
    metadata: Raw


@dataclass(frozen=True, slots=True)
class Unusable:
    """An item of which none can be made, and why; `id` is empty where it has none."""

    id: str
    reason: str


def check_mapping(mapping: Mapping) -> None:
    """Raises InvalidInput naming the field."""
    wanted = mapping.metadata
    pairs = list(wanted.items()) if isinstance(wanted, dict) else [(path, path) for path in wanted or []]
    paths = {
        "items": () if mapping.items is None else (mapping.items,),
        "id": _paths(mapping.id),
        "image": _paths(mapping.image),
        "metadata": tuple(path for pair in pairs for path in pair),
        "numbers": mapping.numbers,
    }
    for field, given in paths.items():
        if len(given) > 2 * MOST_FIELDS:
            raise InvalidInput(f"mapping.{field}: at most {MOST_FIELDS} paths")
        if field in {"id", "image"} and not given:
            raise InvalidInput(f"mapping.{field}: at least one path is expected")
        if not all(_PATH.fullmatch(path) for path in given):
            raise InvalidInput(
                f"mapping.{field}: names, with dots between those of nested fields, are expected"
            )
    targets = [target for target, _ in pairs]
    if any(target.startswith("_") for target in targets):
        raise InvalidInput(
            "mapping.metadata: names that begin with _ are taken by the appliance's own fields"
        )
    if any(one.startswith(f"{other}.") for one in targets for other in targets):
        raise InvalidInput("mapping.metadata: one of the names lies within another")


class Mapper:
    """Applies a mapping to items."""

    def __init__(self, mapping: Mapping) -> None:
        self._ids = [path.split(".") for path in _paths(mapping.id)]
        self._images = [path.split(".") for path in _paths(mapping.image)]
        wanted = mapping.metadata
        if isinstance(wanted, tuple):
            wanted = {path: path for path in wanted}
        self._wanted: dict[str, list[str]] | None = None
        if wanted is not None:
            self._wanted = {target: path.split(".") for target, path in wanted.items()}
        self._numbers = frozenset(mapping.numbers)
        self._left_out = {path[0] for path in (*self._ids, *self._images)}

    def apply(self, item: Raw) -> Mapped | Unusable:
        """The record of an item."""
        identity = _first(item, self._ids)
        if not identity:
            return Unusable("", "the item has no id")
        url = _first(item, self._images)
        if not url:
            return Unusable(identity, "the item has no image")
        return Mapped(identity, url, self._metadata(item))

    def _metadata(self, item: Raw) -> Raw:
        metadata: Raw = {}
        if self._wanted is None:
            for name, value in item.items():
                if name not in self._left_out and not name.startswith("_"):
                    metadata[name] = self._value(name, value)
            return metadata
        for target, path in self._wanted.items():
            value = _reached(item, path)
            if value is not None:
                *folders, last = target.split(".")
                inner = metadata
                for folder in folders:
                    inner = inner.setdefault(folder, {})
                inner[last] = self._value(target, value)
        return metadata

    def _value(self, name: str, value: object) -> object:
        if name in self._numbers and isinstance(value, str) and (found := _NUMBER.match(value.strip())):
            return float(found[0]) if found[1] else int(found[0])
        return value


def _paths(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else given


def _first(item: Raw, paths: Iterable[list[str]]) -> str:
    """The first text that a path leads to, empty for none; a list stands for its first."""
    for path in paths:
        found = _reached(item, path)
        if isinstance(found, list):
            found = found[0] if found else None
        if isinstance(found, int) and not isinstance(found, bool):
            found = str(found)
        if isinstance(found, str) and (text := found.strip()):
            return text
    return ""


def _reached(item: object, path: Iterable[str]) -> object:
    for name in path:
        if not isinstance(item, dict):
            return None
        item = item.get(name)
    return item
