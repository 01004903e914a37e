"""Tasks that installed models answer, told as those that customers make: to be read, not changed."""

from collections.abc import Sequence

from appliance.accounts.customers import CustomerId
from appliance.datasets.pages import Cut, Page
from appliance.datasets.records import LabelKind, Side, Task
from appliance.datasets.words import checked_color
from appliance.errors import Conflict
from appliance.recognition.bundles import Bundle, Bundles, Label

# Positions of installed tasks in a list, behind those that a dataset gives to its own.
_FIRST = 0xFFFF_0000


class InstalledTasks:
    """The tasks of bundles that classify (recognition) or detect (detection), of those a customer may use.

    Of several versions of a bundle the active one is the task; one without an active version is none.
    """

    def __init__(self, bundles: Bundles) -> None:
        self._bundles = bundles

    def list(self, customer: CustomerId, side: Side, search: str = "") -> Sequence[Bundle]:
        """Those with `search` in their names, in the order of installation."""
        return [
            bundle
            for bundle in self._bundles.catalogue(customer).list()
            if bundle.active and _is_of(side, bundle) and search.casefold() in bundle.name
        ]

    def find(self, customer: CustomerId, task: str, side: Side) -> Bundle | None:
        """The one of this id."""
        return next((bundle for bundle in self.list(customer, side) if bundle.task == task), None)

    def check_own(self, customer: CustomerId, task: str, side: Side) -> None:
        """Raises Conflict for the id of an installed task, which nobody changes over the wire."""
        if self.find(customer, task, side) is not None:
            raise Conflict("an installed model answers this task: only an operator can change it")


def _is_of(side: Side, bundle: Bundle) -> bool:
    return bundle.kind == "detector" if side == "detection" else bundle.classifies


def behind(own: Page[Task], installed: Sequence[Bundle], wanted: Cut) -> Page[Task | Bundle]:
    """The wanted page of a list that has a dataset's `own` tasks, then all that are installed."""
    count = own.count + len(installed)
    if own.after is not None:
        return Page(own.rows, count, own.after)
    start = wanted.offset - own.count if wanted.after is None else wanted.after - _FIRST
    start = max(0, start)  # a page that begins among the dataset's own
    following = installed[start : start + wanted.size - len(own.rows)]
    end = start + len(following)
    return Page([*own.rows, *following], count, _FIRST + end if end < len(installed) else None)


def labels_page(bundle: Bundle, wanted: Cut, kind: LabelKind | None, search: str) -> Page[Label]:
    """The wanted page of what the model tells apart: of a kind, or with `search` in their names."""
    labels = bundle.labels if kind in (None, _label_kind(bundle)) else ()
    found = [label for label in labels if search.casefold() in label.name.casefold()]
    start = wanted.offset if wanted.after is None else wanted.after
    end = start + wanted.size
    return Page(found[start:end], len(found), end if end < len(found) else None)


def _label_kind(bundle: Bundle) -> LabelKind:
    return "tag" if bundle.kind == "tagger" else "detection" if bundle.kind == "detector" else "category"


def label_document(bundle: Bundle, label: Label, customer: CustomerId) -> dict[str, object]:
    """With the id and the name that answers have; no image of the customer carries it."""
    document: dict[str, object] = {
        "id": label.id,
        "name": label.name,
        "description": None,
        "output_name": None,
        "workspace": customer,
        "created": None,
        "tasks_count": 1,
        "images_count": 0,
        "objects_count": 0,
        "recognition_tasks": [],
    }
    if bundle.kind == "detector":
        return document | {"color": checked_color(None)}
    return document | {"type": _label_kind(bundle), "negative_for_task": None}


def task_document(bundle: Bundle, customer: CustomerId) -> dict[str, object]:
    """In the customer's default workspace; `created` is null, for it was not made there."""
    document: dict[str, object] = {
        "id": bundle.task,
        "name": bundle.name,
        "description": None,
        "workspace": customer,
        "created": None,
        "labels_count": len(bundle.labels),
        "production_version": int(bundle.version) if bundle.version.isdecimal() else bundle.version,
        "last_train_status": "TRAINED",
    }
    if bundle.kind == "detector":
        return document | {"negative_images_count": 0}
    return document | {"type": "multi_label" if bundle.kind == "tagger" else "multi_class"}
