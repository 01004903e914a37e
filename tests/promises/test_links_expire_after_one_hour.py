"""Links expire after one hour: an ended one is opened by no change of it, and by no clock that is set back.

A dataset whose customer makes it public has links without an end, until the customer ends them.
"""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from appliance.config import Datasets
from appliance.errors import Forbidden
from tests import images
from tests.datasets import agreed, new_dataset
from tests.serving import Served, Tenant
from tests.storing import ACTOR, Clock, stand

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
HOUR = 3600


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose clock may be moved."""
    with Served(tmp_path_factory.mktemp("clocked")) as served:
        yield served


@pytest.fixture
def owner(clocked: Served, request: pytest.FixtureRequest) -> Tenant:
    return agreed(clocked, request.node.name)


def uploaded(served: Served, owner: Tenant, dataset: str = "Default", content: str = "pixels") -> str:
    """The link to a new image, as its answer has it, without the host."""
    body = {"base64": base64.b64encode(images.plain(content)).decode(), "workspace": dataset}
    path = "/recognition/v2/training-image"
    answer = served.site.call("POST", path, json.dumps(body).encode(), owner.headers())
    assert answer.status == 201, answer.body
    return "{0.path}?{0.query}".format(urlsplit(answer.document["img_path"]))


def status(served: Served, link: str) -> int:
    return served.site.call("GET", link).status


def test_a_link_ends_an_hour_after_it_was_given(clocked: Served, owner: Tenant) -> None:
    link, began = uploaded(clocked, owner), clocked.clock
    for seconds, expected in ((0, 200), (HOUR - 1, 200), (HOUR, 403), (2 * HOUR, 403)):
        clocked.clock = began + seconds
        assert status(clocked, link) == expected, seconds
    assert status(clocked, uploaded(clocked, owner, content="others")) == 200


def test_no_change_of_a_link_gives_it_longer(clocked: Served, owner: Tenant) -> None:
    """Every character of it, and every end that somebody might write into it."""
    link, other = uploaded(clocked, owner), uploaded(clocked, owner, content="others")
    end = int(re.findall(r"exp=(\d+)", link)[0])
    changed = [link.replace(f"exp={end}&", "")]
    changed += [
        link.replace(f"exp={end}", f"exp={one}") for one in (end + 1, end + HOUR, 10**11, f"0{end}", "")
    ]
    begin = link.index("sig=") + 4
    for at in range(begin, len(link)):
        new = ALPHABET[(ALPHABET.index(link[at]) + 1) % len(ALPHABET)]
        changed.append(link[:at] + new + link[at + 1 :])
    changed += [link[:begin] + other[other.index("sig=") + 4 :], link.replace(".jpg", "-thumb.jpg")]
    assert {status(clocked, one) for one in changed} == {403}
    assert status(clocked, link) == 200


async def test_no_clock_that_is_set_back_revives_one(tmp_path: Path) -> None:
    """Neither while it runs nor across a restart."""
    wall, steady = Clock(), Clock()
    async with stand(tmp_path, clock=wall, monotonic=steady) as one:
        dataset = await one.datasets.default(await one.customer())
        image = await one.store.put(ACTOR, dataset, images.plain("pixels"))
        path, _, query = one.links.address(dataset, image).partition("?")
        name = path.removeprefix("files/")
        assert (await one.links.permit(name, query))[0].image == image.id
        wall.now, steady.now = wall.now + HOUR, steady.now + HOUR
        for _ in range(3):
            with pytest.raises(Forbidden):
                await one.links.permit(name, query)
            wall.now -= HOUR / 2
    async with stand(tmp_path, clock=wall, monotonic=steady) as again:
        with pytest.raises(Forbidden):
            await again.links.permit(name, query)


def test_no_configuration_makes_it_longer() -> None:
    assert Datasets(link_seconds=HOUR).link_seconds == HOUR
    with pytest.raises(ValidationError, match="link_seconds"):
        Datasets(link_seconds=HOUR + 1)


def test_links_without_an_end_are_the_customers_choice_and_end_by_it(clocked: Served, owner: Tenant) -> None:
    dataset = new_dataset(clocked, owner, "shown to all", visibility="public")
    link = uploaded(clocked, owner, dataset)
    assert "exp=" not in link
    clocked.clock += 10 * HOUR
    assert status(clocked, link) == 200
    body, path = json.dumps({"visibility": "link"}).encode(), f"/appliance/v1/datasets/{dataset}"
    assert clocked.site.call("PATCH", path, body, owner.headers()).status == 200
    assert status(clocked, link) == 403
