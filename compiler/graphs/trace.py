"""Traces backbone segments with torch.onnx.export. Weights are left out: see stamp.py.

What has a form of its own in the graph is traced through a placeholder: see placeholders.py.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from functools import lru_cache
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...model.module import DecoderLayer, make_norm
from ...model.spec import ModelSpec
from ..segments import SegmentPlan, window_kind
from .placeholders import TracedAttention, TracedLinear, replace_linears

OPSET = 21
_HEAD_MULTIPLE = 8
_EXAMPLE_TOKENS, _EXAMPLE_CAPACITY = 3, 7


class SegmentModule(nn.Module):
    """A segment as one function of tensors. Inputs and outputs are those of the bundle's contract,
    with `_` for `.`."""

    def __init__(self, spec: ModelSpec, plan: SegmentPlan):
        super().__init__()
        self.spec, self.plan = spec, plan
        with torch.device("meta"):
            built = {str(layer): DecoderLayer(spec, layer) for layer in plan.all_layers()}
        self.layers = nn.ModuleDict(built)
        if plan.leaves is not None:
            keep_only_post_norm(built[str(plan.leaves)])
        for layer in plan.layers:
            if spec.layers[layer].is_paged:
                del built[str(layer)].experts
        if plan.is_last:
            self.norm = make_norm(spec)
            self.head = TracedLinear("head", spec.vocab_size, spec.head_bias)
        replace_linears(self)
        self.to_empty(device="cpu")
        # Values that differ: the exporter would merge equal weights into one.
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        hidden = inputs["hidden"]
        core = TracedAttention(inputs)
        if self.plan.is_first and self.spec.embedding_multiplier != 1.0:
            hidden = hidden * self.spec.embedding_multiplier
        if self.plan.leaves is not None:
            hidden = self._layer(self.plan.leaves).leave_ffn(hidden, inputs["moe_out"])
        outputs: dict[str, Tensor] = {}
        for index in self.plan.layers:
            layer = self._layer(index)
            hidden = layer.attend(hidden, (inputs["cos"], inputs["sin"]), core)
            x = layer.ffn_norm(hidden)
            always = layer.always_on(x)
            if index != self.plan.router_layer:
                hidden = layer.leave_ffn(hidden, cast(Tensor, always))
                continue
            route = layer.route(x)
            outputs = {
                "hidden_out": hidden,
                "expert_input": x,
                "expert_weights": route.weights,
                "expert_ids": route.experts,
            }
            if always is not None:
                outputs["moe_base"] = always
        if self.plan.is_last:
            logits = self.head(self.norm(hidden[inputs["rows"]]))
            outputs["logits"] = logits / self.spec.logits_scaling
        outputs |= core.presents
        return tuple(outputs[name] for name in output_names(self.spec, self.plan))

    def _layer(self, index: int) -> DecoderLayer:
        return cast(DecoderLayer, self.layers[str(index)])


def check_attention(spec: ModelSpec) -> None:
    """Raises ConfigError for heads that GroupQueryAttention does not take."""
    for _, size in spec.cache_shapes:
        if size % _HEAD_MULTIPLE:
            what = "head_dim" if spec.mla is None else "kv_lora_rank + qk_rope_head_dim"
            raise ConfigError(
                f"{what} is {size}; attention runs on heads of a multiple of {_HEAD_MULTIPLE} "
                "elements, so this model cannot be compiled"
            )


def output_names(spec: ModelSpec, plan: SegmentPlan) -> list[str]:
    """The outputs of a segment, in order."""
    names = ["logits"]
    if plan.router_layer is not None:
        names = ["hidden_out", "expert_input", "expert_weights", "expert_ids"]
        if spec.layers[plan.router_layer].shared_intermediate_size:
            names.append("moe_base")
    return names + [f"present_{part}_{i}" for i in plan.layers for part in ("key", "value")]


def keep_only_post_norm(layer: DecoderLayer) -> None:
    """Drops what the segment before has already run."""
    for name in list(dict(layer.named_children())):
        if name != "ffn_post_norm":
            delattr(layer, name)
    layer.router_correction = None


def example_inputs(spec: ModelSpec, plan: SegmentPlan) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Example tensors and their dynamic dimensions."""
    tokens = torch.export.Dim("tokens", min=1)
    count, half = _EXAMPLE_TOKENS, spec.rope.dim // 2
    (heads, size), *_ = spec.cache_shapes
    inputs = {"hidden": torch.zeros(count, spec.hidden_size)}
    dynamic: dict[str, Any] = {"hidden": {0: tokens}}
    if plan.leaves is not None:
        inputs["moe_out"], dynamic["moe_out"] = torch.zeros(count, spec.hidden_size), {0: tokens}
    for name in ("cos", "sin") if plan.layers else ():
        inputs[name], dynamic[name] = torch.zeros(count, half), {0: tokens}
    kinds = dict.fromkeys(window_kind(spec.layers[layer].window) for layer in plan.layers)
    for number, kind in enumerate(kinds):
        inputs[f"seqlens_k_{kind}"] = torch.zeros(1, dtype=torch.int32)
        inputs[f"total_length_{kind}"] = torch.tensor(count, dtype=torch.int32)
        dynamic |= {f"seqlens_k_{kind}": {}, f"total_length_{kind}": {}}
        capacity = torch.export.Dim(f"capacity_{kind}", min=1)
        shape = (1, heads, _EXAMPLE_CAPACITY + number, size)
        for layer in plan.layers:
            if window_kind(spec.layers[layer].window) == kind:
                for name in (f"past_key_{layer}", f"past_value_{layer}"):
                    inputs[name], dynamic[name] = torch.zeros(shape), {2: capacity}
    if plan.is_last:
        inputs["rows"] = torch.arange(2)
        dynamic["rows"] = {0: torch.export.Dim("rows", min=1)}
    return inputs, dynamic


@lru_cache(maxsize=32)
def trace_segment(spec: ModelSpec, plan: SegmentPlan) -> onnx.ModelProto:
    """The segment's graph: placeholders for projections, other weights as named initializers.

    Kept for other precisions of the same model: callers copy it before they change it.
    """
    module = SegmentModule(spec, plan).eval()
    inputs, dynamic = example_inputs(spec, plan)
    with torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(
            module,
            (),
            kwargs={"inputs": inputs},
            dynamo=True,
            dynamic_shapes={"inputs": dynamic},
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=output_names(spec, plan),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto  # made anew whenever it is asked for
    divide_by_roots(model.graph)
    return model


def divide_by_roots(graph: onnx.GraphProto) -> None:
    """x · (1 / √v) becomes x / √v: a norm of that form is what ONNX Runtime computes as one
    operator (SimplifiedLayerNormalization) instead of seven."""
    roots = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reciprocal"}
    used: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            used[name] = used.get(name, 0) + 1
    for node in graph.node:
        root = next((name for name in node.input if name in roots), None)
        if node.op_type == "Mul" and root is not None and used[root] == 1:
            (other,) = (name for name in node.input if name != root)
            node.op_type = "Div"
            node.input[:] = [other, roots.pop(root)]
    kept = [node for node in graph.node if node.op_type != "Reciprocal" or node.output[0] in roots]
    del graph.node[:]
    graph.node.extend(kept)


@contextlib.contextmanager
def quiet_exporter() -> Any:
    """The exporter prints and warns about operators that it cannot know."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
