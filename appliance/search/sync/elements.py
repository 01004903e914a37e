"""Items of feeds in XML: RSS, Atom, Google Merchant's, Heureka's, and others whose element is named.

Parsed by expat as it comes. A document type is refused, and with it every entity of its own: what is left is
as long as it looks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from appliance.errors import InvalidInput
from appliance.search.sync.mapping import Raw

ITEMS = frozenset({"item", "entry", "product", "SHOPITEM", "offer"})
MOST_ITEM = 1 << 20  # bytes of one item
MOST_DEPTH = 32


@dataclass(slots=True)
class _Element:
    qualified: str
    attributes: Mapping[str, str]
    children: Raw = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    """By what qualified name a child came first: another vocabulary's of the same name says the same."""
    text: list[str] = field(default_factory=list)

    def value(self) -> object:
        """Its children by their names, else its text; without both its attributes, None for nothing."""
        if self.children:
            return self.children
        text = "".join(self.text).strip()
        return text or dict(self.attributes) or None

    def add(self, qualified: str, value: object) -> None:
        """Several of one name become a list."""
        name = _local(qualified)
        if self.named.setdefault(name, qualified) != qualified or value is None:
            return
        if name not in self.children:
            self.children[name] = value
        elif isinstance(self.children[name], list):
            self.children[name].append(value)
        else:
            self.children[name] = [self.children[name], value]


class Elements:
    """Takes a document in pieces, and gives its items as they end; `name` is their element's.

    Without it, the first one that is among ITEMS. Names lose their prefixes: `g:price` is `price`. Raises
    InvalidInput.
    """

    def __init__(self, name: str | None) -> None:
        self._wanted = ITEMS if name is None else frozenset({name})
        self._depth = 0
        self._size = 0
        self._fed = 0
        self._within: list[_Element] = []
        self._found: list[Raw] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse_type
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text

    def feed(self, piece: bytes) -> list[Raw]:
        """The items that end in this piece."""
        self._fed += len(piece)
        return self._parse(piece, last=False)

    def close(self) -> list[Raw]:
        """After the last piece."""
        return self._parse(b"", last=True)

    def _parse(self, piece: bytes, *, last: bool) -> list[Raw]:
        try:
            self._parser.Parse(piece, last)
        except expat.ExpatError as error:
            reason = expat.ErrorString(error.code)
            raise InvalidInput(f"the feed is not well-formed XML: {reason}, line {error.lineno}") from None
        except (LookupError, ValueError, OSError):
            raise InvalidInput("the feed is in an encoding that is not read: save it as UTF-8") from None
        if self._fed - max(0, self._parser.CurrentByteIndex) > 2 * MOST_ITEM and not last:
            raise self._too_large()  # a tag or a comment that does not end
        found, self._found = self._found, []
        return found

    def _refuse_type(self, *_: object) -> None:
        raise InvalidInput("the feed declares a document type (DOCTYPE), which is refused")

    def _start(self, qualified: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise InvalidInput(f"the feed has more than {MOST_DEPTH} elements within each other")
        if not self._within:
            name = _local(qualified)
            if name not in self._wanted:
                return
            self._wanted = frozenset({name})
            self._size = 0
        self._grow(len(qualified) + sum(len(name) + len(value) for name, value in attributes.items()))
        self._within.append(_Element(qualified, attributes))

    def _text(self, text: str) -> None:
        if self._within:
            self._grow(len(text))
            self._within[-1].text.append(text)

    def _end(self, qualified: str) -> None:
        self._depth -= 1
        if not self._within:
            return
        ended = self._within.pop()
        if self._within:
            self._within[-1].add(qualified, ended.value())
        else:
            self._found.append(ended.children)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MOST_ITEM:
            raise self._too_large()

    def _too_large(self) -> InvalidInput:
        line = self._parser.CurrentLineNumber
        return InvalidInput(f"the feed has an item of more than {MOST_ITEM >> 20} MiB at line {line}")


def _local(qualified: str) -> str:
    return qualified.rpartition(":")[2]
