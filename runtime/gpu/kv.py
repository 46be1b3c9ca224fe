"""Keys and values on the device: float16 `[capacity, kv_heads, head_dim]`, position after position.

A segment gets the first S positions of what a layer still sees as its past, S a multiple of 64, and
a mask that leaves out those that are not filled or not seen. What it makes for its own tokens goes
to a staging buffer, and behind the past by a copy within the device.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ...bundle.gpu_graphs import MASKED, POSITION_BLOCK
from ...bundle.pages import align
from ...model.spec import ModelSpec
from ..cache_shape import SLACK, kind_of
from .device import Buffer, Device, Stream
from .uploads import Uploads

_HALF = 2  # bytes of a float16
_numbers = itertools.count()


def device_capacity(window: int | None, context: int, batch: int) -> int:
    """Positions of a layer's buffers, a multiple of 64."""
    if window is None:
        return align(context, POSITION_BLOCK)
    return align(min(context, window - 1 + max(batch, SLACK)), POSITION_BLOCK)


def device_kv_bytes(spec: ModelSpec, context: int, chunk: int, batch: int) -> int:
    """Of everything that DeviceKv makes, about."""
    positions = sum(device_capacity(layer.window, context, batch) for layer in spec.layers)
    row = spec.cache_elements * _HALF
    windows = {layer.window for layer in spec.layers}
    masks = sum(chunk * (most_bound(window, context) + chunk) * 4 for window in windows)
    moving = max((window for window in windows if window is not None), default=0)
    return (positions + moving + chunk) * row + masks * -(-batch // chunk)


def most_bound(window: int | None, context: int) -> int:
    """Positions that are bound as a layer's past at most."""
    full = align(context, POSITION_BLOCK)
    return full if window is None else min(full, align(window - 2 + POSITION_BLOCK, POSITION_BLOCK))


@dataclass(frozen=True)
class Past:
    """What a chunk's layers of one kind see: positions from `first` of their buffers on, `bound` of
    them; `at`: where its own are to go; mask: the address of float32 `[tokens, bound + tokens]`."""

    first: int
    bound: int
    at: int
    mask: int


class GpuSpan:
    """How far the buffers of one kind are filled."""

    def __init__(self, window: int | None, capacity: int):
        self.window, self.capacity, self.past = window, capacity, 0


class DeviceKv:
    """Of each layer a buffer of keys and one of values; with MLA there are keys alone.

    A batch is `begin`, the segments of its chunks with what `past` says, then `commit`; without the
    commit the next batch overwrites it. number: no other cache has it.
    """

    def __init__(
        self, device: Device, stream: Stream, spec: ModelSpec, context: int, chunk: int, batch: int
    ):
        self.position = 0
        self.number = next(_numbers)
        self.spans: dict[str, GpuSpan] = {}
        self._stream = stream
        self._chunk = chunk
        self._kinds = [kind_of(layer.window) for layer in spec.layers]
        self.shapes = spec.cache_shapes  # with MLA, one latent is the key and the value
        self._rows = [heads * size * _HALF for heads, size in self.shapes]
        self._buffers: list[list[Buffer]] = []
        for layer in spec.layers:
            length = device_capacity(layer.window, context, batch)
            self.spans.setdefault(kind_of(layer.window), GpuSpan(layer.window, length))
            self._buffers.append([device.allocate(length * row) for row in self._rows])
        windows = [layer.window for layer in spec.layers if layer.window is not None]
        self._moving = device.allocate(max(1, max(windows, default=0) * max(self._rows)))
        chunks = -(-batch // chunk)
        widest = {kind: most_bound(span.window, context) for kind, span in self.spans.items()}
        self._masks = {
            kind: [device.allocate(chunk * (width + chunk) * 4) for _ in range(chunks)]
            for kind, width in widest.items()
        }
        self._uploads = {
            kind: Uploads(device, stream, chunk * (width + chunk) * 4 * chunks)
            for kind, width in widest.items()
        }
        self._pasts: dict[str, list[Past]] = {}
        self._to_clear = True

    @property
    def planes(self) -> int:
        """Buffers of a layer: keys and values, or a latent."""
        return len(self.shapes)

    def begin(self, tokens: int) -> None:
        """Makes room for `tokens` more, at most a batch, and their masks."""
        if self._to_clear:  # what is not a number would come through the mask
            for buffers in self._buffers:
                for buffer in buffers:
                    self._stream.clear(buffer.address, buffer.nbytes)
            self._to_clear = False
        for kind, span in self.spans.items():
            if span.past + tokens > span.capacity:
                self._slide(kind, span)
        chunk = self._chunk
        for kind, span in self.spans.items():
            parts = [
                (span.past + start, min(chunk, tokens - start)) for start in range(0, tokens, chunk)
            ]
            self._pasts[kind] = self._mask(kind, span.window, parts)

    def _mask(self, kind: str, window: int | None, parts: list[tuple[int, int]]) -> list[Past]:
        """parts: how many positions are before each chunk, and its tokens."""
        pasts: list[Past] = []
        offset = 0
        with self._uploads[kind].fill() as memory:
            for index, (past, tokens) in enumerate(parts):
                first, bound = bound_past(past, window)
                buffer = self._masks[kind][index]
                mask = memory.view(np.float32, (tokens, bound + tokens), offset)
                fill_mask(mask, past - first, window)
                self._stream.upload(buffer.address, memory.address + offset, mask.nbytes)
                offset += align(mask.nbytes, 64)
                pasts.append(Past(first, bound, past, buffer.address))
        return pasts

    def past(self, layer: int, chunk: int) -> Past:
        """Of a layer, for a chunk of the batch that was begun, counted from 0."""
        return self._pasts[self._kinds[layer]][chunk]

    def past_of(self, kind: str, chunk: int) -> Past:
        return self._pasts[kind][chunk]

    def bases(self, layer: int) -> list[tuple[int, int]]:
        """Address and bytes of a position, of keys and of values."""
        pairs = zip(self._buffers[layer], self._rows, strict=True)
        return [(buffer.address, row) for buffer, row in pairs]

    def commit(self, tokens: int) -> None:
        self.position += tokens
        for span in self.spans.values():
            span.past += tokens

    def reset(self) -> None:
        """Buffers are cleared when the next batch begins: others may be using the stream now."""
        self.position = 0
        for span in self.spans.values():
            span.past = 0
        self._to_clear = True

    def rewind(self, position: int) -> int:
        """See runner.Cache."""
        for span in self.spans.values():
            origin = self.position - span.past  # positions that are there no more
            if span.window is not None and origin and position < origin + span.window - 1:
                position = 0
        if position <= 0:
            self.reset()
            return 0
        back = max(0, self.position - position)
        self.position -= back
        for span in self.spans.values():
            span.past -= back
        return self.position

    def pretend(self, position: int) -> None:
        """As if so many tokens had been seen, as far as there is room for a chunk more."""
        self.position = position
        for span in self.spans.values():
            span.past = max(0, min(position, span.capacity - self._chunk))

    def _slide(self, kind: str, span: GpuSpan) -> None:
        """Moves the window to the front, over memory of its own: source and target may overlap."""
        if span.window is None:
            raise ValueError(f"{span.capacity} positions are full")
        keep = min(span.window - 1, span.past)
        moving = self._moving.address
        for layer, its_kind in enumerate(self._kinds):
            if its_kind != kind or not keep:
                continue
            for address, row in self.bases(layer):
                self._stream.copy(moving, address + (span.past - keep) * row, keep * row)
                self._stream.copy(address, moving, keep * row)
        span.past = keep


def bound_past(past: int, window: int | None) -> tuple[int, int]:
    """The first position that is bound, and how many are, both multiples of 64."""
    first = 0
    if window is not None:
        first = max(0, past - window + 1) // POSITION_BLOCK * POSITION_BLOCK
    return first, max(POSITION_BLOCK, align(past - first, POSITION_BLOCK))


def fill_mask(mask: np.ndarray, past: int, window: int | None) -> None:
    """mask: float32 `[T, S + T]`; past: of the S positions, how many are filled."""
    tokens = len(mask)
    bound = mask.shape[1] - tokens
    if tokens == 1:
        mask[0, :past] = 0
        mask[0, past:bound] = MASKED
        mask[0, bound] = 0
        if window is not None:
            mask[0, : max(0, past - window + 1)] = MASKED
        return
    # As if the chunk's own came right behind what is filled.
    places = np.concatenate([np.arange(bound), np.arange(past, past + tokens)])
    there = np.concatenate([np.arange(bound) < past, np.ones(tokens, bool)])
    own = np.arange(past, past + tokens)[:, None]
    seen = there & (places <= own)
    if window is not None:
        seen &= own - places < window
    mask[:] = np.where(seen, np.float32(0), np.float32(MASKED))
