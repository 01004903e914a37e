"""The bundles that somebody may use, and how they are asked for: by task, by route, by name."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from appliance.errors import NotFound, NotInstalled
from appliance.recognition.bundle import Bundle, TaskId


class Catalogue:
    """Some bundles in the order of installation; of several for one route the first active one serves."""

    def __init__(self, bundles: Iterable[Bundle]) -> None:
        self._bundles = tuple(bundles)

    def list(self) -> Sequence[Bundle]:
        """All of them."""
        return self._bundles

    def of_tasks(self, tasks: Collection[str] | None) -> "Catalogue":
        """Those that answer one of these tasks; all of them with None."""
        return self if tasks is None else Catalogue(one for one in self._bundles if one.task in tasks)

    def for_task(self, task: TaskId, version: str | None = None) -> Bundle:
        """The version of a task that answers, or the one that is asked for. Raises NotFound."""
        return _chosen([bundle for bundle in self._bundles if bundle.task == task], "task", version)

    def for_name(self, name: str, version: str | None = None) -> Bundle:
        """The version of a name that answers, or the one that is asked for. Raises NotFound."""
        return _chosen(self.versions(name), "model", version)

    def versions(self, name: str) -> Sequence[Bundle]:
        """All bundles of a name."""
        return [bundle for bundle in self._bundles if bundle.name == name]

    def for_route(self, route: str) -> Bundle:
        """The bundle that serves a wire route such as "photo/tags/v2/tags". Raises NotInstalled."""
        for bundle in self._serving():
            if route in bundle.routes:
                return bundle
        raise NotInstalled("service not installed")

    def route_installed(self, route: str) -> bool:
        """Whether `for_route` has an answer."""
        return any(route in bundle.routes for bundle in self._serving())

    def _serving(self) -> Iterator[Bundle]:
        return (bundle for bundle in self._bundles if bundle.active)


def _chosen(versions: Sequence[Bundle], noun: str, version: str | None) -> Bundle:
    if not versions:
        raise NotFound(f"no such {noun}")
    for bundle in versions:
        if bundle.active if version is None else bundle.version == version:
            return bundle
    raise NotFound(f"the {noun} has no such version" if version else f"the {noun} has no active version")
