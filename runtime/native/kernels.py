"""The native kernels for experts and quantized products, on numpy arrays.

Calls release the interpreter's lock. Arrays are checked here; the library trusts their sizes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from typing import Any

import numpy as np

from .library import (
    ACTIVATIONS,
    PRECISIONS,
    FormatStruct,
    MatrixStruct,
    instruction_sets,
    load_library,
)

PAGE_ALIGNMENT = 64  # of a page in memory
# How long a worker stays awake after a call, ready for the next one. ONNX Runtime computes between
# the calls of two layers: its threads are to have the cores then.
DEFAULT_SPIN_US = 20


class ExpertFormat:
    """A `PageFormat` as the library wants it. Any object with the fields of PageFormat will do."""

    def __init__(self, page_format: Any):
        places = {place.name: place for place in page_format.tensors()}
        activation = page_format.activation
        offsets = [
            places[name + part].offset if name + part in places else -1
            for name in ("gate", "up", "down")
            for part in ("", "_scales", "_bias")
        ]
        self.hidden_size: int = page_format.hidden_size
        self.nbytes = max(place.offset + place.nbytes for place in places.values())
        self.struct = FormatStruct(
            PRECISIONS[page_format.precision],
            page_format.block_size,
            ACTIVATIONS[activation.kind],
            activation.alpha,
            activation.limit,
            0,
            page_format.hidden_size,
            page_format.intermediate_size,
            (c_int64 * 9)(*offsets),
        )


class NativeKernels:
    """Threads and scratch memory for calls. Usable from any thread; calls wait for one another."""

    def __init__(
        self,
        threads: int,
        *,
        spin_us: int = DEFAULT_SPIN_US,
        instruction_set: str | None = None,
        library: ctypes.CDLL | None = None,
    ):
        """threads: the caller's own included. instruction_set, library: for tests.

        Raises:
            RuntimeError: the library is missing, or this machine lacks the instruction set.
        """
        found = library or load_library()
        if found is None:
            raise RuntimeError("the native kernels are not built")
        self._library = found
        name = instruction_set.encode() if instruction_set is not None else None
        self._handle: int | None = found.pm_create(threads, spin_us, name)
        if not self._handle:
            raise RuntimeError(
                f"no native kernels with {threads} threads for {instruction_set or 'any'} "
                f"instruction set; there are {', '.join(instruction_sets(found))}"
            )
        self.threads = threads

    @property
    def instruction_set(self) -> str:
        return str(self._library.pm_instruction_set(self._handle).decode())

    @property
    def missing_threads(self) -> int:
        """Threads that the system refused to make; known after the first call that computes."""
        return int(self._library.pm_missing_threads(self._handle))

    @property
    def nbytes(self) -> int:
        """Scratch memory held. It grows to what the largest call wanted."""
        return int(self._library.pm_memory(self._handle))

    def supports(self, expert_format: ExpertFormat) -> bool:
        return self.scratch_bytes(expert_format, 1, 1) >= 0

    def scratch_bytes(self, expert_format: ExpertFormat, tokens: int, rows: int) -> int:
        """What nbytes can grow to by calls with up to so many tokens, and rows of work of all
        experts of a call: tokens · top_k."""
        return int(
            self._library.pm_scratch_bytes(
                self._handle, ctypes.byref(expert_format.struct), tokens, rows
            )
        )

    def run_experts(
        self,
        expert_format: ExpertFormat,
        pages: Sequence[np.ndarray],
        starts: np.ndarray,
        tokens: np.ndarray,
        weights: np.ndarray,
        x: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """out[tokens[p]] += weights[p] · expert(x[tokens[p]]), for expert e's p from starts[e] up
        to starts[e + 1]: experts one after another, in the order given.

        pages: uint8 each, in memory aligned to 64 bytes; starts: int64 `[experts + 1]`; tokens:
        int64 and weights: float32 `[starts[-1]]`; x, out: float32 `[T, hidden]`.
        """
        _check(out, np.float32, x.shape, "out", writable=True)
        arguments = self._batch(expert_format, pages, starts, tokens, weights, x)
        self._done(self._library.pm_run_experts(*arguments, out.ctypes.data))

    def expert_terms(
        self,
        expert_format: ExpertFormat,
        pages: Sequence[np.ndarray],
        starts: np.ndarray,
        tokens: np.ndarray,
        weights: np.ndarray,
        x: np.ndarray,
        terms: np.ndarray,
    ) -> None:
        """The terms that run_experts adds, into `terms`, float32 `[starts[-1], hidden]`.

        Experts may come in any order and in any number of calls: `add_terms` in ascending order of
        experts then gives the bytes that one run_experts over all of them gives.
        """
        shape = (int(starts[-1]), expert_format.hidden_size)
        _check(terms, np.float32, shape, "terms", writable=True)
        arguments = self._batch(expert_format, pages, starts, tokens, weights, x)
        self._done(self._library.pm_expert_terms(*arguments, terms.ctypes.data))

    def add_terms(self, tokens: np.ndarray, terms: np.ndarray, out: np.ndarray) -> None:
        """out[tokens[p]] += terms[p], one after another."""
        hidden = out.shape[1]
        _check(tokens, np.int64, (len(tokens),), "tokens")
        _check(terms, np.float32, (len(tokens), hidden), "terms")
        _check(out, np.float32, out.shape, "out", writable=True)
        self._done(
            self._library.pm_add_terms(
                self._handle, len(tokens), hidden, tokens.ctypes.data, terms.ctypes.data, len(out),
                out.ctypes.data,
            )
        )  # fmt: skip

    def product(
        self,
        weights: np.ndarray,
        x: np.ndarray,
        *,
        precision: str,
        scales: np.ndarray | None = None,
        bias: np.ndarray | None = None,
    ) -> np.ndarray:
        """x · Wᵀ + bias, float32 `[T, rows]`; x: float32 `[T, columns]`.

        weights: `[rows, columns]`, int4 as uint8 `[rows, columns / 2]`; scales: fp16 or fp32
        `[rows, columns / block]`; bias: float32 `[rows]`.
        """
        dtype = {"int4": np.uint8, "int8": np.int8, "fp16": np.float16, "fp32": np.float32}
        rows, columns = len(weights), x.shape[1]
        stored = columns // 2 if precision == "int4" else columns
        _check(weights, dtype[precision], (rows, stored), "weights")
        _check(x, np.float32, x.shape, "x")
        block = 0
        if precision in ("int4", "int8"):
            if scales is None or scales.ndim != 2 or columns % scales.shape[1]:
                raise ValueError("scales must divide the columns into blocks")
            wide = scales.dtype == np.float32
            _check(scales, np.float32 if wide else np.float16, (rows, scales.shape[1]), "scales")
            block = columns // scales.shape[1]
        elif scales is not None:
            raise ValueError(f"{precision} weights have no scales")
        if bias is not None:
            _check(bias, np.float32, (rows,), "bias")
        matrix = MatrixStruct(
            PRECISIONS[precision], block, int(scales is not None and scales.dtype == np.float32),
            0, rows, columns, weights.ctypes.data,
            scales.ctypes.data if scales is not None else None,
            bias.ctypes.data if bias is not None else None,
        )  # fmt: skip
        y = np.empty((len(x), rows), np.float32)
        self._done(
            self._library.pm_product(
                self._handle, ctypes.byref(matrix), len(x), x.ctypes.data, y.ctypes.data
            )
        )
        return y

    def product_bytes(self, matrix: MatrixStruct, tokens: int) -> int:
        """What nbytes can grow to by products with this matrix of up to so many tokens, and by
        attention; negative where the kernels do not know its form."""
        return int(self._library.pm_product_bytes(self._handle, ctypes.byref(matrix), tokens))

    def run_steps(self, steps: Any, count: int, buffers: Any, parts: Any, n_parts: int) -> None:
        """See `Steps` in steps.py, which makes the arrays of structures."""
        self._done(self._library.pm_run_steps(self._handle, steps, count, buffers, parts, n_parts))

    def exponentials(self, x: np.ndarray) -> np.ndarray:
        """e^x, float32 as x: the one of softmaxes, gates and activations. 0 below -87.68, infinity
        above 88.37; the same bytes from every instruction set."""
        _check(x, np.float32, x.shape, "x")
        y = np.empty_like(x)
        self._library.pm_exponentials(self._handle, x.ctypes.data, x.size, y.ctypes.data)
        return y

    def exponentials64(self, x: np.ndarray) -> None:
        """x = e^x in place, float64: see `portable_math.exponentials`."""
        _check(x, np.float64, x.shape, "x", writable=True)
        self._library.pm_exponentials64(self._handle, x.ctypes.data, x.size)

    def rotary_table(
        self, frequencies: np.ndarray, start: int, scale: float, cos: np.ndarray, sin: np.ndarray
    ) -> None:
        """See `portable_math.rotary_table`."""
        tokens, pairs = cos.shape
        _check(frequencies, np.float32, (pairs,), "frequencies")
        _check(cos, np.float32, (tokens, pairs), "cos", writable=True)
        _check(sin, np.float32, (tokens, pairs), "sin", writable=True)
        self._library.pm_rotary_table(
            self._handle, frequencies.ctypes.data, pairs, start, tokens, scale, cos.ctypes.data,
            sin.ctypes.data,
        )  # fmt: skip

    def read(self, data: np.ndarray) -> int:
        """Reads uint8 memory with all threads, to measure its bandwidth."""
        _check(data, np.uint8, data.shape, "data")
        whole = data.nbytes // 128 * 128
        return int(self._library.pm_read(self._handle, data.ctypes.data, whole))

    def close(self) -> None:
        """Ends its threads. No call may be running."""
        if self._handle:
            self._library.pm_destroy(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def _batch(
        self,
        expert_format: ExpertFormat,
        pages: Sequence[np.ndarray],
        starts: np.ndarray,
        tokens: np.ndarray,
        weights: np.ndarray,
        x: np.ndarray,
    ) -> tuple[Any, ...]:
        _check(x, np.float32, (len(x), expert_format.hidden_size), "x")
        _check(starts, np.int64, (len(pages) + 1,), "starts")
        count = int(starts[-1])
        _check(tokens, np.int64, (count,), "tokens")
        _check(weights, np.float32, (count,), "weights")
        for page in pages:
            if page.dtype != np.uint8 or page.ndim != 1 or not page.flags.c_contiguous:
                raise ValueError("a page must be a contiguous array of uint8")
            if page.nbytes < expert_format.nbytes:
                raise ValueError(f"a page of {page.nbytes} bytes is short of its tensors")
        addresses = (c_void_p * len(pages))(*[page.ctypes.data for page in pages])
        return (
            self._handle, ctypes.byref(expert_format.struct), len(pages), addresses,
            starts.ctypes.data, tokens.ctypes.data, weights.ctypes.data, len(x), x.ctypes.data,
        )  # fmt: skip

    @staticmethod
    def _done(code: int) -> None:
        if code == -1:
            raise ValueError("the native kernels refused their arguments")
        if code == -2:
            raise MemoryError("no memory for the native kernels")


def _check(
    array: np.ndarray, dtype: Any, shape: tuple[int, ...], name: str, *, writable: bool = False
) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be a contiguous array of {np.dtype(dtype)} {list(shape)}, not "
            f"{array.dtype} {list(array.shape)}"
        )
    if writable and not array.flags.writeable:
        raise ValueError(f"{name} must be writable")
