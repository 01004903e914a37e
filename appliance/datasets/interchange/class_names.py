"""Class names of YOLO: from the YAML that Ultralytics and Roboflow write, or a list with one a line."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from appliance.datasets.interchange.text import decoded
from appliance.datasets.labels import MAX_LABELS
from appliance.errors import InvalidInput

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
# What YAML's readers do not take as it is within quotes.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class Classes:
    """Names by their numbers; `pose`: rows have keypoints behind the box."""

    names: Mapping[int, str]
    pose: bool = False


def from_list(path: str, content: bytes) -> Classes:
    """`classes.txt` or `obj.names`: a name on each line. Raises InvalidInput."""
    lines = [line.strip() for line in decoded(path, content).rstrip().split("\n")]
    for number, name in enumerate(lines, 1):
        if not name:
            raise InvalidInput(f"{path}, line {number}: a class name is expected on each line")
    return _limited(path, Classes(dict(enumerate(lines))))


def from_yaml(path: str, content: bytes) -> Classes | None:
    """The `names` of a YAML file, a list or a mapping from numbers; None where it has none.

    Raises InvalidInput, with the line where it is no YAML.
    """
    try:
        # All scalars are texts to this loader, and tags mean nothing: no class is called True or None.
        document = yaml.load(decoded(path, content), Loader=yaml.CBaseLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise InvalidInput(f"{path}{line}: is no YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise InvalidInput(f"{path}: is no YAML") from None
    if not isinstance(document, dict) or "names" not in document:
        return None
    names = document["names"]
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not all(
        isinstance(key, str) and _NUMBER.fullmatch(key) and isinstance(name, str)
        for key, name in names.items()
    ):
        raise InvalidInput(
            f"{path}: names is expected as a list of names, or as a mapping from the numbers of the classes"
        )
    return _limited(path, Classes({int(key): name for key, name in names.items()}, "kpt_shape" in document))


def quoted(name: str) -> str:
    """A name as a scalar of YAML, and of JSON."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(name, ensure_ascii=False))


def _limited(path: str, classes: Classes) -> Classes:
    if len(classes.names) > MAX_LABELS:
        raise InvalidInput(f"{path}: a dataset has at most {MAX_LABELS} labels")
    return classes
