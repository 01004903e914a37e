"""`fields_to_return`: which fields of a record an answer shows, with MongoDB's meaning of dots."""

from collections.abc import Iterable, Mapping

from appliance.api.payload import Payload
from appliance.errors import InvalidInput
from appliance.search.records import MAX_METADATA_DEPTH, Metadata

ID_ONLY = ("_id",)
EVERYTHING = ("*",)

_Tree = dict[str, "_Tree | None"]  # what of a field is wanted, None for all of it


class Projection:
    """The fields that a caller wants of each record. `_id` always comes back.

    `*` is every field. `size.eu` is `{"size": {"eu": ..}}`, out of every object where `size` is a list of
    them; a field whose own name is `size.eu` is meant too. What a record does not have is left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Raises InvalidInput for a name with more parts than metadata have levels."""
        self._names = frozenset(names) | {"_id"}
        self._tree: _Tree = {}
        for name in self._names:
            _plant(self._tree, name)

    @property
    def id_only(self) -> bool:
        """Whether no field of the metadata is wanted."""
        return self._names == {"_id"}

    def of(self, fields: Mapping[str, object]) -> Metadata:
        """The wanted fields of a record, in the record's order."""
        if "*" in self._names:
            return dict(fields)
        shown: Metadata = {}
        for name, value in fields.items():
            if name in self._names:
                shown[name] = value
            elif (tree := self._tree.get(name)) is not None:
                _show(shown, name, value, tree)
        return shown


def wanted(payload: Payload, default: Iterable[str]) -> Projection:
    """The `fields_to_return` of a request, a list or names with commas between; `default` where it has none.

    Raises InvalidInput.
    """
    names = payload.fields.get("fields_to_return") or list(default)
    if isinstance(names, str):
        names = names.split(",")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInput("fields_to_return: a list of field names is expected")
    return Projection(names)


def _plant(tree: _Tree, name: str) -> None:
    parts = name.split(".")
    if len(parts) > MAX_METADATA_DEPTH:
        raise InvalidInput(f"fields_to_return: more than {MAX_METADATA_DEPTH} levels in {name[:64]}")
    for position, part in enumerate(parts, 1):
        if position == len(parts):
            tree[part] = None
            return
        below = tree.setdefault(part, {})
        if below is None:  # all of it is wanted already
            return
        tree = below


def _show(shown: Metadata, name: str, value: object, tree: _Tree) -> None:
    match value:
        case dict():
            shown[name] = _picked(value, tree)
        case list():
            shown[name] = [_picked(one, tree) for one in value if isinstance(one, dict)]
        case _:
            pass  # it has no such part


def _picked(fields: Mapping[str, object], tree: _Tree) -> Metadata:
    shown: Metadata = {}
    for name, value in fields.items():
        if name not in tree:
            continue
        below = tree[name]
        if below is None:
            shown[name] = value
        else:
            _show(shown, name, value, below)
    return shown
