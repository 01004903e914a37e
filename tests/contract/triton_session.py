"""What somebody who comes from Triton does with the official client; run as a program of its own.

gevent, which the client stands on, stays out of the test process. Arguments: URL, model, its side in pixels.
The token is read from stdin with the pictures (hex); what was seen goes to stdout, as one JSON document.
"""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main(url: str, model: str, side: int, token: str, pictures: list[bytes]) -> dict[str, Any]:
    client = triton.InferenceServerClient(url, network_timeout=30.0)

    def signed() -> dict[str, Any]:
        return {"headers": {"Authorization": f"Token {token}"}}  # anew: the client writes into it

    def infer(given: Any, **more: Any) -> Any:
        return client.infer(model, [given], **signed() | more)

    def refused(given: Any, **more: Any) -> list[str | None]:
        try:
            infer(given, **more)
        except InferenceServerException as error:
            return [error.status(), error.message()]
        raise AssertionError("it was served")

    batch = np.zeros((2, side, side, 3), np.uint8)
    batch[0, ..., 0] = batch[1, ..., 1] = 255
    pixels = triton.InferInput("image", list(batch.shape), "UINT8").set_data_from_numpy(batch)
    in_json = triton.InferInput("image", list(batch.shape), "UINT8")
    in_json.set_data_from_numpy(batch, binary_data=False)
    files = triton.InferInput("encoded", [len(pictures)], "BYTES")
    files.set_data_from_numpy(np.array(pictures, np.object_))
    small = triton.InferInput("image", [1, 1, 1, 3], "UINT8").set_data_from_numpy(batch[:1, :1, :1])
    logits = [triton.InferRequestedOutput("logits", binary_data=binary) for binary in (True, False)]

    answers = {
        "pixels": infer(pixels),
        "json pixels": infer(in_json),
        "files": infer(files),
        "asked as binary": infer(pixels, outputs=logits[:1]),
        "asked as JSON": infer(pixels, outputs=logits[1:]),
        "version": infer(pixels, model_version="1", request_id="mine", priority=1),
        "asynchronous": client.async_infer(model, [pixels], **signed()).get_result(),
    }
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(model, **signed()),
        "unknown ready": client.is_model_ready("unknown", **signed()),
        "server": client.get_server_metadata(**signed()),
        "model": client.get_model_metadata(model, **signed()),
        "index": client.get_model_repository_index(**signed()),
        "logits": {name: answer.as_numpy("logits").tolist() for name, answer in answers.items()},
        "version": answers["version"].get_response(),
        "refused shape": refused(small),
        "refused output": refused(pixels, outputs=[triton.InferRequestedOutput("none")]),
        "refused version": refused(pixels, model_version="9"),
        "refused token": refused(pixels, headers={"Authorization": "Token nobody"}),
    }


if __name__ == "__main__":
    told = json.load(sys.stdin)
    seen = main(
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        told["token"],
        [bytes.fromhex(one) for one in told["files"]],
    )
    json.dump(seen, sys.stdout)
