"""`appliance bundle key` and `sign`, as a maker of bundles uses them."""

import json
from pathlib import Path

import pytest

from appliance import cli
from appliance.config import Bundles
from appliance.errors import InvalidInput
from appliance.recognition.manifest import verify
from appliance.recognition.trust import Trust
from tests import bundles


def test_a_key_is_made_and_signs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, folder = tmp_path / "maker.key", bundles.tagger(tmp_path / "tagger")
    assert cli.main(["bundle", "key", str(key), "--json"]) == 0
    public = json.loads(capsys.readouterr().out)["public_key"]
    assert key.stat().st_mode & 0o777 == 0o600
    trust = Trust(Bundles(trusted_keys=(public,)))
    with pytest.raises(InvalidInput, match="not signed"):
        trust.check(verify(folder))
    assert cli.main(["bundle", "sign", str(folder), "--key", str(key), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "fashion", "version": "1"}
    trust.check(verify(folder))


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, folder = tmp_path / "maker.key", bundles.tagger(tmp_path / "tagger")
    key.write_bytes(b"short")
    assert cli.main(["bundle", "key", str(key)]) == 1
    assert "File exists" in capsys.readouterr().err
    assert key.read_bytes() == b"short"
    for arguments, why in (
        ([str(folder), "--key", str(key)], "32 bytes"),
        ([str(folder), "--key", str(tmp_path / "none")], "No such file"),
        ([str(tmp_path), "--key", str(key)], "bundle"),
    ):
        assert cli.main(["bundle", "sign", *arguments]) == 1
        assert why in capsys.readouterr().err
