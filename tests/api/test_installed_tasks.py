"""Tasks that installed models answer: listed behind a customer's own, read by id, and changed by nobody."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.recognition.staging import from_folder
from tests import bundles
from tests.api.test_training_images import ask
from tests.serving import ACTOR, Served, Tenant

TASKS, BOX_TASKS = "/recognition/v2/task", "/detection/v2/task"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With a backbone that classifies, a tagger and a detector."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "state").mkdir()
    with Served(folder / "state") as served:
        served.install(bundles.tagger(folder / "tagger"))
        served.install(bundles.detector(folder / "detector"))
        yield served


@pytest.fixture
def owner(served: Served) -> Tenant:
    return served.tenant(f"owner {uuid.uuid4()}")


def task_of(served: Served, name: str) -> str:
    return next(one.task for one in served.parts.bundles.list() if one.name == name)


def listed(served: Served, owner: Tenant, path: str, query: str = "") -> list[str]:
    """The names on all pages, whose counts all tell how many there are."""
    names, counts = list[str](), set[int]()
    following: str | None = f"{path}/?{query}"
    while following is not None:
        document = ask(served, owner, "GET", following).document
        names += [one["name"] for one in document["results"]]
        counts.add(document["count"])
        following = document["next"]
    assert counts == {len(names)}
    return names


def test_a_task_says_what_answers_it(served: Served, owner: Tenant) -> None:
    common = {"description": None, "workspace": owner.id, "created": None, "production_version": 1}
    for path, name, more in (
        (TASKS, "colours", {"type": "multi_class", "labels_count": 3}),
        (TASKS, "fashion", {"type": "multi_label", "labels_count": 2}),
        (BOX_TASKS, "things", {"negative_images_count": 0, "labels_count": 2}),
    ):
        task = task_of(served, name)
        expected = {"id": task, "name": name, "last_train_status": "TRAINED"} | common | more
        assert ask(served, owner, "GET", f"{path}/{task}").document == expected
        other = TASKS if path == BOX_TASKS else BOX_TASKS
        assert ask(served, owner, "GET", f"{other}/{task}").status == 404


@pytest.mark.parametrize("own", [0, 1, 2, 3, 4, 5])
def test_they_follow_the_customers_own_on_every_page(served: Served, owner: Tenant, own: int) -> None:
    names = [f"own {number}" for number in range(own)]
    for name in names:
        assert ask(served, owner, "POST", TASKS, {"name": name}).status == 201
    everything = [*names, "colours", "fashion"]
    for size in (1, 2, 3, 20):
        assert listed(served, owner, TASKS, f"page_size={size}") == everything
        for number in range(1, 8):
            page = ask(served, owner, "GET", f"{TASKS}/?page_size={size}&page={number}").document
            seen = [one["name"] for one in page["results"]]
            assert seen == everything[size * (number - 1) : size * number]
            assert (page["count"], page["next"] is None) == (len(everything), size * number >= own + 2)
    assert listed(served, owner, BOX_TASKS) == ["things"]


def test_they_are_found_by_name_in_the_default_workspace_alone(served: Served, owner: Tenant) -> None:
    assert listed(served, owner, TASKS, "search=FASH") == ["fashion"]
    beside = ask(served, owner, "POST", "/appliance/v1/datasets", {"name": "beside"}).document["id"]
    assert listed(served, owner, TASKS, f"workspace={beside}") == []
    assert listed(served, owner, TASKS, f"workspace={owner.id}") == ["colours", "fashion"]


def test_their_labels_are_those_of_the_model(served: Served, owner: Tenant) -> None:
    def labels(family: str, name: str, query: str = "") -> list[str]:
        return listed(served, owner, f"/{family}/v2/label", f"task={task_of(served, name)}&{query}")

    assert labels("recognition", "fashion") == ["red", "green"]
    assert labels("recognition", "fashion", "type=category") == []
    assert labels("recognition", "colours", "type=category&search=RE") == ["red", "green"]
    for size in (1, 2, 3):
        assert labels("recognition", "colours", f"page_size={size}") == ["red", "green", "blue"]
    assert labels("detection", "things") == ["cup", "plate"]
    other = f"/detection/v2/label/?task={task_of(served, 'fashion')}"
    assert ask(served, owner, "GET", other).document["detail"] == "no such task"


def test_nobody_changes_them(served: Served, owner: Tenant) -> None:
    for family, name in (("recognition", "fashion"), ("detection", "things")):
        path = f"/{family}/v2/task/{task_of(served, name)}"
        label = ask(served, owner, "POST", f"/{family}/v2/label", {"name": "x"}).document["id"]
        attempts: list[tuple[str, str, object]] = [("DELETE", path, None), ("POST", f"{path}/train", {})]
        attempts += [("POST", f"{path}/{verb}-label", {"label_id": label}) for verb in ("add", "remove")]
        if family == "detection":
            attempts.append(("POST", f"{path}/add-image", {"image_id": str(uuid.uuid4())}))
        for method, where, document in attempts:
            answer = ask(served, owner, method, where, document)
            assert answer.status == 409, where
            assert "an installed model answers this task" in answer.document["detail"]
        assert ask(served, owner, "GET", path).status == 200


def test_a_model_for_one_customer_is_no_task_of_another(served: Served, tmp_path: Path) -> None:
    one, other = (served.tenant(f"{name} {uuid.uuid4()}") for name in ("one", "other"))
    source = bundles.tagger(tmp_path / "tagger")
    manifest = source / "bundle.toml"
    manifest.write_text(manifest.read_text().replace('name = "fashion"', 'name = "alone"'))
    bundle = served.run(served.parts.bundles.install(ACTOR, from_folder(source), customers=[one.id]))
    path = f"{TASKS}/{bundle.task}"
    assert ask(served, one, "GET", path).status == 200
    assert "alone" in listed(served, one, TASKS)
    for method, where in (("GET", path), ("DELETE", path), ("POST", f"{path}/train")):
        answer = ask(served, other, method, where)
        assert (answer.status, answer.document["detail"]) == (404, "no such task")
    assert "alone" not in listed(served, other, TASKS)
    served.run(served.parts.bundles.remove(ACTOR, bundle.name, bundle.version))
    assert ask(served, one, "GET", path).status == 404
