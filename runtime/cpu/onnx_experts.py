"""Routed experts in ONNX Runtime: a graph without weights for each page format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle.pages import PageFormat
from ...errors import BundleError
from ..routing import Routing
from .engine import PageSource

_FP8 = 17  # ONNX's number of e4m3, for which numpy has no type
# How the graph reads the bytes of a page: it may declare another shape than the page's own.
_ELEMENTS: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(float8e4m3fn)": _FP8,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
}


class OnnxExpert:
    """Any expert of a page format; the page's tensors are bound as its inputs in place."""

    def __init__(self, model: bytes, where: Path, page_format: PageFormat, batch: int):
        from .ort import Binding, load_session

        self._binding = Binding(load_session(model, where))
        declared = self._binding.inputs
        places = page_format.tensors()
        if set(declared) != {"x", *(place.name for place in places)}:
            raise BundleError(f"{where} does not fit its pages; compile the bundle again")
        self._tensors: list[tuple[str, Any, tuple[int, ...], int]] = []
        for place in places:
            item = declared[place.name]
            element, shape = _ELEMENTS[item.type], tuple(item.shape)
            itemsize = 1 if element == _FP8 else np.dtype(element).itemsize
            if int(np.prod(shape)) * itemsize != place.nbytes:
                raise BundleError(f"{where} does not fit its pages; compile the bundle again")
            self._tensors.append((place.name, element, shape, place.offset))
        self._out = np.empty((batch, page_format.hidden_size), np.float32)

    def run(self, page: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Its output `[T, hidden]`, valid until the next call."""
        binding, base, out = self._binding, page.ctypes.data, self._out[: len(x)]
        for name, element, shape, offset in self._tensors:
            binding.raw_input(name, element, shape, base + offset)
        binding.input("x", x)
        binding.output("y", out)
        binding.run()
        return out


class OnnxExpertEngine:
    """See ExpertEngine. kinds: of each expert, its index in `graphs`; empty for all the first."""

    def __init__(self, graphs: Sequence[OnnxExpert], kinds: Sequence[int] = ()):
        self._graphs, self._kinds = graphs, kinds

    def add(self, out: np.ndarray, x: np.ndarray, routing: Routing, pages: PageSource) -> None:
        index = 0
        for batch in pages(True):
            for expert, slot in batch:
                one = routing.part(index, index + 1)
                graph = self._graphs[self._kinds[expert] if self._kinds else 0]
                y = graph.run(slot.data, x[one.tokens])
                y *= one.weights[:, None]
                out[one.tokens] += y
                index += 1
