"""The tree of the audit log, its tiles, proofs and notes, against the definitions of RFC 6962 and C2SP."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.accounts.transparency import checkpoints, merkle
from appliance.accounts.transparency.leaves import leaf, recorded
from appliance.accounts.transparency.tiles import Edge, bundle_path, partial_path, tile_path, widths
from appliance.errors import InvalidInput
from appliance.vault import NODE, Keys
from tests import rfc6962

# The inputs and roots that implementations of RFC 6962 test themselves with (certificate-transparency).
KNOWN = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LARGEST = 1300
DRAWN = settings(derandomize=True, deadline=None, max_examples=60)


class Published:
    """A tree of numbers that keeps its full tiles; `complete` finds hashes in them as in the edge."""

    def __init__(self, size: int) -> None:
        self.entries = [str(number).encode() for number in range(size)]
        self.edge, self.files = Edge(), dict[str, bytes]()
        for entry in self.entries:
            self.files.update(self.edge.add(entry))

    def complete(self, level: int, index: int) -> bytes:
        tile = self.files.get(tile_path(level, index // 256))
        at = index % 256 * 32
        return self.edge.complete(level, index) if tile is None else tile[at : at + 32]


WHOLE = Published(LARGEST)


def test_the_known_roots() -> None:
    edge = Edge()
    found = [edge.root().hex()]
    for entry in KNOWN:
        edge.add(bytes.fromhex(entry))
        found.append(edge.root().hex())
    assert found == ROOTS


@DRAWN
@given(st.integers(0, 700))
def test_the_root_is_that_of_the_definition(size: int) -> None:
    tree = Published(size)
    assert tree.edge.root() == rfc6962.tree(tree.entries)


@DRAWN
@given(st.data())
def test_an_inclusion_proof_is_that_of_the_definition(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, LARGEST))
    index = data.draw(st.integers(0, size - 1))
    entries = WHOLE.entries[:size]
    hashes = merkle.inclusion_proof(index, size, WHOLE.complete)
    assert hashes == rfc6962.path(index, entries)
    root = merkle.tree_hash(size, WHOLE.complete)
    assert rfc6962.includes(entries[index], index, size, hashes, root)
    assert not rfc6962.includes(b"another", index, size, hashes, root)


@DRAWN
@given(st.data())
def test_a_consistency_proof_is_that_of_the_definition(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, LARGEST))
    old = data.draw(st.integers(1, new))
    hashes = merkle.consistency_proof(old, new, WHOLE.complete)
    assert hashes == rfc6962.proof(old, WHOLE.entries[:new])
    roots = [merkle.tree_hash(size, WHOLE.complete) for size in (old, new)]
    assert rfc6962.consistent(old, new, hashes, *roots)
    if old != new:
        assert not rfc6962.consistent(old, new, hashes, bytes(32), roots[1])


def test_nothing_is_to_be_proven_of_an_empty_tree() -> None:
    assert merkle.consistency_proof(0, 5, WHOLE.complete) == []


def test_the_tiles_of_seventy_thousand_entries_are_those_of_the_specification() -> None:
    """The example of https://c2sp.org/tlog-tiles."""
    size = 70_000
    tree = Published(size)
    partial = dict(tree.edge.partial())
    assert {path for path in tree.files if path.startswith("tile/0/")} == {
        tile_path(0, index) for index in range(273)
    }
    assert [path for path in tree.files if path.startswith("tile/1/")] == ["tile/1/000"]
    assert {path: len(content) // 32 for path, content in partial.items() if "entries" not in path} == {
        "tile/0/273.p/112": 112,
        "tile/1/001.p/17": 17,
        "tile/2/000.p/1": 1,
    }
    assert list(widths(size)) == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert partial["tile/entries/273.p/112"].startswith(b"\x00\x0569888")
    assert {len(content) for path, content in tree.files.items() if "entries" not in path} == {8192}


def test_paths_are_those_of_the_specification() -> None:
    assert tile_path(0, 1_234_067) == "tile/0/x001/x234/067"
    assert tile_path(63, 0) == "tile/63/000"
    assert partial_path(bundle_path(999), 7) == "tile/entries/999.p/7"
    assert bundle_path(1000) == "tile/entries/x001/000"


texts = st.text('aZ"\\/\x00\x08\x1f\x7f\n\t<&é€😀', max_size=20)


@DRAWN
@given(texts, texts, texts, texts | st.none(), texts | st.none(), st.dictionaries(texts, st.integers()))
def test_a_leaf_is_the_row_as_canonical_json(  # noqa: PLR0917 - the columns
    kind: str, actor: str, event: str, customer: str | None, subject: str | None, details: dict[str, int]
) -> None:
    written = json.dumps(details, sort_keys=True, separators=(",", ":"))
    columns = (kind, actor, None, event, customer, subject, written)
    made = leaf((7, -5, *(None if text is None else text.encode() for text in columns)))
    document = {
        "actor": {"id": actor, "kind": kind},
        "customer": customer,
        "details": None,
        "event": event,
        "request": None,
        "seq": 7,
        "subject": subject,
        "time": -5,
    }
    rest = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert made == rest.replace('"details":null', f'"details":{written}', 1).encode()
    assert recorded(made).details == details


KEYS = Keys(bytes(range(32)))
PUBLIC = KEYS.public(NODE)
SIGNED = checkpoints.sign(KEYS, "appliance/ab12", 4711, bytes(range(32)))
NOTE = SIGNED.note.encode()


def test_a_checkpoint_is_a_signed_note() -> None:
    origin, size, root, blank, signature, end = SIGNED.note.split("\n")
    assert (origin, size, blank, end) == ("appliance/ab12", "4711", "", "")
    assert root == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert signature.startswith("— appliance/ab12 ")
    assert checkpoints.parse(NOTE, PUBLIC) == SIGNED
    witnessed = NOTE + "— witness.example AAAAAAAA\n".encode()
    assert checkpoints.parse(witnessed, PUBLIC).size == 4711


@settings(DRAWN, max_examples=300)
@given(st.integers(0, len(NOTE) * 8 - 1))
def test_no_bit_of_a_checkpoint_can_be_changed(bit: int) -> None:
    changed = bytearray(NOTE)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidInput):
        checkpoints.parse(bytes(changed), PUBLIC)


@DRAWN
@given(st.binary(max_size=300) | st.integers(0, len(NOTE) - 1).map(lambda end: NOTE[:end]))
def test_what_is_no_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        checkpoints.parse(data, PUBLIC)


def test_a_checkpoint_of_another_key_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not signed by the key of this log"):
        checkpoints.parse(NOTE, Keys(bytes(32)).public(NODE))


def test_keys_are_written_as_other_tools_take_them() -> None:
    """The example of golang.org/x/mod/sumdb/note, whose format it is."""
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    key = checkpoints.parse_key(f" {text}\n")
    assert key.name == "PeterNeumann"
    assert str(key) == text
    for changed in (text.replace("c74f", "c74e"), text[:-1] + "X", text.replace("Neu", "New"), "", "a+b+c"):
        with pytest.raises(InvalidInput, match="audit key"):
            checkpoints.parse_key(changed)
