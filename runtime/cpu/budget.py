"""The plan of memory where a CPU runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...bundle.footprint import Footprint
from ...model.spec import ModelSpec
from ..cache_shape import capacity, kv_bytes
from ..memory.budget import BATCH, CHUNK, MIB, MemoryPlan, fit_budget
from ..native.kernels import NativeKernels
from .experts import native_bytes
from .native_backbone import NativeBackbone

_SESSION_BYTES = MIB  # a session's graph, names and kernels
_FFN_ACTIVATIONS = 3  # gate, its activation, up
_RESERVE_BYTES = 16 * MIB  # code that has to stay in memory, allocators' slack, thread stacks


def workspace_bytes(
    footprint: Footprint,
    context: int,
    chunk: int,
    batch: int,
    kernels: NativeKernels | None = None,
    segments: NativeBackbone | None = None,
) -> int:
    """What computing `batch` tokens, a chunk at a time, takes beyond weights and caches: the
    largest of its steps, and what the native kernels hold.

    Logits count once: those of a whole prompt are memory of the caller who asks for them.
    """
    spec = footprint.spec
    projected = attention_elements(spec)
    attention = feed_forward = 0
    for layer in spec.layers:
        scores = spec.num_attention_heads * capacity(layer.window, context, batch)
        attention = max(attention, chunk * (scores + projected) * 4)
        dense = 0 if layer.is_paged else layer.intermediate_size
        width = max(layer.shared_intermediate_size, dense)
        feed_forward = max(feed_forward, chunk * width * _FFN_ACTIVATIONS * 4)
    experts = onnx_bytes(footprint, batch) if kernels is None else 0
    held = native_bytes(kernels, footprint, batch) if kernels is not None else 0
    if segments is not None:
        held += segments.buffer_bytes(chunk) + segments.scratch_bytes(chunk)
        if len(segments.segments) == footprint.segments:
            attention = feed_forward = 0
    logits = 2 * spec.vocab_size * 4
    # Of the batch: hidden, sums and their input, and the routes; of the chunk: within a graph.
    streams = (6 * batch + 6 * chunk) * spec.hidden_size * 4
    return streams + logits + held + max(attention, feed_forward, experts)


def onnx_bytes(footprint: Footprint, batch: int) -> int:
    """What ONNX Runtime takes for the largest expert."""
    experts = 0
    for page_format in {item for layer in footprint.experts for item in layer.formats}:
        # A projection in fp32, and the next while the last is not given back yet.
        projections = 2 * page_format.hidden_size * page_format.intermediate_size
        unpacked = 0 if page_format.precision == "fp32" else projections * 4
        width = _FFN_ACTIVATIONS * page_format.intermediate_size + 2 * page_format.hidden_size
        experts = max(experts, unpacked + batch * width * 4)
    return experts


def attention_elements(spec: ModelSpec) -> int:
    """Elements of one token between the projections of a layer's attention."""
    heads, head_dim = spec.num_attention_heads, spec.head_dim
    if spec.mla is None:
        gate = heads * head_dim if spec.attention_gate else 0
        return (3 * heads + 4 * spec.num_key_value_heads) * head_dim + 2 * gate
    # Each head's query, and its parts; the query in the space of the latent, by head, joined, with
    # its rotated part and in the order that attention wants; the latent found, and the value of it.
    latent = spec.mla.latent_dim
    return heads * (2 * head_dim + 5 * latent + 2 * spec.mla.v_head_dim) + 4 * latent


def plan_memory(
    footprint: Footprint,
    *,
    context: int,
    budget: int | None,
    process: int,
    name: str,
    kernels: NativeKernels | None = None,
    segments: NativeBackbone | None = None,
    reads_early: bool = False,
    auto: bool = False,
    left: int = 0,
) -> MemoryPlan:
    """Decides how many pages the cache holds. `process`: bytes that it takes before any weights;
    kernels: what computes the experts, if not ONNX Runtime; segments: those
    of the backbone that it does not run; reads_early: the next pages are guessed
    where pages are read at all. auto: see MemoryPlan. left: bytes of `process` that earlier models
    have left, of use to this one; see leftover.py.

    Raises:
        BudgetError: one layer's experts of a token, and one page more, do not fit; the message
            names the smallest budget.
    """
    chunk, batch = min(CHUNK, context), min(BATCH, context)
    sessions, backbone = footprint.segments, footprint.backbone_bytes
    if segments is not None:
        sessions -= len(segments.segments)
        backbone += segments.weight_bytes - segments.onnx_bytes
    if kernels is None:
        sessions += len({item for layer in footprint.experts for item in layer.formats})
    top_k = max((layer.top_k for layer in footprint.experts), default=0)
    page = footprint.mean_page_bytes
    fewest = -(-(top_k + 1) * footprint.page_bytes // max(1, page))  # were they the largest
    plan = MemoryPlan(
        budget=budget,
        process=process + max(0, _RESERVE_BYTES + sessions * _SESSION_BYTES - left),
        backbone=backbone,
        kv=0,
        workspace=0,
        chunk=chunk,
        batch=batch,
        slots=footprint.num_pages,
        page=page,
        fewest=min(footprint.num_pages, fewest),
        predictor=footprint.predictor_bytes if reads_early else 0,
    )
    plan = host_caches(plan, footprint, [context], kernels, segments)
    return fit_budget(
        plan, budget, num_pages=footprint.num_pages, context=context, name=name, auto=auto
    )


def host_caches(
    plan: MemoryPlan,
    footprint: Footprint,
    contexts: Sequence[int],
    kernels: NativeKernels | None,
    segments: NativeBackbone | None,
) -> MemoryPlan:
    """The plan with the keys and values of sequences of so many tokens each, and the workspace
    that the longest needs. Each sequence after the first has a row of logits more, twice."""
    spec, chunk, batch = footprint.spec, plan.chunk, plan.batch
    more = (len(contexts) - 1) * 2 * spec.vocab_size * 4
    return replace(
        plan,
        kv=sum(kv_bytes(spec, context, batch) for context in contexts),
        workspace=more + workspace_bytes(footprint, max(contexts), chunk, batch, kernels, segments),
    )
