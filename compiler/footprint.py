"""The memory that a bundle will take, from the spec and the precision alone.

The compiler counts the backbone's weights with the same functions as it writes them.
"""

from __future__ import annotations

from math import prod

from ..bundle.footprint import Footprint, LayerFootprint, predictor_bytes
from ..bundle.manifest import Precision
from ..bundle.pages import QUANTIZED, PageFormat
from ..model.parameters import Shape, end_shapes, layer_shapes
from ..model.spec import MlaSpec, ModelSpec
from .precision import precision_of
from .segments import plan_segments

QUANTIZED_BITS = {"int4": 4, "int8": 8}
# What ONNX Runtime holds of each block of a MatMulNBits, beside the values: its scale as stored and
# as packed, and a sum.
_BLOCK_BYTES = 12
_NODE_BYTES = 12 << 10  # of one MatMulNBits beside its weights; it counts where there are hundreds


def quantized_bytes(rows: int, columns: int, bits: int, block_size: int) -> int:
    """Of one MatMulNBits once loaded."""
    return rows * columns * bits // 8 + _BLOCK_BYTES * rows * (columns // block_size)


def float_bytes(shape: Shape) -> int:
    """Of floats once loaded. ONNX Runtime computes in fp32 on a CPU: fp16 is cast when loaded."""
    return 4 * prod(shape)


def nodes_bytes(count: int) -> int:
    """Of `count` MatMulNBits beside their weights, where one matrix becomes so many."""
    return count * _NODE_BYTES


def expected_footprint(spec: ModelSpec, precision: Precision) -> Footprint:
    """The footprint of the bundle that the compiler would make."""
    layers = []
    for index, page_format in page_formats(spec, precision).items():
        router = spec.layers[index].router
        if router is not None:
            layers.append(
                LayerFootprint(index, (page_format,), (router.num_experts,), router.top_k)
            )
    return Footprint(
        spec=spec,
        segments=len(plan_segments(spec)),
        backbone_bytes=expected_backbone_bytes(spec, precision),
        experts=tuple(layers),
        predictor_bytes=predictor_bytes(spec),
    )


def page_formats(spec: ModelSpec, precision: Precision) -> dict[int, PageFormat]:
    """The format of the pages of each paged layer."""
    block_size = precision.block_size if precision.experts in QUANTIZED else 0
    return {
        layer: PageFormat(
            precision.experts,
            block_size,
            spec.hidden_size,
            spec.layers[layer].intermediate_size,
            bias=spec.expert_bias,
            activation=spec.activation,
        )
        for layer in spec.paged_layers
    }


def expected_backbone_bytes(spec: ModelSpec, precision: Precision) -> int:
    """What the manifest will say that the backbone takes once loaded."""
    shapes = {**end_shapes(spec), "head.weight": (spec.vocab_size, spec.hidden_size)}
    for layer in range(spec.num_hidden_layers):
        shapes |= layer_shapes(spec, layer)
    return sum(_parameter_bytes(name, shape, spec, precision) for name, shape in shapes.items())


def _parameter_bytes(name: str, shape: Shape, spec: ModelSpec, precision: Precision) -> int:
    chosen = precision_of(name, precision)
    if len(shape) != 2 or chosen not in QUANTIZED_BITS:
        return float_bytes(shape)
    bits, block_size = QUANTIZED_BITS[chosen], precision.block_size
    if spec.mla is not None and name.endswith(".kv_b_proj.weight"):
        return _latent_bytes(spec.mla, spec.num_attention_heads, bits, block_size)
    rows, columns = shape
    return quantized_bytes(rows, columns, bits, block_size)


def _latent_bytes(mla: MlaSpec, heads: int, bits: int, block_size: int) -> int:
    """Of the matrices into the latent and out of it, one for each head in either direction."""
    into = quantized_bytes(mla.kv_lora_rank, mla.qk_nope_head_dim, bits, block_size)
    out_of = quantized_bytes(mla.v_head_dim, mla.kv_lora_rank, bits, block_size)
    return heads * (into + out_of) + nodes_bytes(2 * heads)
