"""The right to see an image, for a customer's own token or an operator with a grant; links mint theirs."""

from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId
from appliance.accounts.grants import Grants
from appliance.datasets.records import Dataset, Image, ReadPermit
from appliance.errors import Forbidden, NotFound


async def of_token(customer: CustomerId, image: Image) -> ReadPermit:
    """The permit of a customer's own token to one of its images. Raises NotFound for another's."""
    if image.customer != customer:
        raise NotFound("no such image")
    return ReadPermit(customer, image.dataset, image.id, "token")


async def of_grant(grants: Grants, actor: Actor, dataset: Dataset, image: Image) -> ReadPermit:
    """The permit of an operator to one image of `dataset`, noted in the customer's audit log before.

    Raises NotFound for another dataset's image; Forbidden without a live grant, which is looked for each
    time, and for a restricted dataset.
    """
    if image.dataset != dataset.id or image.customer != dataset.customer:
        raise NotFound("no such image")
    if dataset.visibility == "restricted":
        raise Forbidden(
            "images of a restricted dataset are opened by nobody but its customer, who may set its visibility"
            " to link for the time of a grant"
        )
    await grants.see(actor, image.customer, image.dataset, image.id)
    return ReadPermit(image.customer, image.dataset, image.id, "grant")
