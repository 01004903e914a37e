"""The starter bundle, built once for the session. Tests read it and leave it as it is."""

from pathlib import Path

import pytest

from appliance.recognition import starter


@pytest.fixture(scope="session")
def starter_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starter") / "bundle"
    starter.build("efficientnet-lite0", folder)
    return folder
