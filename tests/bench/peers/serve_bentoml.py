"""bentoml serve tests.bench.peers.serve_bentoml:Classifier: the model behind BentoML, one worker."""

from typing import Any

import bentoml
import numpy as np

from tests.bench.peers import image


@bentoml.service(
    workers=1,
    traffic={"timeout": 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Classifier:
    def __init__(self) -> None:
        self.session = image.session()

    @bentoml.api(route="/predict")
    def predict(self, encoded: str) -> dict[str, Any]:
        return image.answer(image.inferred(self.session, image.pixels(encoded)[np.newaxis]))
