"""Reader of PyTorch's checkpoint format from before 1.6, without PyTorch.

Such a file is five pickles (magic number, protocol, system facts, state dictionary, storage keys), then for
each storage key its length as a little-endian int64 and the raw numbers, and nothing after. A tensor of the
state dictionary is a view: storage key, offset, sizes and strides, all counted in numbers
(torch/serialization.py `_legacy_load`, torch/_utils.py `_rebuild_tensor_v2`).
"""

import io
import pickle  # noqa: TID251 - the format is pickles; `_StateReader` resolves four names and no other
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import InvalidInput

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_BYTES = 256 * 1024 * 1024

# By name, never by type: what a pickle gets to hold for a storage class must not be callable.
_STORAGE_DTYPES: Mapping[tuple[str, str], str] = {
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor before the numbers behind it have been read."""

    storage: _Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """The tensor as a contiguous copy. Strides matter: convolution weights are stored channels-last."""
        step = numbers.itemsize
        view = np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.sizes, [stride * step for stride in self.strides], writeable=False
        )
        return view.copy(order="C")


def _rebuild_tensor_v2(
    storage: object, offset: object, sizes: object, strides: object, *_gradient_and_hooks: object
) -> _View:
    if not isinstance(storage, _Storage):
        raise InvalidInput("checkpoint: a tensor is built on something that is no storage")
    view = _View(storage, _count(offset), _counts(sizes), _counts(strides))
    if len(view.sizes) != len(view.strides):
        raise InvalidInput("checkpoint: a tensor has not one stride for each size")
    numbers = 1
    for size in view.sizes:
        numbers *= size
    reach = view.offset + sum(
        (size - 1) * stride for size, stride in zip(view.sizes, view.strides, strict=True)
    )
    # Reading behind the storage, or one number many times over, is how a view becomes a weapon.
    if numbers < 1 or reach >= storage.count or numbers > storage.count:
        raise InvalidInput("checkpoint: a tensor reaches beyond its storage")
    return view


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise InvalidInput("checkpoint: an offset, size or stride is no count")
    return value


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise InvalidInput("checkpoint: sizes and strides must be tuples")
    return tuple(_count(value) for value in values)


class _StateReader(pickle.Unpickler):
    """An unpickler that knows the four names of a state dictionary; any other ends the reading."""

    def find_class(self, module: str, name: str, /) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor_v2
        if (module, name) in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[module, name]
        raise InvalidInput(f"checkpoint: the name {module}.{name} is not allowed in a state dictionary")

    def persistent_load(self, pid: object, /) -> _Storage:
        match pid:
            case ("storage", str(dtype), str(key), str(), int(count), None) if (
                dtype in _STORAGE_DTYPES.values() and count > 0
            ):
                return _Storage(key, dtype, count)
            case _:
                raise InvalidInput("checkpoint: a persistent id that is no storage of floats or integers")


def read(data: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a checkpoint by name, in the order of the state dictionary.

    Each is contiguous, little-endian float32 or int64. Nothing in the file is executed. Raises InvalidInput
    with the reason for anything but a complete checkpoint: a name outside the allowed four, a tensor that
    reaches beyond its storage, missing or trailing bytes, more than 256 MiB.
    """
    if len(data) > _MAX_BYTES:
        raise InvalidInput(f"checkpoint: larger than {_MAX_BYTES} bytes")
    stream = io.BytesIO(data)
    if _next(stream) != _MAGIC or _next(stream) != _PROTOCOL:
        raise InvalidInput("checkpoint: not the PyTorch format from before 1.6")
    facts = _next(stream)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise InvalidInput("checkpoint: not written little-endian")
    views = _views(_next(stream))
    numbers = _numbers(stream, _next(stream), views)
    if stream.tell() != len(data):
        raise InvalidInput("checkpoint: bytes after the last storage")
    return {name: view.of(numbers[view.storage.key]) for name, view in views.items()}


def _next(stream: io.BytesIO) -> object:
    load: Callable[[], object] = _StateReader(stream).load
    try:
        return load()
    except InvalidInput:
        raise
    except Exception as error:  # a broken pickle surfaces as almost any exception there is
        raise InvalidInput(f"checkpoint: a broken pickle ({type(error).__name__})") from error


def _views(state: object) -> dict[str, _View]:
    if not isinstance(state, OrderedDict) or not state:
        raise InvalidInput("checkpoint: no state dictionary")
    views = {}
    for name, view in state.items():
        if not isinstance(name, str) or not isinstance(view, _View):
            raise InvalidInput("checkpoint: the state dictionary holds something that is no named tensor")
        views[name] = view
    return views


def _numbers(stream: io.BytesIO, keys: object, views: Mapping[str, _View]) -> dict[str, NDArray[Any]]:
    storages: dict[str, _Storage] = {}
    for view in views.values():
        if storages.setdefault(view.storage.key, view.storage) != view.storage:
            raise InvalidInput("checkpoint: one storage key with two descriptions")
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise InvalidInput("checkpoint: the listed storages are not those of the tensors")
    numbers = {}
    for key in keys:
        storage = storages[key]
        count = stream.read(8)
        size = storage.count * np.dtype(storage.dtype).itemsize
        if len(count) != 8 or struct.unpack("<q", count)[0] != storage.count:
            raise InvalidInput("checkpoint: a storage has another length than its tensors say")
        raw = stream.read(size)
        if len(raw) != size:
            raise InvalidInput("checkpoint: cut off")
        numbers[storage.key] = np.frombuffer(raw, dtype=storage.dtype)
    return numbers
