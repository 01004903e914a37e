"""Tasks that installed models answer, told as those that customers make: to be read, not changed."""

from collections.abc import Sequence

from appliance.accounts.customers import CustomerId
from appliance.datasets.pages import Cut, Page
from appliance.datasets.records import Side, Task
from appliance.errors import Conflict
from appliance.recognition.bundles import Bundle, Bundles

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
