"""A segment as steps of the native kernels: what compiler/graphs/trace.py traces, once more.

tests/runtime/native/test_segments.py holds it against the graphs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundle.manifest import Segment
from ...model.spec import ModelSpec
from ..native.kernels import NativeKernels
from ..native.steps import MOST_PAIRS, Parts, Steps
from .native_weights import Weights


def can_serve(spec: ModelSpec) -> bool:
    """Whether the kernels have steps for all that the model's segments compute."""
    return spec.mla is None and spec.rope.dim // 2 <= MOST_PAIRS


class NativeSegment:
    """Takes the place of a `Binding`: inputs and outputs have the same names, but that caches and
    rows come with `run`.

    widths: of the buffers between its steps, float32 `[chunk, width]`, by name.
    """

    def __init__(
        self,
        spec: ModelSpec,
        segment: Segment,
        leaves: int | None,
        weights: Weights,
        kernels: NativeKernels,
    ):
        """leaves: the paged layer whose experts' output comes in, if any.

        Raises:
            KeyError, ValueError: a weight is missing or has another form.
            BundleError: a weight has other sizes than the model's.
        """
        self._spec, self._weights = spec, weights
        self._steps = Steps(kernels)
        self._attends = tuple(segment.layers)
        self._router_layer = segment.router_layer
        self._buffers: Mapping[str, np.ndarray] = {}
        self.widths: dict[str, int] = {}
        self._build(leaves)
        names = set(self._steps.buffers)
        self.outputs = frozenset(names & {
            "hidden_out", "expert_input", "expert_weights", "expert_ids", "moe_base", "logits",
        })  # fmt: skip
        self.inputs = frozenset(names - self.outputs - set(self.widths))

    def scratch_bytes(self, tokens: int) -> int:
        """What the kernels hold at most once it ran for so many tokens."""
        return self._steps.scratch_bytes(tokens)

    def set_buffers(self, buffers: Mapping[str, np.ndarray]) -> None:
        """buffers: flat, float32, at least `[chunk · width]` each; kept alive by this."""
        self._buffers = buffers
        for name, width in self.widths.items():
            rows = len(buffers[name]) // width
            self._steps.set_buffer(name, buffers[name][: rows * width].reshape(rows, width))

    def input(self, name: str, array: np.ndarray) -> None:
        self._steps.set_buffer(name, array)

    def output(self, name: str, array: np.ndarray) -> None:
        self._steps.set_buffer(name, array)

    def run(self, parts: Parts) -> None:
        """parts: whose rows those are of the arrays that were set last."""
        self._steps.run(parts)

    def _build(self, leaves: int | None) -> None:
        spec, steps = self._spec, self._steps
        stream = "stream" if self._router_layer is None else "hidden_out"
        current = "hidden"
        if leaves is not None:
            self._leave(leaves, "moe_out", current, stream)
            current = stream
        elif spec.embedding_multiplier != 1.0:
            steps.multiply("hidden", stream, spec.embedding_multiplier)
            current = stream
        for layer in self._attends:
            self._attend(layer, current, stream)
            current = stream
            if layer == self._router_layer:
                self._route(layer)
            else:
                self._norm(f"layers.{layer}.ffn_norm", current, "x")
                width = spec.layers[layer].intermediate_size
                self._feed_forward(f"layers.{layer}.ffn", "x", "y", width)
                self._leave(layer, "y", current, stream)
        if self._router_layer is None:
            steps.keep_last(current, self._buffer("kept", spec.hidden_size))
            self._norm("norm", "kept", "kept")
            head = self._weights.matrix(
                "head", spec.vocab_size, spec.hidden_size, bias=spec.head_bias
            )
            steps.products("kept", [("logits", head)])
            if spec.logits_scaling != 1.0:
                steps.multiply("logits", "logits", 1.0 / spec.logits_scaling)
        if stream == "stream":
            self._buffer(stream, spec.hidden_size)

    def _leave(self, layer: int, out: str, current: str, stream: str) -> None:
        """Adds what a layer's FFN or experts gave."""
        if self._spec.post_norm:
            self._norm(f"layers.{layer}.ffn_post_norm", out, "y")
            out = "y"
        self._steps.add(current, out, stream, self._spec.residual_multiplier)

    def _attend(self, layer: int, current: str, stream: str) -> None:
        spec, steps, weights = self._spec, self._steps, self._weights
        prefix, heads, kv_heads = (
            f"layers.{layer}.attention", spec.num_attention_heads, spec.num_key_value_heads,
        )  # fmt: skip
        self._norm(f"layers.{layer}.attention_norm", current, "x")
        counts = {"q": heads, "k": kv_heads, "v": kv_heads}
        if spec.attention_gate:
            counts["gate"] = heads
        hidden, width = spec.hidden_size, heads * spec.head_dim
        matrices = []
        for name, count in counts.items():
            self._buffer(name, count * spec.head_dim)
            bias = spec.qkv_bias and name != "gate"
            matrix = weights.matrix(f"{prefix}.{name}_proj", self.widths[name], hidden, bias=bias)
            matrices.append((name, matrix))
        steps.products("x", matrices)
        if spec.qk_norm == "full":
            self._norm_heads(prefix, {"q": 1, "k": 1})
        if spec.clip_qkv is not None:
            for name in "qkv":
                steps.clip(name, spec.clip_qkv)
        if spec.qk_norm == "head":
            self._norm_heads(prefix, {"q": heads, "k": kv_heads})
        for name in "qk":
            steps.rotate(name, counts[name], interleaved=spec.rope.interleaved)
        steps.attend(
            layer,
            ("q", "k", "v", self._buffer("found", width)),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=spec.head_dim,
            scale=spec.softmax_scale,
            window=spec.layers[layer].window,
            sinks=weights.vector(f"{prefix}.sinks", heads) if spec.attention_sinks else None,
        )
        if spec.attention_gate:
            steps.gate("found", "gate")
        out = weights.matrix(f"{prefix}.o_proj", hidden, width, bias=spec.o_bias)
        steps.products("found", [("y", out)])
        self._buffer("y", spec.hidden_size)
        if spec.post_norm:
            self._norm(f"layers.{layer}.attention_post_norm", "y", "y")
        steps.add(current, "y", stream, spec.residual_multiplier)

    def _route(self, layer: int) -> None:
        spec, steps, weights = self._spec, self._steps, self._weights
        rule = spec.layers[layer]
        router = rule.router
        if router is None:
            raise ValueError(f"layer {layer} has no router")
        self._norm(f"layers.{layer}.ffn_norm", "hidden_out", "expert_input")
        logits = None
        if router.scoring != "always":
            logits = self._buffer("router", router.num_experts)
            matrix = weights.matrix(
                f"layers.{layer}.router", router.num_experts, spec.hidden_size, bias=router.bias
            )
            steps.products("expert_input", [(logits, matrix)])
        correction = None
        if router.correction:
            name = f"layers.{layer}.router_correction"
            correction = weights.vector(name, router.num_experts)
        steps.route(logits, "expert_weights", "expert_ids", router, correction)
        if rule.shared_intermediate_size:
            self._feed_forward(
                f"layers.{layer}.shared", "expert_input", "moe_base", rule.shared_intermediate_size
            )
            if spec.shared_gate:
                gate = self._buffer("shared_gate", 1)
                matrix = weights.matrix(
                    f"layers.{layer}.shared_gate", 1, spec.hidden_size, bias=False
                )
                steps.products("expert_input", [(gate, matrix)])
                steps.gate("moe_base", gate)

    def _feed_forward(self, prefix: str, source: str, to: str, width: int) -> None:
        spec, steps, weights = self._spec, self._steps, self._weights
        hidden, bias = spec.hidden_size, spec.ffn_bias
        gate, up = (
            weights.matrix(f"{prefix}.{name}", width, hidden, bias=bias) for name in ("gate", "up")
        )
        # The FFNs of a segment may differ in width.
        first, second = (self._buffer(f"{name}.{width}", width) for name in ("gate", "up"))
        steps.products(source, [(first, gate), (second, up)])
        steps.activate(first, second, first, spec.activation)
        steps.products(first, [(to, weights.matrix(f"{prefix}.down", hidden, width, bias=bias))])

    def _norm(self, name: str, source: str, to: str) -> None:
        """Of the residual stream."""
        for buffer in {source, to} & {"x", "y"}:
            self._buffer(buffer, self._spec.hidden_size)
        weights, size = self._weights, self._spec.hidden_size
        bias = weights.vector(f"{name}.bias", size) if self._spec.norm == "layer" else None
        weight = weights.vector(f"{name}.weight", size)
        self._steps.norm(source, to, weight, bias, self._spec.rms_norm_eps)

    def _norm_heads(self, prefix: str, groups: Mapping[str, int]) -> None:
        for name, count in groups.items():
            size = self.widths[name] // count
            weight = self._weights.vector(f"{prefix}.{name}_norm.weight", size)
            self._steps.norm(name, name, weight, None, self._spec.rms_norm_eps, count)

    def _buffer(self, name: str, width: int) -> str:
        """Its name, now known as that of a buffer between steps."""
        if self.widths.setdefault(name, width) != width:
            raise ValueError(f"buffers {name} of {self.widths[name]} and of {width} elements")
        return name
