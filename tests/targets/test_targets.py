"""The table of devices is consistent, and a wrong name is answered with the nearest."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner

from pocketmoe.cli import main
from pocketmoe.compiler import precision as compiler_precision
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.errors import InputError, TargetError
from pocketmoe.targets import TARGETS, Target, find_target
from pocketmoe.targets.gpu import version
from pocketmoe.targets.pcie import pcie_bandwidth

FIGURES = (
    "memory_bytes", "memory_bandwidth", "compute_capability", "hardware_formats", "link",
    "link_bandwidth", "storage", "storage_bandwidth",
)  # fmt: skip
GPUS = [target for target in TARGETS if target.kind == "gpu"]
BUILT_WITHOUT_A_GPU = {"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"}
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
each_gpu = pytest.mark.parametrize("target", GPUS, ids=lambda target: target.name)


@each_target
def test_every_figure_has_its_source(target: Target) -> None:
    fields = {field.name for field in dataclasses.fields(Target)}
    assert set(target.sources) <= fields
    for name in FIGURES:
        figure = getattr(target, name)
        assert figure in (None, ()) or name in target.sources
        assert not isinstance(figure, (int, float)) or figure > 0
    for name in ("toolchain", "precisions", "unified_memory"):
        assert target.sources[name]
    assert target.precisions
    assert (target.link_bandwidth is None) == (target.link is None)
    assert (target.storage_bandwidth is None) == (target.storage is None)


@each_gpu
def test_what_follows_from_the_compute_capability(target: Target) -> None:
    assert target.compute_capability is not None
    capability = version(target.compute_capability)
    assert ("int4" in target.precisions) == (capability >= (8, 0))
    assert ("fp8" in target.precisions) == (capability >= (8, 9))
    assert {"int8", "fp16"} <= set(target.precisions)
    assert ("fp32" in target.precisions) == (capability >= (8, 0))
    assert ("fp8" in target.hardware_formats) == ("fp8" in target.precisions)
    assert ("nvfp4" in target.hardware_formats) == (capability >= (10, 0))
    lacking = {"int4", "fp8", "fp32"} - set(target.precisions)
    said = " ".join(target.limits)
    assert all(f"no {name}: " in said for name in lacking)
    assert ("nvfp4 is not used" in said) == ("nvfp4" in target.hardware_formats)


@each_gpu
def test_what_the_toolchain_and_the_memory_are(target: Target) -> None:
    assert (target.compute_capability in BUILT_WITHOUT_A_GPU) == (
        target.toolchain == "tensorrt-rtx"
    )
    on_device = any("built on the device" in limit for limit in target.limits)
    assert on_device == (target.toolchain == "tensorrt")
    assert target.unified_memory == (target.link is None)
    assert target.unified_memory == target.name.startswith(("jetson-", "dgx-"))
    assert target.memory_bytes
    assert target.memory_bandwidth
    if target.name.startswith("jetson-"):
        assert target.toolchain == "tensorrt"
        assert "JetPack" in target.sources["toolchain"]
    if target.link_bandwidth is not None:
        assert target.link_bandwidth < target.memory_bandwidth


def test_cpus_have_no_capability() -> None:
    for target in TARGETS:
        if target.kind == "cpu":
            assert (target.compute_capability, target.link) == (None, None)
            assert target.precisions == find_target("cpu").precisions
            assert target.toolchain == "onnxruntime"


@pytest.mark.parametrize(
    ("name", "capability", "gib", "bandwidth", "link"),
    [
        ("jetson-orin-nano-8gb", "8.7", 8, 102e9, None),
        ("jetson-agx-orin-64gb", "8.7", 64, 204.8e9, None),
        ("jetson-thor-t5000", "11.0", 128, 273e9, None),
        ("dgx-spark", "12.1", 128, 273e9, None),
        ("rtx-2080-ti", "7.5", 11, 616e9, "PCIe 3.0 x16"),
        ("rtx-3060-12gb", "8.6", 12, 360e9, "PCIe 4.0 x16"),
        ("rtx-4060-8gb", "8.9", 8, 272e9, "PCIe 4.0 x8"),
        ("rtx-4090", "8.9", 24, 1008e9, "PCIe 4.0 x16"),
        ("rtx-5060", "12.0", 8, 448e9, "PCIe 5.0 x8"),
        ("rtx-5090", "12.0", 32, 1792e9, "PCIe 5.0 x16"),
        ("a100-80gb", "8.0", 80, 1935e9, "PCIe 4.0 x16"),
        ("h200", "9.0", 141, 4.8e12, "PCIe 5.0 x16"),
    ],
)
def test_figures_of_data_sheets(
    name: str, capability: str, gib: int, bandwidth: float, link: str | None
) -> None:
    target = find_target(name)
    assert target.compute_capability == capability
    assert target.memory_bytes == gib << 30
    assert target.memory_bandwidth == bandwidth
    assert target.link == link


def test_links() -> None:
    assert pcie_bandwidth(4, 16) == pytest.approx(31.5e9, rel=1e-3)
    assert pcie_bandwidth(5, 8) == pytest.approx(pcie_bandwidth(4, 16))
    assert pcie_bandwidth(3, 4) == pytest.approx(3.94e9, rel=1e-3)
    assert pcie_bandwidth(2, 1) == 0.5e9


@each_target
def test_a_target_can_be_hashed_and_written_as_json(target: Target) -> None:
    assert {target: 1}[find_target(target.name)] == 1
    assert json.loads(json.dumps(dataclasses.asdict(target)))["name"] == target.name


def test_names_are_unique_and_easy_to_type() -> None:
    names = [target.name for target in TARGETS]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and name.replace("-", "").isalnum() for name in names)
    # Two names of the same letters and digits could not be told apart in a near miss.
    assert len({name.replace("-", "") for name in names}) == len(names)


def test_a_target_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_target("cpu").name = "gpu"  # type: ignore[misc]


@pytest.mark.parametrize("name", ["cpus", "CPU", "gpu"])
def test_a_near_miss_names_the_nearest(name: str) -> None:
    with pytest.raises(TargetError, match=r"did you mean cpu\?.*pocketmoe targets"):
        find_target(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("4090", "rtx-4090"),
        ("RTX4090", "rtx-4090"),
        ("rtx 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 24GB", "rtx-4090"),
        ("4090ti", "rtx-4090"),
        ("2080Ti", "rtx-2080-ti"),
        ("3060", "rtx-3060-12gb"),
        ("RTX_4060", "rtx-4060-8gb"),
        ("orin nano", "jetson-orin-nano-8gb"),
        ("Orin Nano Super", "jetson-orin-nano-8gb"),
        ("orin nx 16 GB", "jetson-orin-nx-16gb"),
        ("thor", "jetson-thor-t4000 or jetson-thor-t5000"),
        ("a100", "a100-40gb or a100-80gb"),
        ("h100", "h200"),
        ("spark", "dgx-spark"),
        ("x86", "cpu-x86"),
        ("jetson-orin-nano-8bg", "jetson-orin-nano-8gb"),
    ],
)
def test_whatever_case_spaces_and_punctuation(name: str, meant: str) -> None:
    with pytest.raises(TargetError) as refusal:
        find_target(name)
    assert f"did you mean {meant}?" in str(refusal.value)
    assert "not there, choose one of the same compute capability" in str(refusal.value)


@pytest.mark.parametrize("name", ["", "quantum-toaster", "c\np\nu", "nvidia", "-"])
def test_any_other_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(TargetError, match="pocketmoe targets") as refusal:
        find_target(name)
    assert "\n" not in str(refusal.value)


class TestPrecision:
    def test_one_that_the_target_lacks(self) -> None:
        with pytest.raises(TargetError) as refusal:
            parse_precision(["int4"], 64, find_target("rtx-2080-ti"))
        assert str(refusal.value) == ("target rtx-2080-ti has no int4; it has int8, fp16")

    def test_a_default_that_the_target_lacks_is_not_replaced_in_silence(self) -> None:
        target = find_target("rtx-2080-ti")
        for texts in ([], ["backbone=fp16"]):
            with pytest.raises(TargetError) as refusal:
                parse_precision(texts, 64, target)
            assert "has no int4, in which experts are stored by default" in str(refusal.value)
            assert "--precision experts=int8; it has int8, fp16" in str(refusal.value)
        chosen = parse_precision(["experts=int8"], 64, target)
        assert (chosen.experts, chosen.backbone, chosen.head) == ("int8", "int8", "int8")

    @each_target
    def test_the_default_serves_wherever_there_is_int4(self, target: Target) -> None:
        if "int4" in target.precisions:
            assert parse_precision([], 64, target) == compiler_precision.DEFAULT

    def test_fp8(self) -> None:
        for whole in ("fp8", "backbone=fp8", "head=fp8"):
            with pytest.raises(InputError, match="--precision experts=fp8"):
                parse_precision([whole], 64, find_target("rtx-4090"))
        for name in ("cpu", "rtx-3090", "jetson-orin-nx-16gb", "a100-80gb"):
            with pytest.raises(TargetError, match="has no fp8; it has int4, int8, fp16, fp32"):
                parse_precision(["experts=fp8"], 64, find_target(name))
        for name in ("rtx-4090", "h200", "jetson-thor-t4000", "dgx-spark"):
            assert parse_precision(["experts=fp8"], 64, find_target(name)).experts == "fp8"


class TestTargetsCommand:
    def test_the_list(self) -> None:
        lines = CliRunner().invoke(main, ["targets"]).stdout.splitlines()
        rows = {line.split()[0]: line.split() for line in lines if line.strip()}
        assert set(rows) >= {target.name for target in TARGETS}
        assert rows["rtx-4090"][1:] == "24.0 GiB 1,008.0 GB/s sm89 tensorrt-rtx".split()
        assert rows["jetson-orin-nx-8gb"][-2:] == ["sm87", "tensorrt"]

    def test_json(self) -> None:
        found = json.loads(CliRunner().invoke(main, ["targets", "--json"]).stdout)
        assert {item["name"] for item in found} >= {target.name for target in TARGETS}
        found = json.loads(CliRunner().invoke(main, ["targets", "h200", "--json"]).stdout)
        assert found["compute_capability"] == "9.0"
        assert found["limits"] == ["engines are built on the device: pocketmoe build BUNDLE"]

    @each_target
    def test_one_of_them(self, target: Target) -> None:
        result = CliRunner().invoke(main, ["targets", target.name])
        assert result.exit_code == 0
        for text in (target.description, target.toolchain, *target.limits):
            assert text in result.stdout
        for name, source in target.sources.items():
            assert name.replace("_", " ") in result.stdout
            assert source in result.stdout

    def test_unified_memory_has_no_link(self) -> None:
        lines = CliRunner().invoke(main, ["targets", "dgx-spark"]).stdout.splitlines()
        (link,) = [line for line in lines if line.startswith("link")]
        assert link.split() == "link none host and GPU share one memory".split()

    def test_a_near_miss(self) -> None:
        result = CliRunner().invoke(main, ["targets", "orin nano"])
        assert result.exit_code == 2
        assert "did you mean jetson-orin-nano-8gb?" in result.stderr
        assert len(result.stderr.splitlines()) == 1
