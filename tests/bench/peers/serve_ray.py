"""python -m tests.bench.peers.serve_ray PORT: the model behind Ray Serve, one replica."""

import sys
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from tests.bench.peers import image

OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray takes; no request goes through it


@serve.deployment(num_replicas=1, max_ongoing_requests=32, logging_config={"enable_access_log": False})
class Classifier:
    def __init__(self) -> None:
        self.session = image.session()

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        return image.answer(image.inferred(self.session, image.pixels(body["encoded"])[np.newaxis]))


if __name__ == "__main__":
    ray.init(
        include_dashboard=False,
        num_cpus=2,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classifier.bind(), route_prefix="/predict", blocking=True)  # type: ignore[attr-defined] # a deployment
