"""The old checkpoint format is read as PyTorch reads it, and a pickle gets to do nothing else."""

import os
import pickle  # noqa: TID251 - what the reader reads, and what it must refuse
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.errors import InvalidInput
from appliance.recognition.checkpoint import read

MAGIC, PROTOCOL, FACTS = 0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}


class Name(NamedTuple):
    """Pickled as the global `module.name`, whether or not that can be imported here."""

    module: str
    name: str


class Call:
    """Pickled as a call of a global, as tensors are."""

    def __init__(self, function: Name, *arguments: object) -> None:
        self.function, self.arguments = function, arguments


class Storage:
    """Pickled as a persistent id."""

    def __init__(self, key: str, count: int, kind: str = "FloatStorage") -> None:
        self.id = ("storage", Name("torch", kind), key, "cpu", count, None)


REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


def tensor(storage: Storage, *, offset: Any = 0, sizes: Any = (2, 3), strides: Any = (3, 1)) -> Call:
    return Call(REBUILD, storage, offset, sizes, strides, False, OrderedDict())


def pickled(value: object) -> bytes:
    return pickle.PROTO + b"\x02" + opcodes(value) + pickle.STOP


def opcodes(value: object) -> bytes:
    match value:
        case Name(module, name):
            return pickle.GLOBAL + f"{module}\n{name}\n".encode()
        case Call():
            return opcodes(value.function) + opcodes(value.arguments) + pickle.REDUCE
        case Storage():
            return opcodes(value.id) + pickle.BINPERSID
        case tuple():
            return pickle.MARK + b"".join(map(opcodes, value)) + pickle.TUPLE
        case list():
            return pickle.MARK + b"".join(map(opcodes, value)) + pickle.LIST
        case OrderedDict():
            made = opcodes(Call(Name("collections", "OrderedDict")))
            pairs = b"".join(opcodes(key) + opcodes(item) for key, item in value.items())
            return made + pickle.MARK + pairs + pickle.SETITEMS
        case _:
            return pickle.dumps(value, 2)[2:-1]


def raw(numbers: NDArray[Any]) -> bytes:
    return struct.pack("<q", numbers.size) + numbers.tobytes()


SIX = np.arange(6, dtype="<f4")


def written(state: object, keys: object = ("a",), data: bytes = raw(SIX)) -> bytes:
    head = [MAGIC, PROTOCOL, FACTS, state, list(keys) if isinstance(keys, tuple) else keys]
    return b"".join(map(pickled, head)) + data


def one(value: object) -> OrderedDict[str, object]:
    return OrderedDict(weight=value)


def test_strides_and_offsets_are_honoured() -> None:
    storage = Storage("a", 6)
    state = OrderedDict(
        transposed=tensor(storage, sizes=(3, 2), strides=(1, 3)),
        tail=tensor(storage, offset=4, sizes=(2,), strides=(1,)),
        scalar=tensor(storage, offset=5, sizes=(), strides=()),
    )
    tensors = read(written(state))
    assert list(tensors) == ["transposed", "tail", "scalar"]
    assert tensors["transposed"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert tensors["transposed"].flags.c_contiguous
    assert tensors["tail"].tolist() == [4, 5]
    assert tensors["scalar"].shape == ()


def test_integers_are_read_in_the_order_of_the_key_list() -> None:
    counts = np.array([7], dtype="<i8")
    state = OrderedDict(
        weight=tensor(Storage("a", 6)),
        batches=tensor(Storage("b", 1, "LongStorage"), sizes=(), strides=()),
    )
    tensors = read(written(state, ("b", "a"), raw(counts) + raw(SIX)))
    assert tensors["batches"].dtype == np.int64
    assert tensors["batches"] == 7
    assert tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "name",
    [
        Name("os", "system"),
        Name("builtins", "eval"),
        Name("builtins", "getattr"),
        Name("collections", "namedtuple"),
        Name("torch._utils", "_rebuild_tensor"),
        Name("torch", "load"),
        Name("torch", "DoubleStorage"),
        Name("numpy", "frombuffer"),
        Name("appliance.recognition.checkpoint", "os.system"),
    ],
    ids=lambda name: f"{name.module}.{name.name}",
)
def test_any_other_name_is_refused(name: Name) -> None:
    with pytest.raises(InvalidInput, match=rf"{name.module}\.{name.name} is not allowed"):
        read(written(one(Call(name, "true"))))


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path}/owned",)

    for place in range(5):
        head: list[object] = [MAGIC, PROTOCOL, FACTS, one(tensor(Storage("a", 6))), ["a"]]
        head[place] = Hostile()
        for protocol in (0, 2, 4):
            parts = [pickled(part) for part in head]
            parts[place] = pickle.dumps(Hostile(), protocol)
            with pytest.raises(InvalidInput, match="system is not allowed"):
                read(b"".join(parts) + raw(SIX))
    assert list(tmp_path.iterdir()) == []


def test_a_storage_class_cannot_be_called() -> None:
    with pytest.raises(InvalidInput, match="broken pickle"):
        read(written(one(Call(Name("torch", "FloatStorage"), 10**12))))


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        ({"offset": 1}, "beyond its storage"),
        ({"sizes": (2, 4)}, "beyond its storage"),
        ({"strides": (4, 1)}, "beyond its storage"),
        ({"sizes": (1000, 1000), "strides": (0, 0)}, "beyond its storage"),
        ({"sizes": (0, 3)}, "beyond its storage"),
        ({"offset": -1}, "no count"),
        ({"strides": (-3, 1)}, "no count"),
        ({"sizes": (2, 3.0)}, "no count"),
        ({"sizes": (True, 3)}, "no count"),
        ({"sizes": (6,)}, "one stride for each"),
        ({"sizes": [2, 3]}, "must be tuples"),
        ({"sizes": (10**400, 3)}, "beyond its storage"),
    ],
)
def test_a_view_beyond_its_storage_is_refused(view: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read(written(one(tensor(Storage("a", 6), **view))))


GOOD = written(one(tensor(Storage("a", 6))))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "broken pickle"),
        (b"PK\x03\x04", "broken pickle"),
        (pickled(MAGIC), "broken pickle"),
        (pickled(1) + pickled(PROTOCOL), "not the PyTorch format"),
        (pickled(MAGIC) + pickled(1002), "not the PyTorch format"),
        (pickled(MAGIC) + pickled(PROTOCOL) + pickled({"little_endian": False}), "little-endian"),
        (GOOD + b"\0", "bytes after the last storage"),
        (GOOD[:-1], "cut off"),
        (GOOD[:-25], "another length"),
        (
            written(
                one(
                    tensor(Storage("a", 7)),
                )
            ),
            "another length",
        ),
        (written(one(tensor(Storage("a", 6))), ()), "listed storages"),
        (written(one(tensor(Storage("a", 6))), ("a", "b")), "listed storages"),
        (written(one(tensor(Storage("a", 6))), "a"), "listed storages"),
        (written(one(1.0)), "no named tensor"),
        (written(OrderedDict([(1, tensor(Storage("a", 6)))])), "no named tensor"),
        (written(OrderedDict()), "no state dictionary"),
        (written([tensor(Storage("a", 6))]), "no state dictionary"),
        (
            written(OrderedDict(x=tensor(Storage("a", 6)), y=tensor(Storage("a", 8)))),
            "two descriptions",
        ),
        (written(one(tensor(Storage("a", -6)))), "persistent id"),
        (written(one(Call(REBUILD, "a", 0, (2,), (1,), False, None))), "no storage"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read(data)


def test_every_cut_is_refused() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(InvalidInput):
            read(GOOD[:length])
