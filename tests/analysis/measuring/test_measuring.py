"""Measuring this machine: that figures come out, and that nothing is left behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pocketmoe.analysis.measuring import bundle_speed
from pocketmoe.analysis.measuring import machine as measurement
from pocketmoe.analysis.measuring.machine import measure_memory, measure_storage
from pocketmoe.analysis.planning.limits import MachineSpeed, assumed_speed, estimate_speed
from pocketmoe.bundle.manifest import FileRecord, Manifest, read_manifest
from pocketmoe.cli import main
from pocketmoe.errors import InputError
from pocketmoe.targets import find_target

MIB = 1 << 20


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures briefly."""
    monkeypatch.setattr(measurement, "_BUFFER_BYTES", 32 * MIB)
    monkeypatch.setattr(measurement, "_FILE_BYTES", 64 * MIB)
    monkeypatch.setattr(measurement, "_READ_SECONDS", 0.1)
    monkeypatch.setattr(bundle_speed, "_TOKENS", (1, 3))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCKETMOE_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config/targets.json"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["targets", *map(str, arguments)])


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_storage_by_a_file_of_its_own(tmp_path: Path) -> None:
    assert measure_storage(tmp_path, 0.1).bandwidth > MIB
    assert list(tmp_path.iterdir()) == []


def test_storage_by_a_file_that_is_there(tmp_path: Path) -> None:
    file = tmp_path / "large"
    data = np.random.default_rng(0).bytes(64 * MIB + 100)
    file.write_bytes(data)
    assert measure_storage(file, 0.1).bandwidth > MIB
    assert file.read_bytes() == data


def test_places_that_do_not_serve(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="does not exist"):
        measure_storage(tmp_path / "none")
    with pytest.raises(InputError, match="too little to measure"):
        measure_storage(tiny_bundle)
    monkeypatch.setattr(measurement, "_LEAST_FILE_BYTES", 2**62)
    with pytest.raises(InputError, match="no room"):
        measure_storage(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(measurement.os, "fsync", fail)
    with pytest.raises(InputError, match="Input/output error"):
        measure_storage(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_memory_with_and_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_memory(2) > MIB
    monkeypatch.setattr(measurement, "available", lambda: False)
    assert measure_memory(2) > MIB
    assert measure_memory(1, memory_budget=5) > 0


def enlarged(manifest: Manifest) -> Manifest:
    """With segments of 100 KB, and a last one of 600."""
    files = dict(manifest.files)
    for segment in manifest.segments:
        size = 100_000 if segment.router_layer is not None else 600_000
        files[segment.file.replace(".onnx", ".bin")] = FileRecord(size, "")
    total = 100_000 * (len(manifest.segments) - 1) + 600_000
    return dataclasses.replace(manifest, files=files, backbone_bytes=total * 5 // 4)


@pytest.mark.parametrize("native", [True, False])
def test_a_fit_gives_back_the_figures_behind_the_times(tiny_bundle: Path, native: bool) -> None:
    """Times are made of known figures; the estimate by the fitted ones takes as long."""
    manifest = enlarged(read_manifest(tiny_bundle))
    footprint = manifest.footprint
    true = MachineSpeed(2e10, 1e9, 1.2e10, 1.5e10, 3e-4, 5e10, 6e10)
    sizes = [manifest.files[s.file.replace(".onnx", ".bin")].size for s in manifest.segments]
    scale = manifest.backbone_bytes / sum(sizes)
    page = footprint.token_page_bytes / len(footprint.experts)
    experts = page / true.expert_bandwidth + 1e-4
    first, inner, last = (size * scale / true.backbone_bandwidth for size in
                          (sizes[0], float(np.median(sizes[1:-1])), sizes[-1]))  # fmt: skip
    token = bundle_speed._Times(first + 2e-4, experts + inner + 2e-4, experts + last + 2e-4, 0)
    rows = 128 * page / true.expert_rate
    prompt_first = 128 * sizes[0] * scale / true.backbone_rate
    prompt = bundle_speed._Times(
        prompt_first, rows + prompt_first * sizes[1] / sizes[0], prompt_first, 0
    )
    known = MachineSpeed(2e10, 1e9, 1.2e10, 1e9, 1, 1e9, 1e9)
    start = known if native else assumed_speed(2e10, 1e9)
    fitted = bundle_speed.fit_speed(manifest, start, token, prompt, native=native)
    measured = token.first + token.layer * (len(footprint.experts) - 1) + token.last
    measured -= 2e-4  # there is a segment more than there are layers
    found = estimate_speed(footprint, fitted, hit_rate=1.0)
    assert found.seconds - found.attention_seconds == pytest.approx(measured, rel=0.01)
    assert fitted.backbone_bandwidth == pytest.approx(true.backbone_bandwidth, rel=0.01)
    assert fitted.backbone_rate == pytest.approx(true.backbone_rate, rel=0.01)
    assert fitted.expert_rate == pytest.approx(true.expert_rate, rel=0.05)


class TestTargetsMeasure:
    def test_measure_list_and_show(self, tmp_path: Path, config: Path) -> None:
        result = call("--measure", "--storage", tmp_path)
        assert result.exit_code == 0, result.output
        assert config.is_file()
        listed = call()
        names = [line.split()[0] for line in listed.stdout.splitlines()[3:]]
        assert (names[0], names[-1]) == ("cpu", "local")
        shown = call("local").stdout
        assert "by 'pocketmoe targets --measure'" in shown
        assert "assumed" in shown
        report = json.loads(call("local", "--json").stdout)
        assert report["kind"] == "cpu"
        for name in ("memory_bandwidth", "storage_bandwidth", "expert_bandwidth", "memory_bytes"):
            assert report[name] > 0
            assert "measured" in report["sources"][name]
        assert find_target("local", config).name == "local"

    def test_another_name_and_a_bundle(
        self, tmp_path: Path, config: Path, tiny_bundle: Path
    ) -> None:
        result = call("box", "--measure", "--storage", tmp_path, "--bundle", tiny_bundle, "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["name"] == "box"
        assert "running" in report["sources"]["layer_seconds"]
        assert report["layer_seconds"] < 0.1
        assert json.loads(config.read_text())["targets"][0]["name"] == "box"

    def test_errors(self, tmp_path: Path, config: Path) -> None:
        refused(call("cpu", "--measure"), "built in")
        refused(call("A B", "--measure"), "no name for a target")
        refused(call("--measure", "--storage", tmp_path / "none"), "does not exist")
        refused(call("--measure", "--storage", tmp_path, "--bundle", tmp_path), "manifest.json")
        refused(call("--storage", tmp_path), "--measure")
        assert not config.exists()
        config.parent.mkdir(exist_ok=True)
        config.write_text("[]")
        refused(call("--measure", "--storage", tmp_path), "not a file of measured targets")
        assert config.read_text() == "[]"
