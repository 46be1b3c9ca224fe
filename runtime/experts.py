"""Routed experts: what an engine is, the one in ONNX Runtime, and the weighted sum over experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import BundleError
from .bundle import Manifest
from .ort import Binding, load_session
from .pages import PageFormat

# How the graph reads the bytes of a page: it may declare another shape than the page's own.
_ELEMENTS: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
}


class ExpertEngine(Protocol):
    """Computes one expert from its page: down(activation(gate(x), up(x))), each projection with
    its bias where the page has one."""

    def run(self, page: np.ndarray, x: np.ndarray) -> np.ndarray:
        """page: uint8, as in pages.py; x: float32 `[T, hidden_size]` → float32 `[T, hidden_size]`.

        What it returns is valid until the next call.
        """
        ...


class OnnxExpertEngine:
    """One weightless graph per page format; the page's tensors are bound as its inputs in place."""

    def __init__(self, model: bytes, where: Path, page_format: PageFormat, chunk: int):
        self._binding = Binding(load_session(model, where))
        declared = self._binding.inputs
        places = page_format.tensors()
        if set(declared) != {"x", *(place.name for place in places)}:
            raise BundleError(f"{where} does not fit its pages; compile the bundle again")
        self._tensors: list[tuple[str, Any, tuple[int, ...], int]] = []
        for place in places:
            item = declared[place.name]
            element, shape = _ELEMENTS[item.type], tuple(item.shape)
            if int(np.prod(shape)) * np.dtype(element).itemsize != place.nbytes:
                raise BundleError(f"{where} does not fit its pages; compile the bundle again")
            self._tensors.append((place.name, element, shape, place.offset))
        self._out = np.empty((chunk, page_format.hidden_size), np.float32)

    def run(self, page: np.ndarray, x: np.ndarray) -> np.ndarray:
        binding, base, out = self._binding, page.ctypes.data, self._out[: len(x)]
        for name, element, shape, offset in self._tensors:
            binding.raw_input(name, element, shape, base + offset)
        binding.input("x", x)
        binding.output("y", out)
        binding.run()
        return out


def load_engines(root: Path, manifest: Manifest, chunk: int) -> dict[int, ExpertEngine]:
    """An engine for each MoE layer; layers with the same graph and page format share one."""
    engines: dict[tuple[bytes, PageFormat], ExpertEngine] = {}
    by_layer: dict[int, ExpertEngine] = {}
    for layer in manifest.experts:
        where = root / layer.engine
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
