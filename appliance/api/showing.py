"""Images as answers show them: their facts, and links to them that are made afresh for each answer."""

import re
from collections.abc import Sequence

from appliance.api.answers import moment
from appliance.api.call import Call
from appliance.config import Config
from appliance.datasets.catalogue import Datasets
from appliance.datasets.links import Links
from appliance.datasets.records import Dataset, DatasetId, Described
from appliance.errors import InvalidInput

_HOST = re.compile(
    r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII
)


class Showing:
    """Makes the documents of images."""

    def __init__(self, datasets: Datasets, links: Links, config: Config) -> None:
        self._datasets = datasets
        self._links = links
        self._seconds = config.datasets.link_seconds
        self._public = config.api.public_url
        self._scheme = "http" if config.api.tls_certificate is None else "https"

    async def documents(self, call: Call, images: Sequence[Described]) -> list[dict[str, object]]:
        """The images in their order. Raises NotFound when their dataset is erased meanwhile, InvalidInput for
        a header Host that no link can be made of.
        """
        base = self._base(call)
        known: dict[DatasetId, Dataset] = {}
        for image in images:
            if (identity := image.place.dataset) not in known:
                known[identity] = await self._datasets.get(call.customer, identity)
        return [self._document(base, known[image.place.dataset], image) for image in images]

    async def document(self, call: Call, image: Described) -> dict[str, object]:
        """One image. Raises as `documents`."""
        return (await self.documents(call, [image]))[0]

    def _document(self, base: str, dataset: Dataset, described: Described) -> dict[str, object]:
        image = described.image
        path = self._links.address(dataset, image, "image", self._seconds)
        thumb = self._links.address(dataset, image, "thumbnail", self._seconds) if image.thumbnail else path
        return {
            "id": image.id,
            "created": moment(image.created_at),
            "img_path": f"{base}/{path}",
            "thumb_img_path": f"{base}/{thumb}",
            "img_width": image.width,
            "img_height": image.height,
            "verifyCount": image.verifications,
            "test_image": image.test,
            "real": image.real,
            "workspace": described.place.workspace,
            "meta_data": described.meta_data,
        }

    def _base(self, call: Call) -> str:
        if self._public is not None:
            return self._public
        host = call.headers.get("Host", "")
        if _HOST.fullmatch(host) is None:
            raise InvalidInput("Host: the name under which this appliance was reached is expected")
        return f"{self._scheme}://{host}"
