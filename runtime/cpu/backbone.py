"""The backbone: its segments, native or ONNX Runtime sessions, bound to buffers made once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ...bundle.manifest import Manifest
from ...errors import BundleError
from ..native.steps import Caches, Parts
from ..rope_table import RopeTable
from ..runner import BatchPart
from .kv_cache import KvCache
from .native_backbone import NativeBackbone
from .native_segment import NativeSegment

if TYPE_CHECKING:
    from .ort import Binding


@dataclass(frozen=True)
class Rows:
    """Rows [start, start + tokens) of a batch, at most a chunk, which native segments run at once.

    logits: the first of the rows that are wanted, counted over the batch; parts.kept of them.
    """

    start: int
    tokens: int
    logits: int
    parts: Parts


class Backbone:
    """Runs segment after segment over batches of tokens of one or more sequences; a graph gets up
    to `chunk` of them at once, which bounds its working memory.

    Native segments run the rows of all sequences together. In ONNX Runtime each sequence runs by
    itself, in chunks that are the same whatever else is in the batch: products of other sizes
    round differently there.

    The residual stream and the experts' sums alternate between two buffers each, as a segment
    reads one while it writes the other. expert_input `[batch, H]`; weights and ids by `routing`.
    """

    def __init__(
        self, root: Path, manifest: Manifest, chunk: int, batch: int, native: NativeBackbone
    ):
        spec = manifest.spec
        self._root = root
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
        self._logits = np.empty((0, spec.vocab_size), np.float32)
        self._top_k = [
            router.top_k if segment.router_layer is not None and router is not None else 0
            for segment in manifest.segments
            for router in [spec.layers[segment.router_layer or 0].router]
        ]
        native.load(chunk)
        self._native = native.segments
        self._described = manifest.segments
        self._sessions: dict[int, Any] = {}
        for index, segment in enumerate(manifest.segments):
            if index not in self._native:
                from .ort import load_session

                self._sessions[index] = load_session(root / segment.file, root / segment.file)
        self._bound = [(0, 0)] * len(manifest.segments)  # of native segments
        self._parts: list[tuple[int, KvCache, BatchPart]] = []  # with the rows where they start
        self._ranges: list[Rows] = []

    def begin(self, parts: Sequence[BatchPart]) -> np.ndarray:
        """Starts a batch; returns where its embedding rows go, float32 `[tokens, H]`, those of a
        part behind those of the part before."""
        self._parts = []
        start = 0
        for part in parts:
            cache, tokens = cast(KvCache, part.cache), len(part.ids)
            cache.begin(tokens)
            self._rope.fill(cache.position, tokens, part.length, start)
            self._parts.append((start, cache, part))
            start += tokens
        self._ranges = self._cut(self._parts) if self._native else []
        return self._hidden[0][:start]

    def run(self, index: int, tokens: int) -> dict[str, np.ndarray]:
        """Runs a segment that ends before pages; returns its outputs for all tokens of the batch,
        valid until the next run.

        `moe_base` is always there (zeros where the layer has no shared expert): what experts add
        to it, the next segment reads.
        """
        outputs = self._outputs(index, 0, tokens)
        if index in self._native:
            if "moe_base" not in self._native[index].outputs:
                outputs["moe_base"][:] = 0
            for rows in self._ranges:
                self._run_rows(index, rows)
            return outputs
        for start, cache, part in self._parts:
            binding = self._binding(index, cache)
            if "moe_base" not in binding.outputs:
                self._outputs(index, start, len(part.ids))["moe_base"][:] = 0
            for ahead, count in self._chunks(len(part.ids)):
                self._run_chunk(index, binding, cache, start, ahead, count)
        return outputs

    def run_last(self) -> None:
        """Runs the last segment, and fills the logits of all parts."""
        index = len(self._described) - 1
        if index not in self._native:
            for start, cache, part in self._parts:
                self._run_last_of(index, start, cache, part)
        elif len(self._parts) == 1:
            self._run_last_rows(index, self._ranges, self._parts[0][2].logits)
        elif all(len(part.logits) == 1 for _, _, part in self._parts):
            count = len(self._parts)
            if len(self._logits) < count:
                self._logits = np.empty((count, self._logits.shape[1]), np.float32)
            self._run_last_rows(index, self._ranges, self._logits)
            for row, (_, _, part) in zip(self._logits, self._parts, strict=False):
                part.logits[0] = row
        else:
            for one in self._parts:
                self._run_last_rows(index, self._cut([one]), one[2].logits)

    def _run_last_rows(self, index: int, ranges: Sequence[Rows], logits: np.ndarray) -> None:
        attends = bool(self._described[index].layers)
        for rows in ranges:
            kept = rows.parts.kept
            if kept or attends:
                self._native[index].output("logits", logits[rows.logits : rows.logits + kept])
                self._run_rows(index, rows)

    def _run_rows(self, index: int, rows: Rows) -> None:
        segment, state = self._native[index], (rows.start, rows.tokens)
        if self._bound[index] != state:
            self._bind(segment, index, *state)
            self._bound[index] = state
        segment.run(rows.parts)

    def _cut(self, parts: Sequence[tuple[int, KvCache, BatchPart]]) -> list[Rows]:
        """The rows of parts that lie next to one another."""
        last_start, _, last = parts[-1]
        end, rows = last_start + len(last.ids), 0
        ranges = []
        for low in range(parts[0][0], end, self._chunk):
            high = min(low + self._chunk, end)
            inside = []
            for start, cache, part in parts:
                first, stop = max(low, start), min(high, start + len(part.ids))
                if first < stop:
                    wanted = max(first, start + len(part.ids) - len(part.logits))
                    kept = max(0, stop - wanted)
                    inside.append((stop - first, kept, first - start, caches_of(cache)))
            made = Parts(inside)
            ranges.append(Rows(low, high - low, rows, made))
            rows += made.kept
        return ranges

    def _run_last_of(self, index: int, start: int, cache: KvCache, part: BatchPart) -> None:
        """The last segment in ONNX Runtime, for one part."""
        tokens, binding = len(part.ids), self._binding(index, cache)
        first = tokens - len(part.logits)  # the first whose logits are wanted
        for ahead, count in self._chunks(tokens):
            stop = ahead + count
            wanted = max(first, ahead)
            if wanted >= stop:
                if not self._described[index].layers:
                    continue
                wanted = stop - 1  # at least one row; the next chunk overwrites it
            rows = self._rows[: stop - wanted]
            rows[:] = np.arange(wanted - ahead, stop - ahead)
            binding.input("rows", rows)
            at = max(0, wanted - first)
            binding.output("logits", part.logits[at : at + len(rows)])
            self._run_chunk(index, binding, cache, start, ahead, count)

    def _chunks(self, tokens: int) -> Iterator[tuple[int, int]]:
        for ahead in range(0, tokens, self._chunk):
            yield ahead, min(self._chunk, tokens - ahead)

    def _run_chunk(
        self, index: int, binding: Binding, cache: KvCache, start: int, ahead: int, tokens: int
    ) -> None:
        cache.place(ahead, tokens)
        state = (start + ahead, tokens)
        if cache.kept.get(("bound", index)) != state:
            self._bind(binding, index, *state)
            cache.kept["bound", index] = state
        binding.run()

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

    def _bind(self, binding: Binding | NativeSegment, index: int, start: int, tokens: int) -> None:
        part = slice(start, start + tokens)
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

    def _binding(self, index: int, cache: KvCache) -> Binding:
        """That of a sequence to a segment in ONNX Runtime."""
        made: Binding | None = cache.kept.get(("binding", index))
        if made is None:
            from .ort import Binding

            made = Binding(self._sessions[index])
            self._bind_cache(made, index, cache)
            cache.kept["binding", index] = made
        return made

    def _bind_cache(self, binding: Binding, index: int, cache: KvCache) -> None:
        segment = self._described[index]
        fixed = {}
        for layer in segment.layers:
            fixed[f"past_key.{layer}"] = cache.keys[layer]
            fixed[f"past_value.{layer}"] = cache.values[layer]
        for kind, span in cache.spans.items():
            fixed[f"seqlens_k.{kind}"] = span.seqlens_k
            fixed[f"total_length.{kind}"] = span.total_length
        known = {*fixed, "hidden", "moe_out", "cos", "sin", "rows"}
        unknown = set(binding.inputs) - known
        if unknown:
            where = self._root / segment.file
            raise BundleError(f"{where} has an unknown input {min(unknown)}; update pocketmoe")
        for name, array in fixed.items():
            if name in binding.inputs:
                binding.input(name, array)
            if name.startswith("past_") and name in binding.inputs:
                binding.output(name.replace("past", "present", 1), array)

    def prepare(self, cache: KvCache) -> None:
        """Binds a new cache, so that graphs that do not fit are found at once.

        Raises:
            BundleError: a segment has an input that is not known.
        """
        for index in self._sessions:
            self._binding(index, cache)


def caches_of(cache: KvCache) -> Caches:
    """The cache as the native kernels want it."""
    made: Caches | None = cache.kept.get("native")
    if made is None:
        made = cache.kept["native"] = Caches(cache.layers)
    return made
