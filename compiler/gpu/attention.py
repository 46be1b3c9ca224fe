"""GroupQueryAttention of a trace in standard operators, over a cache that is laid out by position.

The past is an input of as many positions as are bound, and the keys and values of the new tokens
are outputs: whoever runs the graph puts them behind the past. Every toolchain and provider takes
these operators; see docs/design/gpu.md for those that were not used.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...model.spec import ModelSpec
from ..segments import SegmentPlan, window_kind
from .graph_writer import GraphWriter

_ATTENTION = "GroupQueryAttention"
# Positions of the inputs of GroupQueryAttention.
_PAST_KEY, _SINKS = 3, 11
_END = 2**31 - 1  # of a slice that goes to the last element


def expand_attention(graph: onnx.GraphProto, spec: ModelSpec, plan: SegmentPlan) -> None:
    """Replaces the attention of every layer, its inputs and its outputs, in place."""
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type == _ATTENTION:
            written = _attention(node, spec)
            graph.node.extend(written.nodes)
            graph.initializer.extend(written.initializers)
        else:
            graph.node.append(node)
    kept = [value for value in graph.input if not _belongs_to_cache(value.name)]
    del graph.input[:]
    graph.input.extend([*kept, *_cache_inputs(spec, plan)])
    left = [value for value in graph.output if not value.name.startswith("present_")]
    del graph.output[:]
    graph.output.extend([*left, *_cache_outputs(spec, plan)])


def _belongs_to_cache(name: str) -> bool:
    return name.startswith(("past_", "seqlens_k.", "total_length."))


def _cached(spec: ModelSpec) -> tuple[str, ...]:
    """What a layer caches of a token: with MLA its one latent is key and value."""
    return ("key",) if spec.mla is not None else ("key", "value")


def _cache_inputs(spec: ModelSpec, plan: SegmentPlan) -> list[onnx.ValueInfoProto]:
    """Layers with the same window are bound with equally many positions."""
    heads, size = spec.cache_shapes[0]
    kinds = {layer: window_kind(spec.layers[layer].window) for layer in plan.layers}
    pasts = [
        helper.make_tensor_value_info(
            f"past_{part}.{layer}", TensorProto.FLOAT16, [f"past.{kind}", heads, size]
        )
        for layer, kind in kinds.items()
        for part in _cached(spec)
    ]
    masks = [
        helper.make_tensor_value_info(f"mask.{kind}", TensorProto.FLOAT, ["tokens", f"keys.{kind}"])
        for kind in dict.fromkeys(kinds.values())
    ]
    return pasts + masks


def _cache_outputs(spec: ModelSpec, plan: SegmentPlan) -> list[onnx.ValueInfoProto]:
    heads, size = spec.cache_shapes[0]
    return [
        helper.make_tensor_value_info(
            f"new_{part}.{layer}", TensorProto.FLOAT16, ["tokens", heads, size]
        )
        for layer in plan.layers
        for part in _cached(spec)
    ]


def _attention(node: onnx.NodeProto, spec: ModelSpec) -> GraphWriter:
    """softmax(q · kᵀ · scale + mask) · v, each key head with its group of query heads.

    The query is scaled before the product, whose scores fp16 then holds; the softmax is fp32.
    """
    layer = int(node.input[_PAST_KEY].rpartition(".")[2])
    mask = f"mask.{window_kind(spec.layers[layer].window)}"
    heads, (kv_heads, size) = spec.num_attention_heads, spec.cache_shapes[0]
    group = heads // kv_heads
    graph = GraphWriter(f"attention.{layer}.")
    add, shape = graph.add, graph.shape

    by_head = shape("by_head", -1, kv_heads, size)
    for index, part in enumerate(_cached(spec)):
        new = add("Reshape", [node.input[1 + index], by_head], part)
        graph.add_as("Cast", [new], f"new_{part}.{layer}", to=TensorProto.FLOAT16)
    last = _cached(spec)[-1]

    # [T, heads, size] → [kv_heads, group · T, size]: a head's queries share one product.
    scale = next(a.f for a in node.attribute if a.name == "scale")
    q = add("Mul", [node.input[0], graph.constant("scale", np.float32(scale))], "scaled")
    q = add("Cast", [q], "q16", to=TensorProto.FLOAT16)
    q = add("Reshape", [q, shape("groups", -1, kv_heads, group, size)], "q_groups")
    q = add("Transpose", [q], "q_heads", perm=[1, 2, 0, 3])
    q = add("Reshape", [q, shape("rows", kv_heads, -1, size)], "q_rows")
    # The past stays where it is: it is not put before the new tokens, but their scores are.
    parts = []
    for when in ("past", "new"):
        keys = add("Transpose", [f"{when}_key.{layer}"], f"{when}_keys", perm=[1, 2, 0])
        parts.append(add("MatMul", [q, keys], f"{when}_scores"))
    scores = add("Concat", parts, "scores16", axis=-1)
    scores = add("Cast", [scores], "scores_flat", to=TensorProto.FLOAT)

    # [kv_heads, group, T, keys], as the mask is by token.
    sizes = add("Shape", [mask], "mask_shape")
    apart = add("Concat", [shape("heads", kv_heads, group), sizes], "apart", axis=0)
    scores = add("Reshape", [scores, apart], "scores")
    scores = add("Add", [scores, mask], "masked")
    shares = _softmax(graph, scores, node, (kv_heads, group))
    shares = add("Cast", [shares], "shares16", to=TensorProto.FLOAT16)
    one = shape("one", 1)
    key_count = add("Slice", [sizes, one, shape("two", 2)], "key_count")
    together = add(
        "Concat", [shape("kv_heads", kv_heads), shape("rest", -1), key_count], "together", axis=0
    )
    shares = add("Reshape", [shares, together], "shares_flat")
    start, axis = shape("start", 0), shape("keys_axis", 2)
    cut = add("Neg", [add("Slice", [sizes, start, one], "token_count")], "cut")
    bounds = {"past": [start, cut], "new": [cut, shape("end", _END)]}
    parts = []
    for when in ("past", "new"):
        values = add("Transpose", [f"{when}_{last}.{layer}"], f"{when}_values", perm=[1, 0, 2])
        part = add("Slice", [shares, *bounds[when], axis], f"{when}_shares")
        part = add("MatMul", [part, values], f"{when}_out16")
        parts.append(add("Cast", [part], f"{when}_out", to=TensorProto.FLOAT))
    out = add("Add", parts, "out_rows")
    out = add("Reshape", [out, shape("out_shape", kv_heads, group, -1, size)], "out_heads")
    out = add("Transpose", [out], "out_tokens", perm=[2, 0, 1, 3])
    graph.add_as("Reshape", [out, shape("flat", 1, -1, heads * size)], node.output[0])
    return graph


def _softmax(graph: GraphWriter, scores: str, node: onnx.NodeProto, heads: tuple[int, int]) -> str:
    """Over the last axis; where there are sinks, each is a column more, which is then left out."""
    if len(node.input) <= _SINKS:
        return graph.add("Softmax", [scores], "shares", axis=-1)
    add, shape = graph.add, graph.shape
    sinks = add("Reshape", [node.input[_SINKS], shape("sink_shape", *heads, 1, 1)], "sinks")
    # A column of the shape that only the scores have.
    column = add("ReduceMax", [scores, shape("last_axis", -1)], "largest", keepdims=1)
    column = add("Mul", [column, graph.constant("zero", np.float32(0))], "zeros")
    column = add("Add", [column, sinks], "sink_column")
    wider = add("Concat", [scores, column], "with_sinks", axis=-1)
    shares = add("Softmax", [wider], "shares", axis=-1)
    ends = [shape("first", 0), shape("last", -1), shape("axis", 3)]
    return add("Slice", [shares, *ends], "shares_of_keys")
