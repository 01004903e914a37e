"""An installed bundle, as everything that recognises sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

from appliance.accounts.customers import CustomerId
from appliance.recognition.manifest import Kind, Label, SelfTest
from appliance.recognition.preprocessing import Preprocessing

TaskId = NewType("TaskId", str)


@dataclass(frozen=True, slots=True)
class Bundle:
    """An installed bundle: `task` is the id clients ask for, `sha256` that of the file `model`.

    `labels` are in the order of the output `logits`, of a detector in that of its classes; `outputs` are
    shapes for one image. `threshold`, `overlap` and `selftest` are what `manifest.Manifest` says of them.
    `active` says whether it answers where no version is asked for; `customers` are those who may use it,
    None for everybody.
    """

    name: str
    version: str
    kind: Kind
    task: TaskId
    routes: tuple[str, ...]
    preprocessing: Preprocessing
    outputs: Mapping[str, tuple[int, ...]]
    labels: tuple[Label, ...]
    folder: Path
    model: Path
    sha256: str
    threshold: float = 0.0
    overlap: float = 1.0
    selftest: SelfTest | None = None
    active: bool = True
    customers: frozenset[CustomerId] | None = None

    @property
    def pin(self) -> str:
        """NAME@VERSION: what names exactly these files."""
        return f"{self.name}@{self.version}"

    @property
    def classifies(self) -> bool:
        """Whether its answer is labels of the whole image."""
        return "logits" in self.outputs

    def for_customer(self, customer: CustomerId) -> bool:
        """Whether this customer may use it."""
        return self.customers is None or customer in self.customers


@dataclass(frozen=True, slots=True)
class Damaged:
    """An installed bundle whose files are not those that were installed: it serves nothing.

    Installing it again puts it right. `fault` says for operators what is wrong; `kind` and `routes` are those
    of its manifest, None and empty where that is damaged too.
    """

    name: str
    version: str
    kind: Kind | None
    task: TaskId
    routes: tuple[str, ...]
    fault: str
    active: bool
    customers: frozenset[CustomerId] | None

    @property
    def pin(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"

    @property
    def told(self) -> str:
        """What whoever asks for it is told."""
        return f"bundle {self.name} {self.version} is damaged: the appliance's operator can install it again"

    def for_customer(self, customer: CustomerId) -> bool:
        """Whether this customer might use it."""
        return self.customers is None or customer in self.customers
