"""Placeholders of a trace as operators of each precision, against numpy and PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pocketmoe.bundle.manifest import Precision
from pocketmoe.compiler.graphs.external_data import ExternalData
from pocketmoe.compiler.graphs.lower import Lowered, lower_head_linear, lower_linear
from pocketmoe.compiler.graphs.placeholders import HEAD_LINEAR, INTO_LATENT, LINEAR, OUT_OF_LATENT
from pocketmoe.compiler.quantize import quantize_matrix
from pocketmoe.model.attention import LatentProjection
from pocketmoe.model.spec import MlaSpec
from pocketmoe.runtime.cpu.ort import load_session, set_up

PRECISIONS = ("int4", "int8", "fp16", "fp32")
# Quantized products round x to int8 as well.
LIMITS = {"int4": 0.02, "int8": 0.02, "fp16": 1e-3, "fp32": 1e-6}


def all_of(precision: str) -> Precision:
    return Precision(precision, precision, precision, 32)


def stored(matrix: np.ndarray, precision: str) -> np.ndarray:
    """The values that the bundle holds."""
    if precision in ("int4", "int8"):
        return quantize_matrix(matrix, int(precision[3:]), 32).dequantized()
    return matrix


def run_lowered(lowered: Lowered, folder: Path, x: np.ndarray) -> np.ndarray:
    """`lowered`, from x to y, as a graph of its own."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shape = ["T", *x.shape[1:]]
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    outputs = [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph(lowered.nodes, "lowered", inputs, outputs, lowered.initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "lowered.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opsets), path)
    set_up(2)
    (y,) = load_session(path, path).run(None, {"x": x})
    return y


def assert_near(found: np.ndarray, expected: np.ndarray, precision: str) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= LIMITS[precision] * np.abs(expected).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_linears_are_stored_tile_by_tile(precision: str, biased: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((70, 96)).astype(np.float32)
    bias = random.standard_normal(70).astype(np.float32)

    def read(name: str) -> Iterator[np.ndarray]:
        yield from np.split(weight, [32, 64]) if name == "w" else [bias]

    node = onnx.helper.make_node(LINEAR, ["x"], ["y"], domain="pocketmoe", parameter="w")
    data = ExternalData(tmp_path / "lowered.bin")
    lowered = lower_linear(
        node, "w", "b" if biased else None, weight.shape, all_of(precision), read, data
    )
    data.close()
    x = random.standard_normal((5, 96)).astype(np.float32)
    expected = x @ stored(weight, precision).T + (bias if biased else 0)
    assert_near(run_lowered(lowered, tmp_path, x), expected, precision)
    # What ONNX Runtime was seen to hold: three fp32 numbers for each block of 32.
    per_value = {"int4": 0.5 + 0.375, "int8": 1 + 0.375}.get(precision, 4)
    assert lowered.nbytes == 70 * 96 * per_value + (280 if biased else 0)


@pytest.mark.parametrize("name", ["layers.1.router.weight", "layers.1.shared_gate.weight"])
def test_routers_are_not_quantized(name: str, tmp_path: Path) -> None:
    node = onnx.helper.make_node(LINEAR, ["x"], ["y"], domain="pocketmoe", parameter=name)
    data = ExternalData(tmp_path / "lowered.bin")
    weight = np.ones((8, 32), np.float32)
    lowered = lower_linear(
        node, name, None, weight.shape, all_of("int4"), lambda _: iter([weight]), data
    )
    data.close()
    assert [node.op_type for node in lowered.nodes] == ["Gemm"]


def test_a_tensor_of_another_length_is_noticed(tmp_path: Path) -> None:
    data = ExternalData(tmp_path / "a.bin")
    with pytest.raises(RuntimeError, match=r"w is not as long as its shape \[32, 64\]"):
        data.add("w", (32, 64), np.float32, [np.zeros((31, 64), np.float32)])
    data.close()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("direction", [INTO_LATENT, OUT_OF_LATENT])
def test_heads_of_a_latent_projection(precision: str, direction: str, tmp_path: Path) -> None:
    heads, mla = 3, MlaSpec(None, 96, 64, 16, 24)
    projection = LatentProjection(heads, mla)
    weight = projection.weight.detach()
    node = onnx.helper.make_node(
        HEAD_LINEAR, ["x"], ["y"], domain="pocketmoe", parameter="w", direction=direction,
        heads=heads, nope=mla.qk_nope_head_dim,
    )  # fmt: skip
    data = ExternalData(tmp_path / "lowered.bin")
    lowered = lower_head_linear(node, "w", weight.numpy(), all_of(precision), data)
    data.close()
    by_head = weight.view(heads, -1, mla.kv_lora_rank).numpy().copy()
    into, out = by_head[:, : mla.qk_nope_head_dim], by_head[:, mla.qk_nope_head_dim :]
    for matrix in [*into.transpose(0, 2, 1), *out]:
        matrix[:] = stored(matrix, precision)
    projection.weight.data = torch.from_numpy(by_head).view_as(weight)
    in_size = mla.qk_nope_head_dim if direction == INTO_LATENT else mla.kv_lora_rank
    x = torch.randn(5, heads, in_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = getattr(projection, direction)(x).numpy()
    assert_near(run_lowered(lowered, tmp_path, x.numpy()), expected, precision)
