"""Where the tensors of a page lie on the device.

TensorRT wants addresses at multiples of 256; in a page, tensors lie at multiples of 64. Where these
are multiples of 256 too, as they mostly are, a page is one copy; else a tensor is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..device_graphs import TensorInfo, page_inputs
from ..pages import PageFormat, align
from .device import ALIGNMENT


@dataclass(frozen=True)
class Piece:
    """A copy: from an offset in the page to one in the slot; bytes."""

    source: int
    target: int
    nbytes: int


@dataclass(frozen=True)
class PageLayout:
    """inputs: the page's tensors as a graph names them, each at an offset of `offsets`. nbytes: of
    a slot. in_place: the slot is like the page."""

    inputs: tuple[TensorInfo, ...]
    offsets: tuple[int, ...]
    pieces: tuple[Piece, ...]
    nbytes: int

    @property
    def in_place(self) -> bool:
        return len(self.pieces) == 1


def lay_out(page_format: PageFormat) -> PageLayout:
    places = page_format.tensors()
    inputs = page_inputs(page_format)
    if all(place.offset % ALIGNMENT == 0 for place in places):
        whole = Piece(0, 0, page_format.nbytes)
        offsets = tuple(place.offset for place in places)
        return PageLayout(inputs, offsets, (whole,), page_format.nbytes)
    pieces: list[Piece] = []
    end = 0
    for place in places:
        start = align(end, ALIGNMENT)
        end = start + place.nbytes
        pieces.append(Piece(place.offset, start, place.nbytes))
    return PageLayout(inputs, tuple(p.target for p in pieces), tuple(pieces), end)
