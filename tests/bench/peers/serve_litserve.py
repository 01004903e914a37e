"""python -m tests.bench.peers.serve_litserve PORT: the model behind LitServe, one worker."""

import sys
from typing import Any

import litserve
import numpy as np

from tests.bench.peers import image


class Classifier(litserve.LitAPI):  # type: ignore[misc] # not installed where types are checked
    def setup(self, device: str) -> None:
        self.session = image.session()

    def decode_request(self, request: dict[str, str]) -> Any:
        return image.pixels(request["encoded"])

    def predict(self, x: Any) -> Any:
        return image.inferred(self.session, x[np.newaxis])[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return image.answer(output)


if __name__ == "__main__":
    # ZeroMQ between its processes and no batches: the settings that cost it the least CPU time.
    server = litserve.LitServer(
        Classifier(), accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
