"""The bundles that somebody may use, and how they are asked for: by task, by route, by name."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from appliance.errors import NotFound, NotInstalled
from appliance.recognition.bundle import Bundle, Damaged, TaskId


class Catalogue:
    """Some bundles in the order of installation; of several for one route the first active one serves.

    A damaged one keeps its place: what it served is answered by nobody else, and raises NotInstalled.
    """

    def __init__(self, bundles: Iterable[Bundle | Damaged]) -> None:
        self._bundles = tuple(bundles)

    def list(self) -> Sequence[Bundle]:
        """All that are not damaged."""
        return [one for one in self._bundles if isinstance(one, Bundle)]

    def of_tasks(self, tasks: Collection[str] | None) -> "Catalogue":
        """Those that answer one of these tasks; all of them with None."""
        return self if tasks is None else Catalogue(one for one in self._bundles if one.task in tasks)

    def for_task(self, task: TaskId, version: str | None = None) -> Bundle:
        """The version of a task that answers, or the one that is asked for. Raises NotFound, NotInstalled."""
        return _chosen([bundle for bundle in self._bundles if bundle.task == task], "task", version)

    def for_name(self, name: str, version: str | None = None) -> Bundle:
        """The version of a name that answers, or the one that is asked for. Raises NotFound, NotInstalled."""
        return _chosen([bundle for bundle in self._bundles if bundle.name == name], "model", version)

    def versions(self, name: str) -> Sequence[Bundle]:
        """All bundles of a name that are not damaged."""
        return [bundle for bundle in self.list() if bundle.name == name]

    def for_route(self, route: str) -> Bundle:
        """The bundle that serves a wire route such as "photo/tags/v2/tags". Raises NotInstalled."""
        for bundle in self._of_route(route):
            return _whole(bundle)
        raise NotInstalled("service not installed")

    def route_installed(self, route: str) -> bool:
        """Whether `for_route` has an answer."""
        return isinstance(next(self._of_route(route), None), Bundle)

    def shadowed(self, bundle: Bundle | Damaged) -> dict[str, str]:
        """Of the routes that a bundle names, those that another one serves: the NAME@VERSION of that."""
        serving = ((route, next(self._of_route(route), None)) for route in bundle.routes)
        return {route: one.pin for route, one in serving if one is not None and one.name != bundle.name}

    def _of_route(self, route: str) -> Iterator[Bundle | Damaged]:
        return (bundle for bundle in self._bundles if bundle.active and route in bundle.routes)


def _whole(bundle: Bundle | Damaged) -> Bundle:
    if isinstance(bundle, Damaged):
        raise NotInstalled(bundle.told)
    return bundle


def _chosen(versions: Sequence[Bundle | Damaged], noun: str, version: str | None) -> Bundle:
    if not versions:
        raise NotFound(f"no such {noun}")
    for bundle in versions:
        if bundle.active if version is None else bundle.version == version:
            return _whole(bundle)
    raise NotFound(f"the {noun} has no such version" if version else f"the {noun} has no active version")
