"""The backbone: its segments, native or ONNX Runtime sessions, bound to buffers made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BundleError
from ..model.rope import RopeSpec, frequencies
from .bundle import Manifest
from .kv_cache import KvCache
from .native_backbone import NativeBackbone
from .native_segment import NativeSegment

if TYPE_CHECKING:
    from .ort import Binding

_BY_LENGTH = ("dynamic", "longrope")  # whose frequencies depend on the length of the sequence


class RopeTable:
    """cos and sin, float32 `[batch, dim / 2]`, of the positions of a batch."""

    def __init__(self, rope: RopeSpec, batch: int):
        self._rope = rope
        self._length = -1
        self._set_frequencies(0)
        self.cos = np.empty((batch, rope.dim // 2), np.float32)
        self.sin = np.empty_like(self.cos)

    def fill(self, start: int, tokens: int, length: int) -> None:
        """length: tokens of the sequence at the end of the call, later batches included."""
        if self._rope.kind in _BY_LENGTH and length != self._length:
            self._set_frequencies(length)
        positions = np.arange(start, start + tokens, dtype=np.float32)
        angles = positions[:, None] * self._frequencies
        for part, function in ((self.cos, np.cos), (self.sin, np.sin)):
            function(angles, out=part[:tokens])
            part[:tokens] *= self._scale

    def _set_frequencies(self, length: int) -> None:
        values, scale = frequencies(self._rope, length)
        self._frequencies, self._scale = np.array(values, np.float32), np.float32(scale)
        self._length = length


class Backbone:
    """Runs segment after segment over batches of tokens; a graph gets up to `chunk` of them at
    once, which bounds its working memory.

    The residual stream and the experts' sums alternate between two buffers each, as a segment
    reads one while it writes the other. expert_input `[batch, H]`; weights and ids by `routing`.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        cache: KvCache,
        chunk: int,
        batch: int,
        native: NativeBackbone,
    ):
        spec = manifest.spec
        self._cache = cache
        self._chunk = chunk
        self._rope = RopeTable(spec.rope, batch)
        shape = (batch, spec.hidden_size)
        self._hidden = [np.zeros(shape, np.float32) for _ in range(2)]
        self._moe = [np.zeros(shape, np.float32) for _ in range(2)]
        self._expert_input = np.zeros(shape, np.float32)
        routers = [rule.router for rule in spec.layers if rule.router is not None]
        slots = batch * max((router.top_k for router in routers), default=1)
        self._weights = np.zeros(slots, np.float32)
        self._ids = np.zeros(slots, np.int64)
        self._rows = np.zeros(chunk, np.int64)
        self._top_k = [
            router.top_k if segment.router_layer is not None and router is not None else 0
            for segment in manifest.segments
            for router in [spec.layers[segment.router_layer or 0].router]
        ]
        native.load(chunk)
        self._segments: list[Binding | NativeSegment] = []
        for index, segment in enumerate(manifest.segments):
            binding: Binding | NativeSegment
            if index in native.segments:
                binding = native.segments[index]
            else:
                from .ort import Binding, load_session

                binding = Binding(load_session(root / segment.file, root / segment.file))
            self._segments.append(binding)
            self._bind_cache(binding, segment.layers, root / segment.file)
        self._bound = [(0, 0)] * len(self._segments)
        self._attends = [bool(segment.layers) for segment in manifest.segments]

    def __len__(self) -> int:
        return len(self._segments)

    def begin(self, tokens: int, length: int) -> np.ndarray:
        """Starts a batch of a call after which `length` tokens will have been seen; returns where
        its embedding rows go, float32 `[tokens, H]`."""
        self._cache.begin(tokens)
        self._rope.fill(self._cache.position, tokens, length)
        return self._hidden[0][:tokens]

    def run(self, index: int, tokens: int) -> dict[str, np.ndarray]:
        """Runs a segment that ends before pages, chunk by chunk; returns its outputs for all
        tokens of the batch, valid until the next run.

        `moe_base` is always there (zeros where the layer has no shared expert): what experts add
        to it, the next segment reads.
        """
        binding = self._segments[index]
        if "moe_base" not in binding.outputs:
            self._outputs(index, 0, tokens)["moe_base"][:] = 0
        for start in range(0, tokens, self._chunk):
            self._run_chunk(index, start, min(self._chunk, tokens - start))
        return self._outputs(index, 0, tokens)

    def run_last(self, tokens: int, logits: np.ndarray) -> None:
        """Runs the last segment; fills `logits`, float32 `[R, V]`, for the last R tokens."""
        index = len(self._segments) - 1
        first = tokens - len(logits)  # the first whose logits are wanted
        for start in range(0, tokens, self._chunk):
            stop = min(start + self._chunk, tokens)
            wanted = max(first, start)
            if wanted >= stop:
                if not self._attends[index]:
                    continue
                wanted = stop - 1  # at least one row; the next chunk overwrites it
            rows = self._rows[: stop - wanted]
            rows[:] = np.arange(wanted - start, stop - start)
            binding = self._segments[index]
            binding.input("rows", rows)
            at = max(0, wanted - first)
            binding.output("logits", logits[at : at + len(rows)])
            self._run_chunk(index, start, stop - start)

    def _run_chunk(self, index: int, start: int, tokens: int) -> None:
        self._cache.place(start, tokens)
        if self._bound[index] != (start, tokens):
            self._bind(index, start, tokens)
        self._segments[index].run()

    def _outputs(self, index: int, start: int, tokens: int) -> dict[str, np.ndarray]:
        top_k, after, stop = self._top_k[index], (index + 1) % 2, start + tokens
        routes = slice(start * top_k, stop * top_k)
        return {
            "hidden_out": self._hidden[after][start:stop],
            "moe_base": self._moe[after][start:stop],
            "expert_input": self._expert_input[start:stop],
            "expert_weights": self._weights[routes].reshape(tokens, top_k),
            "expert_ids": self._ids[routes].reshape(tokens, top_k),
        }

    def _bind(self, index: int, start: int, tokens: int) -> None:
        binding, part = self._segments[index], slice(start, start + tokens)
        sources = {
            "hidden": self._hidden[index % 2],
            "moe_out": self._moe[index % 2],
            "cos": self._rope.cos,
            "sin": self._rope.sin,
        }
        for name, array in sources.items():
            if name in binding.inputs:
                binding.input(name, array[part])
        for name, array in self._outputs(index, start, tokens).items():
            if name in binding.outputs:
                binding.output(name, array)
        self._bound[index] = (start, tokens)

    def _bind_cache(
        self, binding: Binding | NativeSegment, layers: tuple[int, ...], where: Path
    ) -> None:
        cache = self._cache
        fixed = {}
        for layer in layers:
            fixed[f"past_key.{layer}"] = cache.keys[layer]
            fixed[f"past_value.{layer}"] = cache.values[layer]
        for kind, span in cache.spans.items():
            fixed[f"seqlens_k.{kind}"] = span.seqlens_k
            fixed[f"total_length.{kind}"] = span.total_length
        known = {*fixed, "hidden", "moe_out", "cos", "sin", "rows"}
        unknown = set(binding.inputs) - known
        if unknown:
            raise BundleError(f"{where} has an unknown input {min(unknown)}; update pocketmoe")
        for name, array in fixed.items():
            if name in binding.inputs:
                binding.input(name, array)
            if name.startswith("past_") and name in binding.inputs:
                binding.output(name.replace("past", "present", 1), array)
