"""Access grants over HTTP: asked for on the operator socket, decided on the public port, seen by both."""

import json
import os
import uuid
from typing import Any

import pytest

from appliance.accounts.audit import Actor, Event
from appliance.datasets import permits
from appliance.errors import Forbidden
from tests import images
from tests.api.test_management import V1, admin, operate, unique
from tests.datasets import agreed, folders, new_dataset, receive, tar, untar
from tests.serving import Reply, Served, Tenant

ME = str(os.getuid())
PHOTO = images.plain("an image that nobody else may see")


@pytest.fixture
def owner(served: Served) -> Tenant:
    return agreed(served, unique("museum"))


@pytest.fixture
def image(served: Served, owner: Tenant) -> str:
    return upload(served, owner)


def upload(served: Served, owner: Tenant, dataset: str = "Default", photo: bytes = PHOTO) -> str:
    path = f"/recognition/v2/training-image?workspace={dataset}"
    answer = served.site.call("POST", path, photo, owner.headers(content_type="image/png"))
    assert answer.status == 201, answer.body
    return str(answer.document["id"])


def see(served: Served, image: str, **headers: str) -> Reply:
    return served.site.operate("GET", f"{V1}/images/{image}", headers=headers)


def export(served: Served, dataset: str) -> Reply:
    return served.site.operate("GET", f"{V1}/datasets/{dataset}/export?format=csv")


def grant(served: Served, owner: Tenant, **fields: object) -> Any:
    asked = {"operator": ME, "reason": "as agreed by phone", **fields}
    answer = admin(served, owner, "POST", "/grants", asked)
    assert answer.status == 201, answer.body
    return answer.document


def seen(served: Served, owner: Tenant) -> list[str | None]:
    return [entry.subject for entry in served.audited(owner) if entry.event is Event.IMAGE_OPEN]


def test_an_operator_asks_the_customer_approves_and_sees_who_saw_what(
    served: Served, owner: Tenant, image: str
) -> None:
    asked = operate(
        served, "POST", "/grants/request", {"customer": owner.id, "images": [image], "reason": "Štítky?"}
    )
    assert (asked["state"], asked["operator"], asked["hours"]) == ("pending", ME, 8)
    assert see(served, image).status == 403
    approved = admin(served, owner, "POST", f"/grants/{asked['id']}/approve").document
    assert approved["state"] == "live"
    assert admin(served, owner, "GET", "/grants").document == {"grants": [approved]}
    answer = see(served, image)
    assert (answer.status, answer.body) == (200, PHOTO)
    assert answer.headers["cache-control"] == "private, no-store"
    part = see(served, image, range="bytes=0-7")
    assert (part.status, part.body) == (206, PHOTO[:8])
    assert seen(served, owner) == [image, image]

    entries = admin(served, owner, "GET", "/audit").document["entries"]
    opened = [entry for entry in entries if entry["event"] == "image.open"]
    assert opened[0]["actor"] == {"kind": "operator", "id": ME}
    assert opened[0]["request"] == answer.headers["x-request-id"]
    assert opened[0]["details"]["grant"] == asked["id"]
    assert {entry.get("reason") for entry in opened} == {"Štítky?"}
    assert {entry["event"] for entry in entries if "reason" in entry} == {
        "grant.request",
        "grant.approve",
        "image.open",
    }
    whole = operate(served, "GET", f"/audit?customer={owner.id}")
    assert "Štítky?" not in json.dumps(whole, ensure_ascii=False)


def test_an_approval_that_is_sent_again_opens_nothing(served: Served, owner: Tenant, image: str) -> None:
    before = served.clock

    def asked() -> str:
        fields = {"customer": owner.id, "images": [image], "reason": "Labels?", "hours": 1}
        return str(operate(served, "POST", "/grants/request", fields)["id"])

    def approve(grant: str) -> Reply:
        return admin(served, owner, "POST", f"/grants/{grant}/approve")

    try:
        denied, revoked, live = [asked() for _ in range(3)]
        assert admin(served, owner, "POST", f"/grants/{denied}/deny").status == 200
        assert approve(revoked).status == 200
        admin(served, owner, "DELETE", f"/grants/{revoked}")
        for grant in (denied, revoked):
            assert approve(grant).status == 409
        assert see(served, image).status == 403
        ends = approve(live).document["ends_at"]
        served.clock += 3599
        assert approve(live).document["ends_at"] == ends, "nor does it last longer"
        assert see(served, image).status == 200
        served.clock += 1
        assert approve(live).status == 409
        assert see(served, image).status == 403
    finally:
        served.clock = before


def test_a_whole_dataset_is_exported_under_a_grant_over_it(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, unique())
    assert receive(served, owner, dataset, tar(folders())).status == 200
    inside = [image["id"] for image in images_of(served, owner, dataset)]
    grant(served, owner, images=inside[:2])
    assert export(served, dataset).status == 403, "some images are not the dataset with its labels"
    over = grant(served, owner, dataset=dataset)
    answer = export(served, dataset)
    assert answer.status == 200
    pictures = {content for name, content in untar(answer.body).items() if name.endswith(("png", "jpg"))}
    assert pictures == set(folders().values())
    assert sorted(seen(served, owner), key=str) == sorted(inside)
    (exported,) = [entry for entry in served.audited(owner) if entry.event is Event.DATASET_EXPORT]
    assert exported.details == {"images": 5, "grant": over["id"]}
    admin(served, owner, "DELETE", f"/grants/{over['id']}")
    assert export(served, dataset).status == 403
    assert len(seen(served, owner)) == 5


def images_of(served: Served, owner: Tenant, dataset: str) -> Any:
    path = f"/recognition/v2/training-image?workspace={dataset}"
    return served.site.call("GET", path, headers=owner.headers()).document["results"]


def test_what_is_revoked_breaks_an_export_off(served: Served, owner: Tenant, image: str) -> None:
    """As it does between two images: the one that is under way may end."""
    over = grant(served, owner, dataset="Default")
    dataset = served.run(served.images.datasets.default(owner.id))
    stored = served.run(served.images.store.get(owner.id, image))

    async def minted() -> None:
        await permits.of_grant(served.parts.grants, Actor("operator", ME), dataset, stored)

    served.run(minted())
    operate(served, "DELETE", f"/grants/{over['id']}")
    with pytest.raises(Forbidden, match="no live grant"):
        served.run(minted())


def test_the_clock_ends_it(served: Served, owner: Tenant, image: str) -> None:
    grant(served, owner, images=[image], hours=1)
    before = served.clock
    try:
        served.clock += 3599
        assert see(served, image).status == 200
        served.clock += 1
        assert see(served, image).status == 403
    finally:
        served.clock = before


def test_another_customers_things_are_granted_to_nobody(served: Served, owner: Tenant, image: str) -> None:
    other = agreed(served, unique())
    dataset = new_dataset(served, owner, unique())
    absent = str(uuid.uuid4())
    for asked, missing in (
        ({"images": [image]}, {"images": [absent]}),
        ({"dataset": dataset}, {"dataset": absent}),
    ):
        fields = {"operator": ME, "reason": "mine now"}
        answers = [admin(served, other, "POST", "/grants", fields | what) for what in (asked, missing)]
        assert [answer.status for answer in answers] == [404, 404]
        assert answers[0].document["detail"] == answers[1].document["detail"]
        request = {"customer": other.id, "reason": "theirs"} | asked
        assert served.site.operate("POST", f"{V1}/grants/request", request).status == 404
    asked = operate(
        served, "POST", "/grants/request", {"customer": owner.id, "images": [image], "reason": "a"}
    )
    for act in ("approve", "deny", "renew"):
        assert admin(served, other, "POST", f"/grants/{asked['id']}/{act}", {}).status == 404
    assert admin(served, other, "DELETE", f"/grants/{asked['id']}").status == 404
    assert see(served, image).status == 403


def test_images_of_a_restricted_dataset_are_granted_to_nobody(served: Served, owner: Tenant) -> None:
    dataset = new_dataset(served, owner, unique(), visibility="restricted")
    image = upload(served, owner, dataset, images.plain("restricted"))
    for what in ({"dataset": dataset}, {"images": [image]}):
        asked = {"operator": ME, "reason": "why not"} | what
        answer = admin(served, owner, "POST", "/grants", asked)
        assert (answer.status, "visibility" in answer.document["detail"]) == (409, True)
    admin(served, owner, "PATCH", f"/datasets/{dataset}", {"visibility": "link"})
    grant(served, owner, dataset=dataset)
    assert see(served, image).status == 200
    admin(served, owner, "PATCH", f"/datasets/{dataset}", {"visibility": "restricted"})
    answer = see(served, image)
    assert (answer.status, "restricted" in answer.document["detail"]) == (403, True)
    assert seen(served, owner) == [image]


def test_reasons_are_shown_to_whom_they_concern(served: Served, owner: Tenant, image: str) -> None:
    grant(served, owner, images=[image], operator="4000000000", reason="for somebody else")
    grant(served, owner, images=[image], reason="for me")
    listed = operate(served, "GET", f"/grants?customer={owner.id}")["grants"]
    assert {one["reason"] for one in listed} == {None, "for me"}
    listed = admin(served, owner, "GET", "/grants").document["grants"]
    assert {one["reason"] for one in listed} == {"for somebody else", "for me"}
    assert admin(served, owner, "GET", f"/grants?customer={uuid.uuid4()}").status == 404


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"dataset": None, "images": []}, "dataset or images"),
        ({"dataset": None, "images": [str(number) for number in range(101)]}, "at most 100"),
        ({"hours": 0}, "hours"),
        ({"hours": 73}, "hours"),
        ({"hours": "1"}, "hours"),
        ({"hours": 1.5}, "hours"),
        ({"operator": "root"}, "operator"),
        ({"operator": 0}, "operator"),
        ({"reason": ""}, "reason"),
        ({"reason": "a\nb"}, "reason"),
        ({"reason": None}, "reason"),
        ({"until": "tomorrow"}, "until"),
    ],
)
def test_what_is_no_grant(served: Served, owner: Tenant, fields: dict[str, object], why: str) -> None:
    asked = {"operator": ME, "reason": "why", "dataset": "Default", **fields}
    answer = admin(served, owner, "POST", "/grants", asked)
    assert answer.status == 400, answer.body
    assert why in answer.document["detail"]
    assert admin(served, owner, "GET", "/grants").document == {"grants": []}


def test_an_image_that_is_not_there(served: Served, owner: Tenant, image: str) -> None:
    grant(served, owner, images=[image])
    path = f"/recognition/v2/training-image/{image}"
    assert served.site.call("DELETE", path, headers=owner.headers()).status in {200, 204}
    assert see(served, image).status == see(served, str(uuid.uuid4())).status == 404
    assert seen(served, owner) == []
