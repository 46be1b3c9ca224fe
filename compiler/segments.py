"""The backbone's segments: each runs from one layer with pages to the next."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.parameters import Shape, end_shapes, layer_shapes, norm_shapes
from ..model.spec import LayerSpec, ModelSpec


@dataclass(frozen=True)
class SegmentPlan:
    """One backbone graph before it is traced.

    leaves: the paged layer whose experts' output comes in; None for the first segment.
    layers: the decoder layers whose attention runs here. router_layer: the last of them, where it
    is paged; None for the segment that ends in the logits.
    """

    index: int
    leaves: int | None
    layers: tuple[int, ...]
    router_layer: int | None

    @property
    def is_first(self) -> bool:
        return self.leaves is None

    @property
    def is_last(self) -> bool:
        return self.router_layer is None

    def kind(self, spec: ModelSpec) -> tuple[bool, tuple[LayerSpec, ...], bool]:
        """Segments of one kind differ in their weights alone, so one trace serves them all."""
        return self.is_first, tuple(spec.layers[i] for i in self.layers), self.is_last

    def all_layers(self) -> tuple[int, ...]:
        """Every layer that has a part in this segment, in order."""
        return (() if self.leaves is None else (self.leaves,)) + self.layers


def plan_segments(spec: ModelSpec) -> tuple[SegmentPlan, ...]:
    """The segments in the order in which they run; the last one ends in the logits."""
    plans: list[SegmentPlan] = []
    leaves, layers = None, []
    for layer, rule in enumerate(spec.layers):
        layers.append(layer)
        if rule.is_paged:
            plans.append(SegmentPlan(len(plans), leaves, tuple(layers), layer))
            leaves, layers = layer, []
    return (*plans, SegmentPlan(len(plans), leaves, tuple(layers), None))


def segment_parameters(spec: ModelSpec, plan: SegmentPlan) -> dict[str, Shape]:
    """Names and shapes of all weights that the segment holds."""
    shapes: dict[str, Shape] = {}
    if plan.leaves is not None and spec.post_norm:
        shapes |= norm_shapes(spec, f"layers.{plan.leaves}.ffn_post_norm")
    for layer in plan.layers:
        own = layer_shapes(spec, layer)
        if layer == plan.router_layer:  # the next segment has its norm after the experts
            own = {name: shape for name, shape in own.items() if ".ffn_post_norm." not in name}
        shapes |= own
    if plan.is_last:
        # A tied head is stored on its own, in the head's precision.
        shapes |= {**end_shapes(spec), "head.weight": (spec.vocab_size, spec.hidden_size)}
    return shapes


def window_kind(window: int | None) -> str:
    """The suffix of the cache-length inputs of layers with this window."""
    return "full" if window is None else f"w{window}"
