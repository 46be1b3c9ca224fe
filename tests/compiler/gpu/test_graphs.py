"""Device graphs, the exact files that TensorRT gets, in ONNX Runtime against the PyTorch module."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pocketmoe.bundle.gpu_graphs import page_inputs
from pocketmoe.bundle.manifest import Precision
from pocketmoe.bundle.pages import PageFormat
from pocketmoe.compiler.compile import tile_reader, write_experts
from pocketmoe.compiler.gpu.experts import expert_graph
from pocketmoe.compiler.gpu.graphs import write_gpu_graphs
from pocketmoe.compiler.quantize import quantize_fp8, quantize_matrix
from pocketmoe.model.module import Decoder
from pocketmoe.model.spec import ModelSpec
from pocketmoe.progress import Silent
from pocketmoe.tests.compiler.test_segments import (
    BASE,
    CALLS,
    SPECS,
    SegmentWeights,
    decoder_logits,
    make_decoder,
)
from pocketmoe.tests.support.gpu.oracle import ELEMENTS, Graph, GraphModel

pytestmark = pytest.mark.usefixtures("one_thread")
HALF = Precision("fp16", "fp16", "fp16", 32)
HALF_LIMIT = 6e-3  # of the largest logit: products and caches are fp16
# A rounded score may choose another expert where two are about equal, for a few tokens in all.
MOST_ROUTED_OTHERWISE = 0.03
PLAIN = [PageFormat("int4", 32, 64, 96), PageFormat("int8", 64, 128, 64, bias=True)]
ROUTED = re.compile(r"\.(router|shared_gate)\.")  # stays fp32


def write(root: Path, spec: ModelSpec, model: Decoder, precision: Precision) -> GraphModel:
    source = SegmentWeights(model)
    experts = write_experts(root, source, spec, precision, Silent())
    with source.tensors() as reader:
        read = tile_reader(reader, spec, lambda _: None)
        graphs = write_gpu_graphs(root, spec, precision, read, context=256)
    return GraphModel(root, spec, graphs, experts)


def run(graphs: GraphModel, model: Decoder) -> np.ndarray:
    embedding = model.embed.weight.detach().numpy()
    return np.concatenate([graphs.forward(embedding[call]) for call in CALLS])


@pytest.mark.parametrize("name", SPECS)
def test_graphs_are_the_module_in_half_precision(name: str, tmp_path: Path) -> None:
    model = make_decoder(SPECS[name])
    found = run(write(tmp_path, SPECS[name], model, HALF), model)
    assert_alike(found, decoder_logits(model))


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert np.mean(error > HALF_LIMIT) <= MOST_ROUTED_OTHERWISE


@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
@pytest.mark.parametrize("name", [name for name in SPECS if "MLA" not in name])
def test_quantized_graphs_are_the_module_with_the_stored_weights(
    name: str, precision: str, tmp_path: Path
) -> None:
    spec, model = SPECS[name], make_decoder(SPECS[name])
    chosen = Precision(precision, precision, precision, 32)
    graphs = write(tmp_path, spec, model, chosen)
    if precision != "fp32":
        store_weights(model, chosen, int(precision[3:]))
    assert_alike(run(graphs, model), decoder_logits(model))


@torch.no_grad()
def store_weights(model: Decoder, precision: Precision, bits: int) -> None:
    """Puts what a bundle stores in the place of the weights."""
    model.head.weight = torch.nn.Parameter(model.head.weight.clone())  # it may be the embedding
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name == "embed.weight" or ROUTED.search(name):
            continue
        quantized = quantize_matrix(parameter.numpy(), bits, precision.block_size)
        parameter.copy_(torch.from_numpy(quantized.dequantized()))


def test_devices_without_fp32_products_route_alike(tmp_path: Path) -> None:
    model = make_decoder(BASE)
    with SegmentWeights(model).tensors() as reader:
        read = tile_reader(reader, BASE, lambda _: None)
        logits = []
        for fp32_products in (True, False):
            root = tmp_path / str(fp32_products)
            root.mkdir()
            graphs = write_gpu_graphs(
                root, BASE, HALF, read, context=256, fp32_products=fp32_products
            )
            experts = write_experts(root, SegmentWeights(model), BASE, HALF, Silent())
            logits.append(run(GraphModel(root, BASE, graphs, experts), model))
            operators = [n.op_type for n in onnx.load(root / graphs.segments[0]).graph.node]
            assert operators.count("ReduceSum") == (0 if fp32_products else 1)
    assert np.abs(logits[0] - logits[1]).max() <= 1e-3 * np.abs(logits[0]).max()


@pytest.mark.parametrize("precision", ["int4", "int8", "fp8", "fp16", "fp32"])
def test_expert_graphs_take_the_tensors_of_a_page(precision: str, tmp_path: Path) -> None:
    spec = replace(BASE, expert_bias=True)
    chosen = Precision(precision, "fp16", "fp16", 32)
    graphs = write(tmp_path, spec, make_decoder(spec), chosen)
    pages = graphs.experts[0].format
    layer = graphs.layers[0]
    own = {"x", "rows", "weights", "base"}
    for name, suffixes in ((layer.expert, [""]), (layer.token, [".0", ".1"])):
        declared = {
            item.name: (item.type, item.shape) for item in graphs.graphs[name].inputs.values()
        }
        expected = [info for suffix in suffixes for info in page_inputs(pages, suffix)]
        assert set(declared) - own == {info.name for info in expected}
        for info in expected:
            kind = {"float32": "float", "fp8": "float8e4m3fn"}.get(info.dtype, info.dtype)
            assert declared[info.name] == (f"tensor({kind})", list(info.shape))


def test_fp8_experts_are_the_module_with_the_stored_weights(tmp_path: Path) -> None:
    model, spec = make_decoder(BASE), BASE
    graphs = write(tmp_path, spec, model, Precision("fp8", "fp32", "fp32", 32))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                values, scales = quantize_fp8(parameter.numpy(), 32)
                exact = torch.from_numpy(values).view(torch.float8_e4m3fn).float()
                rounded = exact * torch.from_numpy(scales.repeat(32, axis=1).astype(np.float32))
                assert (rounded - parameter).abs().max() <= parameter.abs().max() / 16
                parameter.copy_(rounded)
    assert_alike(run(graphs, model), decoder_logits(model))


@pytest.mark.parametrize("page_format", PLAIN, ids=str)
def test_plain_graphs_make_the_same_numbers_of_the_bytes(
    page_format: PageFormat, tmp_path: Path
) -> None:
    """Unpacked by plain operators or by DequantizeLinear, the fp16 weights are the same."""
    rng = np.random.default_rng(0)
    page = np.zeros(page_format.nbytes, np.uint8)
    for place in page_format.tensors():
        part = page[place.offset : place.offset + place.nbytes]
        if place.kind in ("scales", "bias"):
            dtype = np.float16 if place.kind == "scales" else np.float32
            part[:] = rng.uniform(0.001, 0.02, place.shape).astype(dtype).view(np.uint8).ravel()
        else:
            part[:] = rng.integers(0, 256, place.nbytes)
    x = rng.normal(size=(7, page_format.hidden_size)).astype(np.float32)
    arrays = {"x": x, "rows": np.array([0, 2, 5]), "weights": np.float32([0.5, 1.0, 0.1])}
    terms = []
    for plain in (False, True):
        path = tmp_path / f"{plain}.onnx"
        onnx.save(expert_graph(page_format, plain=plain), path)
        infos = page_inputs(page_format, plain=plain)
        places = {
            info.name: (ELEMENTS[info.dtype], info.shape, page.ctypes.data + place.offset)
            for info, place in zip(infos, page_format.tensors(), strict=True)
        }
        terms.append(Graph(path).run(arrays, places)["terms"])
    assert np.abs(terms[0]).max() > 0
    assert np.abs(terms[0] - terms[1]).max() <= 1e-3 * np.abs(terms[0]).max()
