"""Runs GPU graphs in ONNX Runtime on the CPU, as plainly as can be: no slots, no cache that
slides, all positions in one array. What the runtime does with them is held against the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from pocketmoe.bundle.expert_layers import ExpertLayer
from pocketmoe.bundle.gpu_graphs import MASKED, POSITION_BLOCK, GpuGraphs, page_inputs
from pocketmoe.compiler.segments import plan_segments, window_kind
from pocketmoe.model.attention import rope_table
from pocketmoe.model.spec import ModelSpec
from pocketmoe.runtime.cpu.ort import load_session, set_up

ELEMENTS: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int64": np.int64,
    "int8": np.int8,
    "uint8": np.uint8,
    "int4": onnx.TensorProto.INT4,
    "fp8": onnx.TensorProto.FLOAT8E4M3FN,
}


class Graph:
    """A session that is fed arrays, or bytes at an address."""

    def __init__(self, path: Path):
        set_up(2)
        self.session = load_session(path, path)
        self.inputs = {item.name: item for item in self.session.get_inputs()}

    def run(
        self, arrays: dict[str, np.ndarray], places: dict[str, tuple[Any, tuple[int, ...], int]]
    ) -> dict[str, np.ndarray]:
        """places: element, shape and address of what is not an array of its own."""
        binding = self.session.io_binding()
        held = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        for name, array in held.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, (element, shape, address) in places.items():
            binding.bind_input(name, "cpu", 0, element, shape, address)
        assert {*held, *places} == set(self.inputs)
        names = [item.name for item in self.session.get_outputs()]
        for name in names:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))


class GraphModel:
    """The model of a bundle's GPU graphs, over the pages that lie beside them."""

    def __init__(
        self, root: Path, spec: ModelSpec, graphs: GpuGraphs, experts: tuple[ExpertLayer, ...]
    ):
        self.spec, self.plans = spec, plan_segments(spec)
        self.segments = [Graph(root / name) for name in graphs.segments]
        self.layers = {item.layer: item for item in graphs.layers}
        files = {name for item in graphs.layers for name in (item.expert, item.token, item.combine)}
        self.graphs = {name: Graph(root / name) for name in files}
        self.experts = {layer.layer: layer for layer in experts}
        self.pages = {layer.layer: np.fromfile(root / layer.file, np.uint8) for layer in experts}
        self.past: dict[str, np.ndarray] = {}
        self.position = 0

    def forward(self, embedded: np.ndarray) -> np.ndarray:
        """Logits of all tokens; embedded: float32 `[T, H]`."""
        tokens, length = len(embedded), self.position + len(embedded)
        positions = torch.arange(self.position, length)
        cos, sin = (part.numpy() for part in rope_table(self.spec.rope, positions, length))
        given = {"hidden": embedded, "cos": cos, "sin": sin, "rows": np.arange(tokens)}
        for plan, graph in zip(self.plans, self.segments, strict=True):
            for layer in plan.layers:
                given |= self.attention_inputs(layer, tokens)
            arrays = {name: given[name] for name in graph.inputs}
            out = graph.run(arrays, {})
            for name, array in out.items():
                if name.startswith("new_"):
                    name = name.replace("new", "past")
                    known = self.past.get(name, array[:0])
                    self.past[name] = np.concatenate([known, array])
            if plan.router_layer is not None:
                base = out.get("moe_base", np.zeros_like(out["expert_input"]))
                run = self.run_token if tokens == 1 else self.run_prompt
                given["moe_out"] = run(plan.router_layer, out, base)
                given["hidden"] = out["hidden_out"]
        self.position = length
        return out["logits"]

    def attention_inputs(self, layer: int, tokens: int) -> dict[str, np.ndarray]:
        """The past in a whole number of blocks, and the mask that leaves out what is not filled."""
        window, past = self.spec.layers[layer].window, self.position
        bound = max(1, -(-past // POSITION_BLOCK)) * POSITION_BLOCK
        inputs = {}
        heads, size = self.spec.cache_shapes[0]
        for name in (f"past_key.{layer}", f"past_value.{layer}"):
            filled = self.past.get(name, np.zeros((0, heads, size), np.float16))
            rest = np.full((bound - len(filled), heads, size), 7.0, np.float16)
            inputs[name] = np.concatenate([filled, rest])
        keys = np.concatenate([np.arange(bound), np.arange(past, past + tokens)])
        there = np.concatenate([np.arange(bound) < past, np.ones(tokens, bool)])
        distance = np.arange(past, past + tokens)[:, None] - keys[None, :]
        seen = there[None, :] & (distance >= 0)
        if window is not None:
            seen &= distance < window
        inputs[f"mask.{window_kind(window)}"] = np.where(seen, 0, MASKED).astype(np.float32)
        return inputs

    def page_places(
        self, layer: int, expert: int, suffix: str = ""
    ) -> dict[str, tuple[Any, tuple[int, ...], int]]:
        pages = self.experts[layer]
        start = self.pages[layer].ctypes.data + pages.offsets[expert]
        infos = page_inputs(pages.format, suffix)
        return {
            info.name: (ELEMENTS[info.dtype], info.shape, start + place.offset)
            for info, place in zip(infos, pages.format.tensors(), strict=True)
        }

    def run_token(self, layer: int, out: dict[str, np.ndarray], base: np.ndarray) -> np.ndarray:
        places: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        for index, expert in enumerate(out["expert_ids"][0].tolist()):
            places |= self.page_places(layer, expert, f".{index}")
        arrays = {"x": out["expert_input"], "weights": out["expert_weights"], "base": base}
        return self.graphs[self.layers[layer].token].run(arrays, places)["out"]

    def run_prompt(self, layer: int, out: dict[str, np.ndarray], base: np.ndarray) -> np.ndarray:
        ids, weights = out["expert_ids"], out["expert_weights"]
        terms, places, count = [], np.zeros_like(ids), 0
        for expert in sorted(set(ids.ravel().tolist())):
            rows, slots = np.nonzero(ids == expert)
            arrays = {"x": out["expert_input"], "rows": rows, "weights": weights[rows, slots]}
            graph = self.graphs[self.layers[layer].expert]
            terms.append(graph.run(arrays, self.page_places(layer, expert))["terms"])
            places[rows, slots] = np.arange(count, count + len(rows))
            count += len(rows)
        arrays = {"terms": np.concatenate(terms), "places": places, "base": base}
        return self.graphs[self.layers[layer].combine].run(arrays, {})["out"]
