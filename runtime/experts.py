"""Routed experts: what an engine is, the one in ONNX Runtime, and the weighted sum over experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import BundleError
from .bundle import ExpertLayer, Manifest
from .ort import Binding, load_session
from .pages import PageFormat

_ELEMENTS: dict[str, Any] = {
    "int4": "int4",
    "int8": np.int8,
    "fp16": np.float16,
    "fp32": np.float32,
    "scales": np.float16,
}


class ExpertEngine(Protocol):
    """Computes one expert from its page: down(silu(gate(x)) · up(x))."""

    def run(self, page: np.ndarray, x: np.ndarray) -> np.ndarray:
        """page: uint8, as in pages.py; x: float32 `[T, hidden_size]` → float32 `[T, hidden_size]`.

        What it returns is valid until the next call.
        """
        ...


class OnnxExpertEngine:
    """One weightless graph per page format; the page's tensors are bound as its inputs in place."""

    def __init__(self, model: bytes, where: Path, page_format: PageFormat, chunk: int):
        self._binding = Binding(load_session(model, where))
        self._tensors = [
            (place.name, _ELEMENTS[place.kind], place.shape, place.offset)
            for place in page_format.tensors()
        ]
        if set(self._binding.inputs) != {"x", *(name for name, *_ in self._tensors)}:
            raise BundleError(f"{where} does not fit its pages; compile the bundle again")
        self._out = np.empty((chunk, page_format.hidden_size), np.float32)

    def run(self, page: np.ndarray, x: np.ndarray) -> np.ndarray:
        binding, base, out = self._binding, page.ctypes.data, self._out[: len(x)]
        for name, element, shape, offset in self._tensors:
            binding.raw_input(name, element, shape, base + offset)
        binding.input("x", x)
        binding.output("y", out)
        binding.run()
        return out


def engine_file(layer: ExpertLayer) -> str:
    """The graph of a layer's engine, relative to the bundle."""
    return str(Path(layer.file).with_name("engine.onnx"))


def load_engines(root: Path, manifest: Manifest, chunk: int) -> dict[int, ExpertEngine]:
    """An engine for each MoE layer; layers with the same graph and page format share one."""
    engines: dict[tuple[bytes, PageFormat], ExpertEngine] = {}
    by_layer: dict[int, ExpertEngine] = {}
    for layer in manifest.experts:
        where = root / engine_file(layer)
        try:
            model = where.read_bytes()
        except OSError as error:
            raise BundleError(f"{where} cannot be read ({error.strerror})") from error
        key = (model, layer.format)
        if key not in engines:
            engines[key] = OnnxExpertEngine(model, where, layer.format, chunk)
        by_layer[layer.layer] = engines[key]
    return by_layer


def add_experts(
    out: np.ndarray,
    x: np.ndarray,
    weights: np.ndarray,
    experts: np.ndarray,
    engine: ExpertEngine,
    page: Callable[[int], np.ndarray],
) -> None:
    """Adds each token's weighted experts to `out`, all float32 `[T, H]`; weights, experts `[T, k]`.

    Each expert's page is asked for once, in ascending order, whatever is in the cache: so the sums
    have the same rounding, paged or not.
    """
    top_k = experts.shape[1]
    chosen = experts.ravel()
    order = np.argsort(chosen, kind="stable")
    starts = np.flatnonzero(np.diff(chosen[order], prepend=-1))
    flat_weights = weights.ravel()
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        group = order[start:stop]
        rows = group // top_k
        y = engine.run(page(int(chosen[group[0]])), x[rows])
        y *= flat_weights[group, None]
        out[rows] += y
