"""Routed experts: what an engine is, the native one, the one in ONNX Runtime, and the sum."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import BundleError, InputError
from .bundle import Manifest
from .footprint import Footprint
from .native.kernels import ExpertFormat, NativeKernels
from .native.library import available
from .ort import Binding, load_session
from .pages import PageFormat

KERNELS = ("auto", "native", "onnxruntime")
_log = logging.getLogger(__name__)
_said: set[str] = set()  # reasons for ONNX Runtime that were logged

# How the graph reads the bytes of a page: it may declare another shape than the page's own.
_ELEMENTS: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
}


@dataclass(frozen=True)
class Group:
    """The tokens of one expert: int64 rows of x, and its float32 weight for each."""

    expert: int
    tokens: np.ndarray
    weights: np.ndarray


class ExpertEngine(Protocol):
    """Computes experts from their pages: down(activation(gate(x), up(x))), each projection with
    its bias where the page has one."""

    def add(
        self,
        out: np.ndarray,
        x: np.ndarray,
        groups: Iterable[Group],
        page: Callable[[int], np.ndarray],
    ) -> None:
        """out[tokens] += weights · expert(x[tokens]) for one group after the other; out, x: float32
        `[T, hidden_size]`.

        page: an expert's page, uint8, as in pages.py; valid until the next one is asked for. Each
        is asked for once, in the order of the groups.
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

    def add(
        self,
        out: np.ndarray,
        x: np.ndarray,
        groups: Iterable[Group],
        page: Callable[[int], np.ndarray],
    ) -> None:
        for group in groups:
            y = self._run(page(group.expert), x[group.tokens])
            y *= group.weights[:, None]
            out[group.tokens] += y

    def _run(self, page: np.ndarray, x: np.ndarray) -> np.ndarray:
        binding, base, out = self._binding, page.ctypes.data, self._out[: len(x)]
        for name, element, shape, offset in self._tensors:
            binding.raw_input(name, element, shape, base + offset)
        binding.input("x", x)
        binding.output("y", out)
        binding.run()
        return out


class NativeExpertEngine:
    """The native kernels, straight on the page. They read it while they compute: nothing of it is
    unpacked or copied."""

    def __init__(self, kernels: NativeKernels, page_format: PageFormat):
        self._kernels = kernels
        self._format = ExpertFormat(page_format)

    def add(
        self,
        out: np.ndarray,
        x: np.ndarray,
        groups: Iterable[Group],
        page: Callable[[int], np.ndarray],
    ) -> None:
        for group in groups:
            self._kernels.run_experts(
                self._format,
                [page(group.expert)],
                np.array([0, len(group.tokens)], np.int64),
                group.tokens,
                group.weights,
                x,
                out,
            )


def choose_kernels(
    choice: str, manifest: Manifest | Footprint, threads: int
) -> NativeKernels | None:
    """The native kernels, or None where ONNX Runtime is to compute the experts.

    choice: "native", "onnxruntime", or "auto": native where it can, which is said once if not.

    Raises:
        InputError: another choice, or "native" where it cannot be.
    """
    if choice not in KERNELS:
        raise InputError(f"kernels must be one of {', '.join(KERNELS)}, not {choice}")
    if choice == "onnxruntime":
        return None
    kernels = NativeKernels(threads) if available() else None
    reason = "are not built; install pocketmoe again where there is a C++ compiler"
    if kernels is not None:
        formats = {layer.format for layer in manifest.experts}
        if all(kernels.supports(ExpertFormat(item)) for item in formats):
            return kernels
        reason = "do not know this bundle's page format"
    if choice == "native":
        raise InputError(f"the native kernels {reason}, or use kernels='onnxruntime'")
    if reason not in _said:
        _said.add(reason)
        _log.warning("the native kernels %s; ONNX Runtime computes the experts, slower", reason)
    return None


def native_bytes(kernels: NativeKernels, manifest: Manifest | Footprint, chunk: int) -> int:
    """Memory that the kernels hold once each page format has had a whole chunk."""
    formats = {layer.format for layer in manifest.experts}
    return sum(kernels.scratch_bytes(ExpertFormat(item), chunk, chunk) for item in formats)


def load_engines(
    root: Path, manifest: Manifest, chunk: int, kernels: NativeKernels | None
) -> dict[int, ExpertEngine]:
    """An engine for each MoE layer, native if there are kernels. In ONNX Runtime, layers with the
    same graph and page format share one."""
    if kernels is not None:
        return {
            layer.layer: NativeExpertEngine(kernels, layer.format) for layer in manifest.experts
        }
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
    engine.add(out, x, group_by_expert(weights, experts), page)


def group_by_expert(weights: np.ndarray, experts: np.ndarray) -> Iterator[Group]:
    """In ascending order of experts, and of tokens within each."""
    top_k = experts.shape[1]
    chosen = experts.ravel()
    order = np.argsort(chosen, kind="stable")
    ordered, tokens, shares = chosen[order], order // top_k, weights.ravel()[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        yield Group(int(ordered[start]), tokens[start:stop], shares[start:stop])
