"""The sizes of a bundle that memory and speed follow from.

A manifest has them, and so has a model that is not compiled yet (compiler/footprint.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..model.spec import ModelSpec
from .pages import PageFormat


@dataclass(frozen=True)
class LayerFootprint:
    """Pages, `counts` of each of `formats`, of which a token needs top_k."""

    layer: int
    formats: tuple[PageFormat, ...]
    counts: tuple[int, ...]
    top_k: int

    @property
    def num_experts(self) -> int:
        return sum(self.counts)

    @property
    def nbytes(self) -> int:
        """Of all pages."""
        pages = zip(self.formats, self.counts, strict=True)
        return sum(page_format.nbytes * count for page_format, count in pages)

    @property
    def page_bytes(self) -> float:
        """Of a page, on average: tokens are taken to choose evenly."""
        return self.nbytes / self.num_experts


@dataclass(frozen=True)
class Footprint:
    """segments: number of backbone graphs. backbone_bytes: what their weights take once loaded.
    predictor_bytes: of what guesses the next pages (predict.py), 0 where nothing can.
    """

    spec: ModelSpec
    segments: int
    backbone_bytes: int
    experts: tuple[LayerFootprint, ...]
    predictor_bytes: int = 0

    @property
    def num_pages(self) -> int:
        return sum(layer.num_experts for layer in self.experts)

    @property
    def page_bytes(self) -> int:
        """Size of the largest page."""
        formats = (page_format for layer in self.experts for page_format in layer.formats)
        return max((page_format.nbytes for page_format in formats), default=0)

    @property
    def mean_page_bytes(self) -> int:
        """Of all pages, rounded up."""
        return -(-sum(layer.nbytes for layer in self.experts) // max(1, self.num_pages))

    @property
    def token_page_bytes(self) -> int:
        """What the pages of one token take, on average where a layer's differ."""
        return round(sum(layer.page_bytes * layer.top_k for layer in self.experts))

    @property
    def token_bytes(self) -> int:
        """Weights that one token reads: the backbone, and its pages."""
        return self.backbone_bytes + self.token_page_bytes

    def with_active(self, experts: int | None) -> Footprint:
        """Of a session that uses at most so many of a token's experts."""
        if experts is None:
            return self
        layers = (replace(layer, top_k=min(layer.top_k, experts)) for layer in self.experts)
        return replace(self, experts=tuple(layers))


def predicted_layers(spec: ModelSpec) -> list[int]:
    """Paged layers with a router, but the first, before which there is nothing to go by."""
    return [layer for layer in spec.paged_layers if spec.layers[layer].is_moe][1:]


def predictor_bytes(spec: ModelSpec) -> int:
    """What a Predictor of all of them holds."""
    return sum(
        router.num_experts * (spec.hidden_size + 2) * 4
        for layer in predicted_layers(spec)
        if (router := spec.layers[layer].router) is not None
    )
