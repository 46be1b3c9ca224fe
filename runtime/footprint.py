"""The sizes of a bundle that memory and speed follow from.

A manifest has them, and so has a model that is not compiled yet (compiler/footprint.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..model.spec import ModelSpec
from .pages import PageFormat


@dataclass(frozen=True)
class PagedLayer:
    """num_experts pages of one format, of which a token needs top_k."""

    layer: int
    format: PageFormat
    num_experts: int
    top_k: int


@dataclass(frozen=True)
class Footprint:
    """segments: number of backbone graphs. backbone_bytes: what their weights take once loaded."""

    spec: ModelSpec
    segments: int
    backbone_bytes: int
    experts: tuple[PagedLayer, ...]

    @property
    def num_pages(self) -> int:
        return sum(layer.num_experts for layer in self.experts)

    @property
    def page_bytes(self) -> int:
        """Size of the largest page."""
        return max((layer.format.nbytes for layer in self.experts), default=0)

    @property
    def token_page_bytes(self) -> int:
        """What the pages of one token take."""
        return sum(layer.format.nbytes * layer.top_k for layer in self.experts)

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
