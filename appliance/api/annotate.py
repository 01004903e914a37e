"""`annotate/v2`: who has found the annotations of an image right, and points."""

from appliance.api.answers import Answer, moment
from appliance.api.call import Call
from appliance.api.fields import word
from appliance.api.paging import MAX_PAGE, listing, wanted, whole, workspace
from appliance.datasets.annotations import Annotations
from appliance.datasets.catalogue import Datasets
from appliance.datasets.records import Point, Verification
from appliance.errors import InvalidInput


class Annotate:
    """The handlers."""

    def __init__(self, datasets: Datasets, annotations: Annotations) -> None:
        self._datasets = datasets
        self._notes = annotations.notes

    async def verify(self, call: Call) -> Answer:
        user, image = call.payload.fields.get("user"), call.payload.text("image_id")
        if not isinstance(user, str | int) or isinstance(user, bool):
            raise InvalidInput("user: a string or a number is expected")
        if image is None:
            raise InvalidInput("image_id: an id is expected")
        verified = await self._notes.verify(call.actor, call.customer, image, user)
        return Answer(_verification(verified), 201)

    async def list_verifications(self, call: Call) -> Answer:
        """All of an image on one page: clients count them there."""
        image = word(call, "image")
        if not image:
            raise InvalidInput("image: an id is expected")
        found = await self._notes.verifications(call.customer, image)
        return whole([_verification(one) for one in found])

    async def unverify(self, call: Call) -> Answer:
        await self._notes.unverify(call.actor, call.customer, call.parameters["id"])
        return Answer(status=204)

    async def add_point(self, call: Call) -> Answer:
        payload = call.payload
        if "data" not in payload.fields:
            raise InvalidInput("data: any JSON is expected")
        point = await self._notes.add_point(
            call.actor,
            await workspace(call, self._datasets),
            payload.text("image"),
            payload.text("name"),
            payload.fields["data"],
        )
        return Answer(_point(point), 201)

    async def list_points(self, call: Call) -> Answer:
        """100 a page unless the query says otherwise: clients read the first page only."""
        cutting, dataset = wanted(call, MAX_PAGE), await workspace(call, self._datasets)
        page = await self._notes.points(dataset, cutting, word(call, "image") or None)
        return listing(call, cutting, page, [_point(point) for point in page.rows])

    async def delete_point(self, call: Call) -> Answer:
        await self._notes.delete_point(call.actor, call.customer, call.parameters["id"])
        return Answer(status=204)


def _verification(verification: Verification) -> dict[str, object]:
    return {
        "id": verification.id,
        "image": verification.image,
        "user": verification.user,
        "created": moment(verification.created_at),
    }


def _point(point: Point) -> dict[str, object]:
    return {
        "id": point.id,
        "image": point.image,
        "name": point.name,
        "data": point.data,
        "workspace": point.place.workspace,
        "created": moment(point.created_at),
    }
