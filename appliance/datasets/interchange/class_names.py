"""Class names of YOLO: from the YAML that Ultralytics and Roboflow write, or a list with one a line.

Of YAML, only what is between `names:` and the next key is read, in the shapes that these programs write: a
list or a mapping from numbers, in lines or in brackets, of names, plain or quoted. Others are refused.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from appliance.datasets.interchange.text import decoded
from appliance.datasets.labels import MAX_LABELS
from appliance.errors import InvalidInput

_KEY = re.compile(r"([A-Za-z_][\w-]*)[ \t]*:(?:[ \t]+(.*))?$", re.ASCII)
_NUMBER = re.compile(r"(\d{1,9})[ \t]*:(?=\s)[ \t]*", re.ASCII)
_BLANK = re.compile(r"(?:\s|(?<!\S)#[^\n]*)*")
_QUOTED = re.compile(r'"(?P<double>(?:[^"\\\n]|\\.)*)"|\'(?P<single>(?:[^\'\n]|\'\')*)\'')
_FIRST = r"(?![-?:](?:\s|$))[^\s#,\[\]{}'\"&*!|>%@`]"
_PLAIN = re.compile(rf"{_FIRST}(?:[^\n#]|(?<=\S)#)*")
_PLAIN_IN_BRACKETS = re.compile(rf"{_FIRST}(?:[^\n#,\[\]{{}}]|(?<=\S)#)*")
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_ESCAPES = {
    "0": "\0",
    "a": "\a",
    "b": "\b",
    "t": "\t",
    "n": "\n",
    "v": "\v",
    "f": "\f",
    "r": "\r",
    "e": "\x1b",
    " ": " ",
    '"': '"',
    "/": "/",
    "\\": "\\",
    "N": "\x85",
    "_": "\xa0",
    "L": "\u2028",
    "P": "\u2029",
}
# What YAML's readers do not take as it is within quotes.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class Classes:
    """Names by their numbers; `pose`: rows have keypoints behind the box."""

    names: Mapping[int, str]
    pose: bool = False


class _Unknown(Exception):
    """A shape that is not read."""


def from_list(path: str, content: bytes) -> Classes:
    """`classes.txt` or `obj.names`: a name on each line. Raises InvalidInput."""
    lines = [line.strip() for line in decoded(path, content).rstrip().split("\n")]
    for number, name in enumerate(lines, 1):
        if not name:
            raise InvalidInput(f"{path}, line {number}: a class name is expected on each line")
    return _limited(path, Classes(dict(enumerate(lines))))


def from_yaml(path: str, content: bytes) -> Classes | None:
    """The `names` of a YAML file, None where it has none. Raises InvalidInput with the line."""
    lines = decoded(path, content).replace("\r\n", "\n").split("\n")
    keys = [(row, match) for row, line in enumerate(lines) if (match := _KEY.match(line)) is not None]
    ends = [row for row, _ in keys[1:]] + [len(lines)]
    found = [
        (row, end, match[2] or "")
        for (row, match), end in zip(keys, ends, strict=False)
        if match[1] == "names"
    ]
    if not found:
        return None
    if len(found) > 1:
        raise InvalidInput(f"{path}, line {found[1][0] + 1}: names occurs twice")
    [(row, end, head)] = found
    inline = head[_end_of_blank(head, 0) :]
    try:
        if inline:
            names = dict(_in_brackets("\n".join([inline, *lines[row + 1 : end]])))
        else:
            names = dict(_in_lines(lines[row + 1 : end]))
    except _Unknown:
        raise InvalidInput(
            f"{path}, line {row + 1}: names is expected as Ultralytics and Roboflow write it: a list, or a"
            " mapping from the numbers of the classes, each with a name of its own on one line"
        ) from None
    pose = any(match[1] == "kpt_shape" for _, match in keys)
    return _limited(path, Classes(names, pose))


def quoted(name: str) -> str:
    """A name as a scalar of YAML, and of JSON."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(name, ensure_ascii=False))


def _limited(path: str, classes: Classes) -> Classes:
    if len(classes.names) > MAX_LABELS:
        raise InvalidInput(f"{path}: a dataset has at most {MAX_LABELS} labels")
    return classes


def _in_lines(lines: list[str]) -> Iterator[tuple[int, str]]:
    shapes = set[tuple[int, bool]]()  # indentation, and whether it is a mapping
    count = 0
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        number = _NUMBER.match(text)
        shapes.add((len(line) - len(line.lstrip(" ")), number is not None))
        if len(shapes) > 1 or (number is None and not text.startswith("- ")):
            raise _Unknown
        start = _end_of_blank(text, 2 if number is None else number.end())
        name, end = _scalar(text, start, _PLAIN)
        if _end_of_blank(text, end) != len(text):
            raise _Unknown
        yield count if number is None else int(number[1]), name
        count += 1


def _in_brackets(text: str) -> Iterator[tuple[int, str]]:
    close = {"[": "]", "{": "}"}.get(text[0])
    if close is None:
        raise _Unknown
    position, count = _end_of_blank(text, 1), 0
    while text[position : position + 1] != close:
        key = count
        if close == "}":
            if (number := _NUMBER.match(text, position)) is None:
                raise _Unknown
            key, position = int(number[1]), _end_of_blank(text, number.end())
        name, position = _scalar(text, position, _PLAIN_IN_BRACKETS)
        yield key, name
        count += 1
        position = _end_of_blank(text, position)
        if text[position : position + 1] == ",":
            position = _end_of_blank(text, position + 1)
        elif text[position : position + 1] != close:
            raise _Unknown
    if _end_of_blank(text, position + 1) != len(text):
        raise _Unknown


def _end_of_blank(text: str, start: int) -> int:
    found = _BLANK.match(text, start)
    assert found is not None
    return found.end()


def _scalar(text: str, start: int, plain: re.Pattern[str]) -> tuple[str, int]:
    """The name that begins there, and where it ends."""
    if (found := _QUOTED.match(text, start)) is not None:
        if found["single"] is not None:
            return found["single"].replace("''", "'"), found.end()
        return _unescaped(found["double"]), found.end()
    if (found := plain.match(text, start)) is None:
        raise _Unknown
    name = found[0].rstrip()
    if ": " in name or name.endswith(":") or name == "~":
        raise _Unknown
    return name, found.end()


def _unescaped(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        code = found[1]
        if len(code) > 1:
            return chr(int(code[1:], 16))
        if code not in _ESCAPES:
            raise _Unknown
        return _ESCAPES[code]

    try:  # JSON writes what lies beyond 16 bits as two escapes
        return _ESCAPE.sub(one, text).encode("utf-16", "surrogatepass").decode("utf-16")
    except ValueError:
        raise _Unknown from None
