"""The shape of a sequence's keys and values: their kinds, positions and bytes."""

from __future__ import annotations

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
