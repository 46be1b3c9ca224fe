"""Expert graphs and pages against float64 numpy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pocketmoe.bundle.pages import PAGE_ALIGNMENT, PROJECTIONS, PageFormat
from pocketmoe.compiler.experts.graphs import engine_graph, expert_graph, point_into_page
from pocketmoe.compiler.experts.pages import build_pages, choose_workers, write_expert_layer
from pocketmoe.compiler.quantize import quantize_fp8, quantize_matrix
from pocketmoe.model.spec import Activation
from pocketmoe.runtime.cpu.ort import Binding, load_session, set_up

set_up(threads=2)

CLAMPED = Activation("clamped", alpha=1.702, limit=1.5)
FORMATS = [
    PageFormat("int4", 32, 64, 96),
    PageFormat("int4", 64, 128, 192),
    PageFormat("int4", 128, 256, 128),
    PageFormat("int8", 32, 64, 96),
    PageFormat("int8", 128, 128, 256),
    PageFormat("fp8", 32, 64, 96),
    PageFormat("fp8", 64, 128, 192, bias=True),
    PageFormat("fp16", 0, 40, 24),
    PageFormat("fp32", 0, 40, 24),
    PageFormat("int4", 32, 64, 96, bias=True, activation=CLAMPED),
    PageFormat("int8", 32, 64, 96, bias=True, activation=CLAMPED),
    PageFormat("fp16", 0, 40, 24, bias=True),
    PageFormat("fp32", 0, 40, 24, activation=CLAMPED),
]


def name_format(page_format: PageFormat) -> str:
    bias = "-bias" if page_format.bias else ""
    return f"{page_format.precision}-{page_format.block_size}-{page_format.activation.kind}{bias}"


def matrices(page_format: PageFormat, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden, inner = page_format.hidden_size, page_format.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)
    }  # fmt: skip
    if page_format.bias:
        shapes |= {f"{name}_bias": shape[:1] for name, shape in shapes.items()}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def build_page(page_format: PageFormat, weights: dict[str, np.ndarray]) -> bytearray:
    (page,) = build_pages(0, 1, page_format, lambda name: tiles(weights, name), 1)
    return page


def tiles(weights: dict[str, np.ndarray], name: str) -> Iterator[np.ndarray]:
    """A parameter of an expert in uneven blocks of rows; a bias in one."""
    projection, part = name.split(".")[-2:]
    if part == "bias":
        yield weights[f"{projection}_bias"]
        return
    yield from np.split(weights[projection], [10, 17])


def stored(page_format: PageFormat, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as the page holds them, in float64."""
    if page_format.precision == "fp32":
        return {name: matrix.astype(np.float64) for name, matrix in weights.items()}
    if page_format.precision == "fp16":
        return {
            name: matrix.astype(np.float16 if matrix.ndim == 2 else np.float32).astype(np.float64)
            for name, matrix in weights.items()
        }
    if page_format.precision == "fp8":
        return {
            name: matrix.astype(np.float64) if matrix.ndim == 1 else stored_fp8(matrix, page_format)
            for name, matrix in weights.items()
        }
    bits = 4 if page_format.precision == "int4" else 8
    return {
        name: matrix.astype(np.float64)
        if matrix.ndim == 1
        else quantize_matrix(matrix, bits, page_format.block_size).dequantized().astype(np.float64)
        for name, matrix in weights.items()
    }


def stored_fp8(matrix: np.ndarray, page_format: PageFormat) -> np.ndarray:
    values, scales = quantize_fp8(matrix, page_format.block_size)
    exact = torch.from_numpy(values).view(torch.float8_e4m3fn).double().numpy()
    return exact * scales.astype(np.float64).repeat(page_format.block_size, axis=1)


def ffn(page_format: PageFormat, x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    def project(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[name].T + weights.get(f"{name}_bias", 0.0)

    gate, up = project(x, "gate"), project(x, "up")
    rule = page_format.activation
    if rule.kind == "silu":
        return project(gate / (1 + np.exp(-gate)) * up, "down")
    gate, up = np.minimum(gate, rule.limit), np.clip(up, -rule.limit, rule.limit)
    return project(gate / (1 + np.exp(-rule.alpha * gate)) * (up + 1), "down")


@pytest.mark.parametrize("page_format", FORMATS, ids=name_format)
def test_every_expert_file_is_the_expert_of_its_page(
    page_format: PageFormat, tmp_path: Path
) -> None:
    weights = {expert: matrices(page_format, expert) for expert in range(3)}

    def read(name: str) -> Iterator[np.ndarray]:
        return tiles(weights[int(name.split(".")[3])], name)

    pages = build_pages(2, 3, page_format, read, 2)
    layer = write_expert_layer(tmp_path, 2, [page_format] * 3, pages, lambda _: None)
    assert all(offset % PAGE_ALIGNMENT == 0 for offset in layer.offsets)
    x = np.random.default_rng(9).normal(size=(5, page_format.hidden_size)).astype(np.float32)
    for expert in range(3):
        path = tmp_path / f"experts/layer_002/expert_{expert:03d}.onnx"
        session = load_session(path, path)
        (y,) = session.run(None, {"x": x})
        expected = ffn(page_format, x.astype(np.float64), stored(page_format, weights[expert]))
        assert np.abs(y - expected).max() / np.abs(expected).max() < 2e-6


@pytest.mark.parametrize(
    ("sizes", "encoded", "cpus", "workers"),
    [
        ((2048, 1024), False, 6, 6),
        ((7168, 2048), True, 6, 6),
        ((7168, 2048), True, 96, 18),  # 56 MiB each
        ((8192, 28672), False, 96, 16),  # read in tiles of 64 MiB
        ((8192, 28672), True, 96, 1),  # 896 MiB, decoded whole
        ((16384, 53248), True, 96, 1),
    ],
)
def test_workers_are_bounded_by_the_cpus_to_use_and_by_memory(
    sizes: tuple[int, int],
    encoded: bool,
    cpus: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    formats = [PageFormat("int4", 64, 64, 64), PageFormat("int4", 64, *sizes)]
    assert choose_workers(formats, encoded=encoded) == workers


@pytest.mark.parametrize("workers", [1, 7])
def test_pages_come_in_order_with_any_number_of_workers(workers: int) -> None:
    page_format = FORMATS[0]
    weights = [matrices(page_format, expert) for expert in range(9)]

    def read(name: str) -> Iterator[np.ndarray]:
        return tiles(weights[int(name.split(".")[3])], name)

    pages = list(build_pages(2, 9, page_format, read, workers))
    assert pages == [build_page(page_format, expert) for expert in weights]


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("page_format", FORMATS, ids=name_format)
def test_the_engine_graph_computes_the_same_from_the_bytes_of_a_page(
    page_format: PageFormat, tokens: int
) -> None:
    weights = matrices(page_format, 0)
    page = np.frombuffer(build_page(page_format, weights), np.uint8)
    session = load_session(engine_graph(page_format).SerializeToString(), Path("engine.onnx"))
    x = np.random.default_rng(1).normal(size=(tokens, page_format.hidden_size)).astype(np.float32)
    binding, y = Binding(session), np.empty_like(x)
    binding.input("x", x)
    elements = {
        "tensor(uint8)": np.uint8, "tensor(int8)": np.int8,
        "tensor(float16)": np.float16, "tensor(float)": np.float32,
        "tensor(float8e4m3fn)": onnx.TensorProto.FLOAT8E4M3FN,
    }  # fmt: skip
    declared = {item.name: item for item in session.get_inputs()}
    for place in page_format.tensors():
        item = declared[place.name]
        address = page.ctypes.data + place.offset
        binding.raw_input(place.name, elements[item.type], tuple(item.shape), address)
    binding.output("y", y)
    binding.run()
    expected = ffn(page_format, x.astype(np.float64), stored(page_format, weights))
    assert np.abs(y - expected).max() / np.abs(expected).max() < 5e-6


def test_the_page_holds_what_the_format_says() -> None:
    page_format = PageFormat("int4", 32, 64, 96)
    weights = matrices(page_format, 3)
    page = build_page(page_format, weights)
    assert len(page) == page_format.nbytes
    places = {place.name: place for place in page_format.tensors()}
    for name in PROJECTIONS:
        place, scales = places[name], places[f"{name}_scales"]
        packed = np.frombuffer(page, np.uint8, place.nbytes, place.offset).reshape(
            place.shape[0], -1
        )
        values = np.empty(place.shape, np.int8)
        values[:, 0::2] = (packed & 15).astype(np.int8)
        values[:, 1::2] = (packed >> 4).astype(np.int8)
        values = np.where(values > 7, values - 16, values)
        blocks = np.frombuffer(page, np.float16, scales.nbytes // 2, scales.offset)
        found = values * np.repeat(blocks.reshape(scales.shape).astype(np.float32), 32, axis=1)
        assert np.array_equal(found, quantize_matrix(weights[name], 4, 32).dequantized())


def test_expert_files_name_the_page_file_beside_them() -> None:
    page_format = PageFormat("int8", 32, 64, 64)
    model = point_into_page(expert_graph(page_format), page_format, 8192)
    entries = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer]
    assert {entry["location"] for entry in entries} == {"pages.bin"}
    assert int(entries[0]["offset"]) == 8192
