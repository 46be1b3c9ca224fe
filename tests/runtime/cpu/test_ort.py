"""The window rule of ONNX Runtime before 1.24, where local_window_size W sees W + 1 keys."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from pocketmoe.errors import BundleError
from pocketmoe.runtime.cpu.ort import narrow_windows


def model_with_windows(*windows: int) -> bytes:
    nodes = [
        helper.make_node(
            "GroupQueryAttention", ["q"], [f"y{index}"], domain="com.microsoft",
            num_heads=window, local_window_size=window, kv_num_heads=2,
        )
        for index, window in enumerate(windows)
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "attention", [], [])
    return helper.make_model(graph).SerializeToString()


def windows_of(model: bytes) -> list[int]:
    graph = onnx.load_from_string(model).graph
    return [a.i for node in graph.node for a in node.attribute if a.name == "local_window_size"]


def test_every_window_loses_one_and_nothing_else_changes() -> None:
    windows = [2, 16, 127, 128, 129, 2048, 16384, 131072]
    model = model_with_windows(*windows)
    narrowed = narrow_windows(model, Path("segment.onnx"))
    assert len(narrowed) == len(model)
    assert windows_of(narrowed) == [window - 1 for window in windows]
    heads = [n.attribute[0].i for n in onnx.load_from_string(narrowed).graph.node]
    before = [n.attribute[0].i for n in onnx.load_from_string(model).graph.node]
    assert heads == before


def test_no_window_stays_none() -> None:
    model = model_with_windows(-1, 8)
    assert windows_of(narrow_windows(model, Path("segment.onnx"))) == [-1, 7]


def test_a_window_of_one_is_refused() -> None:
    with pytest.raises(BundleError, match=r"segment\.onnx.*update onnxruntime"):
        narrow_windows(model_with_windows(1), Path("segment.onnx"))
