"""Expert graphs and pages against float64 numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pocketmoe.compiler.experts import (
    build_page,
    engine_graph,
    expert_graph,
    point_into_page,
    write_expert_layer,
)
from pocketmoe.compiler.quantize import quantize_matrix
from pocketmoe.runtime.ort import load_session, set_up
from pocketmoe.runtime.pages import PAGE_ALIGNMENT, PROJECTIONS, PageFormat

set_up(threads=2)

FORMATS = [
    PageFormat("int4", 32, 64, 96),
    PageFormat("int4", 64, 128, 192),
    PageFormat("int4", 128, 256, 128),
    PageFormat("int8", 32, 64, 96),
    PageFormat("int8", 128, 128, 256),
    PageFormat("fp16", 0, 40, 24),
    PageFormat("fp32", 0, 40, 24),
]
TYPES = {"int4": (22, 2), "int8": (3, 1), "fp16": (10, 1), "fp32": (1, 1), "scales": (10, 1)}


def matrices(page_format: PageFormat, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden, inner = page_format.hidden_size, page_format.intermediate_size
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def stored(page_format: PageFormat, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as the page holds them, in float64."""
    if page_format.precision == "fp32":
        return {name: matrix.astype(np.float64) for name, matrix in weights.items()}
    if page_format.precision == "fp16":
        return {
            name: matrix.astype(np.float16).astype(np.float64) for name, matrix in weights.items()
        }
    bits = 4 if page_format.precision == "int4" else 8
    return {
        name: quantize_matrix(matrix, bits, page_format.block_size).dequantized().astype(np.float64)
        for name, matrix in weights.items()
    }


def ffn(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    gate, up = x @ weights["gate"].T, x @ weights["up"].T
    return (gate / (1 + np.exp(-gate)) * up) @ weights["down"].T


@pytest.mark.parametrize("page_format", FORMATS, ids=lambda f: f"{f.precision}-{f.block_size}")
def test_every_expert_file_is_the_expert_of_its_page(
    page_format: PageFormat, tmp_path: Path
) -> None:
    weights = {expert: matrices(page_format, expert) for expert in range(3)}

    def read(name: str) -> np.ndarray:
        _, _, _, expert, projection, _ = name.split(".")
        return weights[int(expert)][projection]

    layer = write_expert_layer(tmp_path, 2, 3, page_format, read, 2, lambda _: None)
    assert all(offset % PAGE_ALIGNMENT == 0 for offset in layer.offsets)
    x = np.random.default_rng(9).normal(size=(5, page_format.hidden_size)).astype(np.float32)
    for expert in range(3):
        path = tmp_path / f"experts/layer_002/expert_{expert:03d}.onnx"
        session = load_session(path, path)
        (y,) = session.run(None, {"x": x})
        expected = ffn(x.astype(np.float64), stored(page_format, weights[expert]))
        assert np.abs(y - expected).max() / np.abs(expected).max() < 2e-6


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("page_format", FORMATS, ids=lambda f: f"{f.precision}-{f.block_size}")
def test_the_engine_graph_computes_the_same_from_the_bytes_of_a_page(
    page_format: PageFormat, tokens: int
) -> None:
    weights = matrices(page_format, 0)
    page = np.frombuffer(build_page(page_format, weights), np.uint8)
    session = load_session(engine_graph(page_format).SerializeToString(), Path("engine.onnx"))
    x = np.random.default_rng(1).normal(size=(tokens, page_format.hidden_size)).astype(np.float32)
    feeds = {"x": x}
    numpy_types = {
        "tensor(uint8)": np.uint8, "tensor(int8)": np.int8,
        "tensor(float16)": np.float16, "tensor(float)": np.float32,
    }  # fmt: skip
    declared = {item.name: item for item in session.get_inputs()}
    for place in page_format.tensors():
        item = declared[place.name]
        raw = page[place.offset : place.offset + place.nbytes]
        feeds[place.name] = raw.view(numpy_types[item.type]).reshape(item.shape)
    (y,) = session.run(None, feeds)
    expected = ffn(x.astype(np.float64), stored(page_format, weights))
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
