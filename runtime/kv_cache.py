"""The keys and values of what the session has seen, in buffers that attention fills in place."""

from __future__ import annotations

import numpy as np

from ..model.spec import ModelSpec

# A windowed layer has room for this many tokens beyond its window, so that the window is moved to
# the front of its buffer only once in as many steps.
SLACK = 64


def kind_of(window: int | None) -> str:
    """Layers of one kind have buffers of the same length."""
    return "full" if window is None else f"w{window}"


def capacity(window: int | None, context: int, chunk: int) -> int:
    """Positions in the buffer of a layer that is fed at most `chunk` tokens at once."""
    if window is None:
        return context
    return min(context, window - 1 + max(chunk, SLACK))


def kv_bytes(spec: ModelSpec, context: int, chunk: int) -> int:
    """Bytes of all buffers."""
    positions = sum(capacity(layer.window, context, chunk) for layer in spec.layers)
    return positions * spec.cache_elements * 4


class Span:
    """How far the buffers of one kind are filled.

    seqlens_k and total_length, int32 [1], are what GroupQueryAttention wants to know.
    """

    def __init__(self, window: int | None, length: int):
        self.window = window
        self.capacity = length
        self.past = 0
        self.seqlens_k = np.zeros(1, np.int32)
        self.total_length = np.zeros(1, np.int32)


class KvCache:
    """keys[l] and values[l]: float32 `[1, kv_heads, capacity_l, head_dim]`, one for each layer.

    With MLA both are one buffer, `[1, 1, capacity_l, latent]`, into which attention writes the same
    latent as key and as value.

    A chunk is `begin`, then attention of every layer, in one piece or in several (`place`), then
    `commit`; without the commit, the next chunk overwrites it.
    """

    def __init__(self, spec: ModelSpec, context: int, chunk: int):
        self.context = context
        self.position = 0
        self.spans: dict[str, Span] = {}
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

    def begin(self, tokens: int) -> None:
        """Makes room for `tokens` more, at most the chunk that the cache was made for."""
        for kind, span in self.spans.items():
            if span.past + tokens > span.capacity:
                self._slide(kind, span)
        self.place(0, tokens)

    def place(self, start: int, tokens: int) -> None:
        """Attention is to run for tokens [start, start + tokens) of those that were begun."""
        for span in self.spans.values():
            span.total_length[0] = span.past + start + tokens
            span.seqlens_k[0] = span.past + start + tokens - 1

    def commit(self, tokens: int) -> None:
        self.position += tokens
        for span in self.spans.values():
            span.past += tokens

    def reset(self) -> None:
        self.position = 0
        for span in self.spans.values():
            span.past = 0

    def rewind(self, position: int) -> bool:
        """Forgets what came after `position` tokens; False, and nothing is done, where a window has
        been moved on too far for that."""
        by = self.position - position
        for span in self.spans.values():
            needed = position if span.window is None else min(span.window - 1, position)
            if span.past - by < needed:
                return False
        self.commit(-by)
        return True

    def _slide(self, kind: str, span: Span) -> None:
        if span.window is None:
            raise ValueError(f"{span.capacity} positions are full")
        keep = min(span.window - 1, span.past)
        for layer, its_kind in enumerate(self._kinds):
            if its_kind == kind:
                for buffer in self._buffers[layer]:
                    buffer[:, :, :keep] = buffer[:, :, span.past - keep : span.past]
        span.past = keep
