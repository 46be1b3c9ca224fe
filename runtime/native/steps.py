"""Steps of the native kernels on numpy arrays: a piece of a decoder in one call.

The structures are those of pm_steps.h. Buffers have names here and numbers there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from .kernels import NativeKernels
from .library import ACTIVATIONS, PRECISIONS, MatrixStruct

MOST_PRODUCTS = 4  # of one step
MOST_PAIRS = 512  # that a head is rotated by
_SCORINGS = {"softmax": 0, "sigmoid": 1, "sparsemixer": 2, "always": 3}
(_ADD, _NORM, _PRODUCTS, _CLIP, _SCALE, _GATE, _ROTATE, _ATTEND, _ACTIVATE, _ROUTE, _LAST) = range(
    11
)


class BufferStruct(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("width", c_int64))


class StepStruct(ctypes.Structure):
    _fields_ = (("op", c_int32), ("reserved", c_int32), ("what", c_void_p))


class AddStruct(ctypes.Structure):
    _fields_ = (("a", c_int32), ("b", c_int32), ("to", c_int32), ("factor", c_float))


class NormStruct(ctypes.Structure):
    _fields_ = (
        ("from_", c_int32), ("to", c_int32), ("groups", c_int32), ("eps", c_float),
        ("size", c_int64), ("weight", c_void_p), ("bias", c_void_p),
    )  # fmt: skip


class ProductsStruct(ctypes.Structure):
    _fields_ = (
        ("from_", c_int32), ("count", c_int32), ("to", c_int32 * MOST_PRODUCTS),
        ("matrices", POINTER(MatrixStruct)),
    )  # fmt: skip


class MapStruct(ctypes.Structure):
    _fields_ = (("from_", c_int32), ("with_", c_int32), ("to", c_int32), ("value", c_float))


class RotateStruct(ctypes.Structure):
    _fields_ = tuple((name, c_int32) for name in ("of", "cos", "sin", "heads", "interleaved"))


class AttendStruct(ctypes.Structure):
    _fields_ = (
        ("q", c_int32), ("k", c_int32), ("v", c_int32), ("to", c_int32),
        ("heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32), ("scale", c_float),
        ("cache", c_int32), ("reserved", c_int32), ("window", c_int64), ("sinks", c_void_p),
    )  # fmt: skip


class CacheStruct(ctypes.Structure):
    _fields_ = (
        ("keys", c_void_p), ("values", c_void_p), ("capacity", c_int64), ("place", c_void_p),
    )  # fmt: skip


class PartStruct(ctypes.Structure):
    _fields_ = (
        ("tokens", c_int64), ("kept", c_int64), ("ahead", c_int64), ("caches", c_void_p),
    )  # fmt: skip


class ActivateStruct(ctypes.Structure):
    _fields_ = (
        ("gate", c_int32), ("up", c_int32), ("to", c_int32),
        ("activation", c_int32), ("alpha", c_float), ("limit", c_float),
    )  # fmt: skip


class RouteStruct(ctypes.Structure):
    _fields_ = (
        ("logits", c_int32), ("weights", c_int32), ("ids", c_int32),
        ("experts", c_int32), ("top_k", c_int32), ("scoring", c_int32),
        ("normalize", c_int32), ("groups", c_int32), ("top_groups", c_int32),
        ("two_best", c_int32), ("scale", c_float), ("least_sum", c_float), ("jitter", c_float),
        ("reserved", c_int32), ("correction", c_void_p),
    )  # fmt: skip


@dataclass(frozen=True)
class WeightMatrix:
    """A matrix as the kernels read it; see `NativeKernels.product`. Scales are float32."""

    precision: str
    block: int
    rows: int
    columns: int
    weights: np.ndarray
    scales: np.ndarray | None = None
    bias: np.ndarray | None = None

    def struct(self) -> MatrixStruct:
        return MatrixStruct(
            PRECISIONS[self.precision], self.block, 1, 0, self.rows, self.columns,
            self.weights.ctypes.data, _address(self.scales), _address(self.bias),
        )  # fmt: skip


class Caches:
    """The keys and values of one sequence, by layer.

    Of each layer: keys and values, float32 `[1, kv_heads, capacity, head_dim]`, and int64 `[2]`:
    how many positions are filled, and how many were dropped before the first of them. All are read
    when steps run.
    """

    def __init__(self, layers: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]):
        self._alive = list(layers)
        self.structs = (CacheStruct * len(self._alive))()
        for struct, (keys, values, place) in zip(self.structs, self._alive, strict=True):
            struct.keys, struct.values = keys.ctypes.data, values.ctypes.data
            struct.capacity, struct.place = keys.shape[2], place.ctypes.data
        self.address = ctypes.addressof(self.structs)


class Parts:
    """Whose rows a call is for: those of one sequence after those of another.

    Of each part: its tokens; how many of the last ones are kept by `keep_last`; how many tokens of
    the sequence run before these in the same batch; its caches, None where nothing attends.
    """

    def __init__(self, parts: Sequence[tuple[int, int, int, Caches | None]]):
        self._alive = [caches for *_, caches in parts]
        self.structs = (PartStruct * len(parts))(*[
            PartStruct(tokens, kept, ahead, None if caches is None else caches.address)
            for tokens, kept, ahead, caches in parts
        ])  # fmt: skip
        self.kept = sum(kept for _, kept, _, _ in parts)


class Steps:
    """A list of steps, and the buffers that they work on.

    Each buffer is an array `[rows, width]` that its owner sets before it runs, or that `hold` set
    for good. Arrays given to a step stay alive with this.
    """

    def __init__(self, kernels: NativeKernels):
        self._kernels = kernels
        self._numbers: dict[str, int] = {}
        self._steps: list[tuple[int, ctypes.Structure]] = []
        self._matrices: list[WeightMatrix] = []
        self._alive: list[Any] = []
        self._ready: tuple[Any, Any] | None = None

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of all buffers, in the order in which steps came to use them."""
        return tuple(self._numbers)

    def scratch_bytes(self, tokens: int) -> int:
        """What the kernels hold at most once these steps ran for so many rows."""
        return max(
            (self._kernels.product_bytes(matrix.struct(), tokens) for matrix in self._matrices),
            default=0,
        )

    def add(self, a: str, b: str, to: str, factor: float = 1.0) -> None:
        """to = a + factor · b"""
        self._append(_ADD, AddStruct(self._of(a), self._of(b), self._of(to), factor))

    def norm(
        self,
        source: str,
        to: str,
        weight: np.ndarray,
        bias: np.ndarray | None,
        eps: float,
        groups: int = 1,
    ) -> None:
        """Each row's `groups` parts of len(weight): RMSNorm, or LayerNorm where there is a bias."""
        self._alive += [weight, bias]
        numbers = self._of(source), self._of(to)
        self._append(
            _NORM,
            NormStruct(
                *numbers, groups, eps, weight.size, weight.ctypes.data, _address(bias)
            ),
        )  # fmt: skip

    def products(self, source: str, matrices: Sequence[tuple[str, WeightMatrix]]) -> None:
        """For each name: source · Wᵀ + bias. Those of one form go through the threads together."""
        forms: dict[tuple[str, int], list[tuple[str, WeightMatrix]]] = {}
        for name, matrix in matrices:
            forms.setdefault((matrix.precision, matrix.block), []).append((name, matrix))
        for group in forms.values():
            for start in range(0, len(group), MOST_PRODUCTS):
                part = group[start : start + MOST_PRODUCTS]
                structs = (MatrixStruct * len(part))(*[matrix.struct() for _, matrix in part])
                to = (c_int32 * MOST_PRODUCTS)(*[self._of(name) for name, _ in part])
                self._alive.append(structs)
                self._matrices += [matrix for _, matrix in part]
                self._append(_PRODUCTS, ProductsStruct(self._of(source), len(part), to, structs))

    def clip(self, name: str, limit: float) -> None:
        self._append(_CLIP, MapStruct(self._of(name), 0, self._of(name), limit))

    def multiply(self, source: str, to: str, factor: float) -> None:
        self._append(_SCALE, MapStruct(self._of(source), 0, self._of(to), factor))

    def gate(self, name: str, by: str) -> None:
        """name · sigmoid(by); by: as wide, or one element."""
        self._append(_GATE, MapStruct(self._of(name), self._of(by), self._of(name), 0.0))

    def rotate(self, name: str, heads: int, *, interleaved: bool) -> None:
        """By the rows of the buffers cos and sin."""
        of, cos, sin = self._of(name), self._of("cos"), self._of("sin")
        self._append(_ROTATE, RotateStruct(of, cos, sin, heads, int(interleaved)))

    def attend(
        self,
        layer: int,
        names: tuple[str, str, str, str],
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        window: int | None,
        sinks: np.ndarray | None,
    ) -> None:
        """names: of queries, keys, values and what comes out. Keys and values are kept in the
        caches of each part, those of `layer`."""
        self._alive.append(sinks)
        q, k, v, to = (self._of(name) for name in names)
        struct = AttendStruct(
            q, k, v, to, heads, kv_heads, head_dim, scale, layer, 0, window or 0, _address(sinks)
        )
        self._append(_ATTEND, struct)

    def activate(self, gate: str, up: str, to: str, activation: Any) -> None:
        """activation: a model.spec.Activation."""
        numbers = self._of(gate), self._of(up), self._of(to)
        kind = ACTIVATIONS[activation.kind]
        self._append(_ACTIVATE, ActivateStruct(*numbers, kind, activation.alpha, activation.limit))

    def route(
        self, logits: str | None, weights: str, ids: str, router: Any, correction: np.ndarray | None
    ) -> None:
        """router: a model.spec.RouterSpec; logits: None for one that needs none."""
        self._alive.append(correction)
        self._append(
            _ROUTE,
            RouteStruct(
                -1 if logits is None else self._of(logits), self._of(weights), self._of(ids),
                router.num_experts, router.top_k, _SCORINGS[router.scoring],
                int(router.normalize), router.num_groups, router.top_groups,
                int(router.group_score == "top2"), router.scale, router.least_sum, router.jitter,
                0, _address(correction),
            ),
        )  # fmt: skip

    def keep_last(self, source: str, to: str) -> None:
        """The last rows of each part alone go on, as many as it says."""
        self._append(_LAST, MapStruct(self._of(source), 0, self._of(to), 0.0))

    def set_buffer(self, name: str, array: np.ndarray) -> None:
        """float32, ids int64, `[rows, width]`; its owner keeps it alive."""
        buffers, _ = self._prepared()
        buffer = buffers[self._numbers[name]]
        buffer.data, buffer.width = array.ctypes.data, array.shape[1]

    def run(self, parts: Parts) -> None:
        buffers, steps = self._prepared()
        structs = parts.structs
        self._kernels.run_steps(steps, len(self._steps), buffers, structs, len(structs))

    def _prepared(self) -> tuple[Any, Any]:
        if self._ready is None:
            steps = [StepStruct(op, 0, ctypes.addressof(struct)) for op, struct in self._steps]
            self._ready = (
                (BufferStruct * len(self._numbers))(),
                (StepStruct * len(steps))(*steps),
            )
        return self._ready

    def _of(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def _append(self, op: int, struct: ctypes.Structure) -> None:
        self._steps.append((op, struct))


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data
