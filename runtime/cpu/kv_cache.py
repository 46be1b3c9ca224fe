"""The keys and values of what a session has seen, in buffers that attention fills in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import InputError
from ...model.spec import ModelSpec
from ..cache_shape import capacity, kind_of

# Of that room, the share that keeps positions before the window when it is moved.
_SPARE_SHARE = 8


class Span:
    """How far the buffers of one kind are filled.

    origin: positions that were dropped before the first that is there. place, int64 [2], has both
    for the native kernels; seqlens_k and total_length, int32 [1], are what GroupQueryAttention
    wants to know. These three are those of the batch that was begun last.
    """

    def __init__(self, window: int | None, length: int):
        self.window = window
        self.capacity = length
        self.origin = 0
        self.place = np.zeros(2, np.int64)
        self.seqlens_k = np.zeros(1, np.int32)
        self.total_length = np.zeros(1, np.int32)

    @property
    def earliest(self) -> int:
        """The first position that may be run again: all that it sees is still there."""
        return self.origin + self.window - 1 if self.window is not None and self.origin else 0


class KvCache:
    """What a sequence has seen: `position` tokens. keys[l] and values[l]: float32 `[1, kv_heads,
    capacity_l, head_dim]`, one for each layer.

    With MLA both are one buffer, `[1, 1, capacity_l, latent]`, into which attention writes the same
    latent as key and as value.

    A chunk is `begin`, then attention of every layer, in one piece or in several (`place`), then
    `commit`; without the commit, the next chunk overwrites it.

    kept: what engines have made for this cache, by name.
    """

    def __init__(self, spec: ModelSpec, context: int, chunk: int):
        self.context = context
        self.position = 0
        self.spans: dict[str, Span] = {}
        self.kept: dict[object, Any] = {}
        self._sliding = False
        self._buffers: list[list[np.ndarray]] = []
        self._kinds = [kind_of(layer.window) for layer in spec.layers]
        for layer in spec.layers:
            length = capacity(layer.window, context, chunk)
            self.spans.setdefault(kind_of(layer.window), Span(layer.window, length))
            self._buffers.append(
                [
                    np.zeros((1, heads, length, size), np.float32)
                    for heads, size in spec.cache_shapes
                ]
            )
        self.keys = [buffers[0] for buffers in self._buffers]
        self.values = [buffers[-1] for buffers in self._buffers]

    @property
    def layers(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each layer: keys, values, and the place of its span."""
        spans = [self.spans[kind] for kind in self._kinds]
        return [
            (keys, values, span.place)
            for keys, values, span in zip(self.keys, self.values, spans, strict=True)
        ]

    def begin(self, tokens: int) -> None:
        """Makes room for `tokens` more, at most the chunk that the cache was made for.

        Raises:
            InputError: an interrupt came while keys and values were moved.
        """
        if self._sliding:
            raise InputError("the session was interrupted while it moved its window; reset it")
        for kind, span in self.spans.items():
            past = self.position - span.origin
            if past + tokens > span.capacity:
                self._slide(kind, span, tokens)
            span.place[:] = self.position - span.origin, span.origin
        self.place(0, tokens)

    def place(self, start: int, tokens: int) -> None:
        """Attention is to run for tokens [start, start + tokens) of those that were begun."""
        for span in self.spans.values():
            total = self.position - span.origin + start + tokens
            span.total_length[0] = total
            span.seqlens_k[0] = total - 1

    def commit(self, tokens: int) -> None:
        self.position += tokens

    def reset(self) -> None:
        self.position = 0
        for span in self.spans.values():
            span.origin = 0
        self._sliding = False

    def rewind(self, position: int) -> int:
        """Forgets what comes from `position` on, or all of it where a window no longer holds what
        `position` sees; returns how many tokens it has seen now."""
        position = min(position, self.position)
        if self._sliding or position < max(span.earliest for span in self.spans.values()):
            position = 0
        if position == 0:
            self.reset()
        self.position = position
        return position

    def _slide(self, kind: str, span: Span, tokens: int) -> None:
        """Keeps the window, and some positions before it where there is room: so that a few tokens
        may be run again."""
        if span.window is None:
            raise ValueError(f"{span.capacity} positions are full")
        past, least = self.position - span.origin, span.window - 1
        spare = min((span.capacity - least) // _SPARE_SHARE, span.capacity - least - tokens)
        keep = min(least + max(0, spare), past)
        self._sliding = True
        for layer, its_kind in enumerate(self._kinds):
            if its_kind == kind:
                for buffer in self._buffers[layer]:
                    buffer[:, :, :keep] = buffer[:, :, past - keep : past]
        span.origin = self.position - keep
        self._sliding = False
