"""`inspect`; every failure is one line on stderr and exit code 2."""

import json
import sys
from pathlib import Path

import pytest

from pocketmoe.model.train.presets import find_preset
from pocketmoe.tests.support.command import call, refused


class TestInspect:
    def test_checkpoint(self, tiny_checkpoint: Path) -> None:
        table = call("inspect", tiny_checkpoint).stdout
        assert "3 MoE, 1 dense; 2 with a sliding window" in table
        assert "one expert page" in table
        facts = json.loads(call("inspect", tiny_checkpoint, "--json").stdout)
        assert facts["kind"] == "checkpoint"
        assert facts["dtypes"] == ["F32"]
        sizes = {item["precision"]: item for item in facts["model"]["sizes"]}
        parts = ("embedding", "backbone", "head", "experts")
        assert all(sum(item[part] for part in parts) == item["total"] for item in sizes.values())
        # The head is tied: in a bundle it is stored once more.
        assert sizes["fp32"]["total"] == facts["stored_bytes"] + sizes["fp32"]["head"]
        assert sizes["int4"]["page"] < sizes["int8"]["page"] < sizes["fp16"]["page"]

    def test_config_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "big"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(find_preset("80b-a10b")), encoding="utf-8")
        facts = json.loads(call("inspect", path, "--json").stdout)
        assert facts["kind"] == "config"
        assert facts["stored_bytes"] is None
        assert 75e9 < facts["model"]["parameters_total"] < 85e9
        assert 9e9 < facts["model"]["parameters_active"] < 11e9
        assert "none here" in call("inspect", path).stdout

    def test_bundle(self, tiny_bundle: Path) -> None:
        facts = json.loads(call("inspect", tiny_bundle, "--json").stdout)
        assert facts["kind"] == "bundle"
        assert facts["pages"] == 24
        assert facts["active_experts"] == [2]
        assert facts["precision"]["experts"] == "int4"
        sizes = {item["precision"]: item for item in facts["model"]["sizes"]}
        assert sizes["int4"]["page"] == facts["page_bytes"]
        assert sizes["int4"]["experts"] == facts["expert_bytes"]
        # In memory ONNX Runtime adds to what is stored.
        stored = sizes["int8"]["backbone"] + sizes["int8"]["head"]
        assert stored < facts["backbone_bytes"]
        table = call("inspect", tiny_bundle).stdout
        assert "lossy choices" in table
        assert "onnx" in table

    def test_a_config_that_is_not_understood(self, tmp_path: Path) -> None:
        config = {**find_preset("tiny"), "rope_warp": 2}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        refused(call("inspect", tmp_path), str(tmp_path), "rope_warp = 2")

    def test_a_missing_path(self, tmp_path: Path) -> None:
        refused(call("inspect", tmp_path / "none"), "none does not exist")

    def test_a_file(self) -> None:
        refused(call("inspect", Path(__file__)), "is a file")

    def test_an_empty_directory(self, tmp_path: Path) -> None:
        refused(call("inspect", tmp_path), "neither config.json", "nor manifest.json")

    def test_a_path_with_a_line_break(self, tmp_path: Path) -> None:
        refused(call("inspect", tmp_path / "a\nb\x1b[31m"), "a b\\x1b[31m")

    def test_without_torch_and_safetensors(
        self, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("torch", "safetensors"):
            monkeypatch.setitem(sys.modules, name, None)
        assert "one expert page" in call("inspect", tiny_checkpoint).stdout
