"""Engines, built for real with TensorRT for RTX, which needs no GPU for it."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pocketmoe.bundle.gpu_graphs import GpuGraphs, page_inputs, plain_file
from pocketmoe.bundle.pages import PageFormat
from pocketmoe.compiler.gpu.experts import expert_graph, token_graph
from pocketmoe.engines import build as engines
from pocketmoe.engines.build import build_engines
from pocketmoe.engines.builder import BuiltEngine, EngineBuilder
from pocketmoe.engines.hardware import Gpu
from pocketmoe.engines.libraries import RTX, STOCK
from pocketmoe.errors import EngineError
from pocketmoe.tests.support.gpu.rtx_library import needs_rtx
from pocketmoe.tests.support.gpu.sample_graphs import (
    BLOCK,
    FILES,
    FLOAT,
    HALF,
    HIDDEN,
    INNER,
    INT64,
    TOP_K,
    node,
    page_tensors,
    save,
    value,
    write_sample_graphs,
)
from pocketmoe.tests.support.watched import Watched

pytestmark = needs_rtx


def one_graph(root: Path, *parts: object) -> GpuGraphs:
    """A single graph as the only segment."""
    (root / "device").mkdir()
    save(root, "odd", *parts)  # type: ignore[arg-type]
    return GpuGraphs(("device/odd.onnx",), (), chunk=32, batch=64, context=256)


class TestBuilding:
    def test_every_graph_for_one_architecture(
        self, graphs: tuple[Path, GpuGraphs], tmp_path: Path
    ) -> None:
        watched = Watched()
        (built,) = build_engines(
            *graphs, tmp_path, toolchain=RTX, compute_capabilities=["8.9"], progress=watched
        )
        assert [Path(e.file).name for e in built.engines] == [f"{name}.engine" for name in FILES]
        assert [e.graph for e in built.engines] == list(graphs[1].files())
        assert {os.path.dirname(e.file) for e in built.engines} == {built.folder}
        assert built.folder == f"engines/tensorrt-rtx-{built.version}-sm89"
        assert all((tmp_path / e.file).stat().st_size > 10_000 for e in built.engines)
        assert (built.compute_capability, built.device) == ("8.9", None)
        assert watched.stages == [("engines for sm89", watched.done[0])]

    def test_what_goes_in_and_out(self, graphs: tuple[Path, GpuGraphs], tmp_path: Path) -> None:
        (built,) = build_engines(*graphs, tmp_path, toolchain=RTX, compute_capabilities=["8.6"])
        segment, head, expert, token, combine = built.engines
        shown = {i.name: (i.dtype, i.shape) for i in segment.inputs}
        assert shown == {
            "hidden": ("float32", (-1, 64)), "past_key.0": ("float16", (-1, 2, 32)),
            "past_value.0": ("float16", (-1, 2, 32)), "mask.full": ("float32", (-1, -1)),
        }  # fmt: skip
        assert {o.name: o.dtype for o in segment.outputs} == {
            "hidden_out": "float32", "expert_input": "float32", "expert_weights": "float32",
            "expert_ids": "int64", "new_key.0": "float16", "new_value.0": "float16",
        }  # fmt: skip
        assert [i.name for i in head.inputs] == ["hidden", "moe_out", "rows"]
        assert set(page_tensors()) < set(expert.inputs)
        assert {*page_tensors(".0"), *page_tensors(".1")} < set(token.inputs)
        assert combine.outputs[0].shape == (-1, 64)

    def test_engines_for_several_architectures_share_their_files(
        self, graphs: tuple[Path, GpuGraphs], tmp_path: Path
    ) -> None:
        """One engine holds its weights once, whatever it is for."""
        capabilities = ("8.0", "8.6", "8.9", "12.0", "12.1")
        sets = build_engines(
            *graphs, tmp_path / "all", toolchain=RTX, compute_capabilities=capabilities
        )
        alone = build_engines(
            *graphs, tmp_path / "one", toolchain=RTX, compute_capabilities=["8.9"]
        )
        assert tuple(item.compute_capability for item in sets) == capabilities
        assert len({item.engines for item in sets}) == 1
        size = sum((tmp_path / "all" / e.file).stat().st_size for e in sets[0].engines)
        assert size < 1.01 * sum(
            (tmp_path / "one" / e.file).stat().st_size for e in alone[0].engines
        )

    def test_library_messages_go_to_the_log(
        self, graphs: tuple[Path, GpuGraphs], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG, "pocketmoe.engines"):
            build_engines(*graphs, tmp_path, toolchain=RTX, compute_capabilities=["8.9"])
        assert any("Int64 binding" in record.message for record in caplog.records)
        assert all(record.levelno < logging.WARNING for record in caplog.records)


class TestFailing:
    def refused(self, root: Path, graphs: GpuGraphs, capability: str = "8.9") -> str:
        with pytest.raises(EngineError) as caught:
            build_engines(root, graphs, root, toolchain=RTX, compute_capabilities=[capability])
        assert not any((root / "engines").glob("*"))
        return str(caught.value)

    def test_an_operator_that_does_not_exist(self, tmp_path: Path) -> None:
        """The parser says no."""
        nodes = [node("Relu", "x", "a"), node("Frobnicate", "a", "y")]
        sides = ([value(name, FLOAT, "tokens", 4)] for name in "xy")
        assert self.refused(tmp_path, one_graph(tmp_path, nodes, *sides)) == (
            "device/odd.onnx cannot be built for sm89: node Frobnicate_y (Frobnicate): TensorRT "
            "has no such operator, or not for these types"
        )

    def test_types_that_do_not_fit(self, tmp_path: Path) -> None:
        nodes = [node("Cast", "x", "half", to=HALF), node("Add", "x half", "y")]
        sides = ([value(name, FLOAT, "tokens", 4)] for name in "xy")
        assert self.refused(tmp_path, one_graph(tmp_path, nodes, *sides)) == (
            "device/odd.onnx cannot be built for sm89: node Add_y (Add): Add_y: "
            "ElementWiseOperation SUM must have same input types. But they are of types Float and "
            "Half"
        )

    def test_what_only_the_builder_refuses(self, tmp_path: Path) -> None:
        nodes = [node("TopK", "x k", "y i")]
        outputs = [value("y", FLOAT, "tokens", 4000), value("i", INT64, "tokens", 4000)]
        graphs = one_graph(
            tmp_path, nodes, [value("x", FLOAT, "tokens", 5000)], outputs,
            {"k": np.array([4000])},
        )  # fmt: skip
        message = self.refused(tmp_path, graphs)
        assert message.startswith("device/odd.onnx cannot be built for sm89: ")
        assert "TopK_y: K exceeds the maximum value allowed (3840)" in message
        assert "/_src/" not in message

    def test_an_architecture_without_the_type(
        self, graphs: tuple[Path, GpuGraphs], tmp_path: Path
    ) -> None:
        shutil.copytree(graphs[0] / "device", tmp_path / "device")
        message = self.refused(tmp_path, replace(graphs[1], segments=()), "7.5")
        assert message == (
            "device/expert_000.onnx cannot be built for sm75: Cannot compile for target(s) sm75, "
            "because the model contains HW-specific datatypes: int4"
        )

    @pytest.mark.parametrize("junk", [b"hello" * 100, b"", b"\x08\x0a" * 50])
    def test_what_is_no_graph(self, tmp_path: Path, junk: bytes) -> None:
        (tmp_path / "device").mkdir()
        (tmp_path / "device/odd.onnx").write_bytes(junk)
        graphs = GpuGraphs(("device/odd.onnx",), (), chunk=32, batch=64, context=256)
        assert "device/odd.onnx cannot be built for sm89: " in self.refused(tmp_path, graphs)

    def test_a_missing_graph(self, graphs: tuple[Path, GpuGraphs], tmp_path: Path) -> None:
        assert "is missing" in self.refused(tmp_path, graphs[1])

    def test_missing_weights(self, graphs: tuple[Path, GpuGraphs], tmp_path: Path) -> None:
        shutil.copytree(graphs[0] / "device", tmp_path / "device")
        (tmp_path / "device/segment_001.bin").unlink()
        assert "device/segment_001.onnx cannot be built" in self.refused(tmp_path, graphs[1])

    def test_a_dimension_that_nobody_knows(self, tmp_path: Path) -> None:
        sides = ([value(name, FLOAT, "sideways", 4)] for name in "xy")
        message = self.refused(tmp_path, one_graph(tmp_path, [node("Relu", "x", "y")], *sides))
        assert "input x has an open dimension 'sideways'; known ones are tokens, rows" in message

    def test_an_output_that_cannot_be_bound(self, tmp_path: Path) -> None:
        graphs = one_graph(
            tmp_path, [node("Greater", "x x", "y")], [value("x", FLOAT, "tokens", 4)],
            [value("y", 9, "tokens", 4)],
        )  # fmt: skip
        assert "y is DataType.BOOL, which the runtime cannot bind" in self.refused(tmp_path, graphs)


def test_a_device_that_takes_no_int4_gets_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a TensorRT for which quantized inputs are an error; the engines are real ones."""
    page = PageFormat("int4", BLOCK, HIDDEN, INNER)
    graphs = write_sample_graphs(tmp_path)
    onnx.save(expert_graph(page, plain=True), tmp_path / plain_file(graphs.layers[0].expert))
    onnx.save(token_graph(page, TOP_K, plain=True), tmp_path / plain_file(graphs.layers[0].token))

    class WithoutInt4(EngineBuilder):
        def __init__(self, toolchain: str, capabilities: object = None):
            super().__init__(RTX, ["8.9"])

        def build(self, root: Path, file: str, *rest: Any) -> BuiltEngine:
            if file in (graphs.layers[0].expert, graphs.layers[0].token):
                raise EngineError(f"{file} cannot be built for this GPU: int4 is no input")
            return super().build(root, file, *rest)

    monkeypatch.setattr(engines, "EngineBuilder", WithoutInt4)
    gpu = Gpu("Orin", "8.7", 8 << 30, True)
    (made,) = build_engines(tmp_path, graphs, tmp_path, toolchain=STOCK, gpu=gpu)
    assert [engine.graph for engine in made.engines] == list(graphs.files())
    expert, token = made.engines[2], made.engines[3]
    assert set(page_inputs(page, plain=True)) < set(expert.inputs)
    assert set(page_inputs(page, ".1", plain=True)) < set(token.inputs)
    assert [r.getMessage() for r in caplog.records].count(
        f"{expert.graph} cannot be built for this GPU: int4 is no input; it is built of "
        "plain operators, which is slower"
    ) == 1
