"""A customer's own head over the shared backbone: found by its owner, batched with everybody's."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from appliance.accounts.customers import CustomerId
from appliance.errors import InvalidInput
from appliance.recognition.bundles import Label, TaskId
from appliance.recognition.heads import Head
from tests import images
from tests.serving import DIM, Reply, Served, Site, Tenant

TASK = TaskId("0a0f6ba5-60e0-4d6a-8a1b-6c3c2b6d3f10")
CLASSIFY = "/recognition/v2/classify"


def head(owner: CustomerId, *, version: str = "1", kind: str = "classifier", turned: bool = False) -> Head:
    """Tells warm from cold by the mean of the red and of the blue cells of the embedding."""
    weights = np.zeros((2, DIM), np.float32)
    weights[0, :16], weights[1, 32:] = 10, 10
    return Head(
        owner=owner,
        task=TASK,
        version=version,
        kind=kind,  # type: ignore[arg-type]
        backbone="colours@1",
        feature="embedding",
        weights=weights[::-1].copy() if turned else weights,
        bias=np.full(2, -5 if kind == "tagger" else 0, np.float32),
        labels=(Label("warm-id", "warm"), Label("cold-id", "cold")),
        threshold=0.5 if kind == "tagger" else 0.0,
    )


class Kept:
    """Heads as training will keep them: the owner's alone are found."""

    def __init__(self, *heads: Head) -> None:
        self._heads = heads

    async def find(self, customer: CustomerId, task: TaskId, version: str | None) -> Head | None:
        for one in self._heads:
            if one.owner == customer and one.task == task and version in {None, one.version}:
                return one
        return None


@contextmanager
def serving(served: Served, *heads: Head) -> Iterator[Site]:
    parts = served.parts
    served.parts = replace(parts, heads=Kept(*heads))
    try:
        with served.another() as (site, _):
            yield site
    finally:
        served.parts = parts


def ask(site: Site, tenant: Tenant, colour: str, **fields: object) -> Reply:
    encoded = base64.b64encode(images.encoded(Image.new("RGB", (40, 40), colour), "PNG")).decode()
    document = {"task_id": TASK, "records": [{"_base64": encoded}], **fields}
    return site.call("POST", CLASSIFY, json.dumps(document).encode(), tenant.headers())


def best(answer: Reply) -> str:
    assert answer.status == 200, answer.body
    return str(answer.document["records"][0]["best_label"]["name"])


def test_a_head_answers_its_owner_and_nobody_else(served: Served) -> None:
    owner, other, stranger = (served.tenant(f"head {name}") for name in ("owner", "other", "stranger"))
    with serving(served, head(owner.id), head(other.id, turned=True)) as site:
        assert [best(ask(site, owner, colour)) for colour in ("red", "blue")] == ["warm", "cold"]
        assert [best(ask(site, other, colour)) for colour in ("red", "blue")] == ["cold", "warm"]
        assert ask(site, stranger, "red").status == 404
        (record,) = ask(site, owner, "red").document["records"]
        probabilities = {label["name"]: label["prob"] for label in record["labels"]}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert probabilities["warm"] > 0.9
        # Bundles answer beside heads.
        assert best(ask(site, owner, "red", task_id=served.bundle.task)) == "red"


def test_versions_and_taggers(served: Served) -> None:
    owner = served.tenant("head versions")
    heads = (head(owner.id, kind="tagger"), head(owner.id, version="2", turned=True))
    with serving(served, *heads) as site:
        (record,) = ask(site, owner, "red").document["records"]
        assert [label["name"] for label in record["labels"]] == ["warm"]
        assert best(ask(site, owner, "red", version=2)) == "cold"
        assert ask(site, owner, "red", version=3).status == 404


def test_a_head_without_its_backbone_is_not_installed(served: Served) -> None:
    owner = served.tenant("head without backbone")
    for wrong in (replace(head(owner.id), backbone="colours@9"), replace(head(owner.id), feature="pooled")):
        with serving(served, wrong) as site:
            answer = ask(site, owner, "red")
            assert (answer.status, "service not installed" in answer.document["detail"]) == (404, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ()},
        {"bias": np.zeros(3, np.float32)},
        {"weights": np.zeros((3, DIM), np.float32)},
        {"weights": np.zeros(DIM, np.float32)},
        {"weights": np.full((2, DIM), np.nan, np.float32)},
        {"bias": np.full(2, np.inf, np.float32)},
    ],
)
def test_heads_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="head"):
        replace(head(CustomerId("x")), **wrong)  # type: ignore[arg-type]
