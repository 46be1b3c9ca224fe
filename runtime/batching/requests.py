"""The work that threads want run, and how a batch is shared out among them: continuous batching."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import PocketMoEError
from ..recording.files import is_prompt
from ..runner import BatchPart, Cache


class Seat:
    """A sequence's place in the model: its cache, and what it wants just now.

    ended: when its last request was done. late: it came back too late to be waited for.
    """

    def __init__(self, cache: Cache):
        self.cache = cache
        self.request: Work | None = None
        self.wake = threading.Event()
        self.ended = 0.0
        self.late = False


@dataclass(eq=False)
class Work:
    """Tokens to be run after what the sequence has seen. logits: float32 `[T, V]`, or `[1, V]` for
    the last token alone. start: the position of the first.

    stamp: when it came, or was last given a part of a batch while others waited.
    """

    seat: Seat
    ids: np.ndarray
    logits: np.ndarray
    start: int
    stamp: float
    error: PocketMoEError | None = None

    @property
    def left(self) -> int:
        """Tokens; what the cache has seen counts, so interrupts between two steps do no harm."""
        return self.start + len(self.ids) - self.seat.cache.position

    @property
    def done(self) -> bool:
        return self.error is not None or self.left <= 0

    @property
    def is_prompt(self) -> bool:
        return is_prompt(self.start, len(self.ids))

    def part(self, tokens: int) -> BatchPart:
        """The next ones."""
        first = self.seat.cache.position - self.start
        stop = first + tokens
        logits = self.logits if len(self.logits) < len(self.ids) else self.logits[first:stop]
        return BatchPart(self.seat.cache, self.ids[first:stop], logits, self.start + len(self.ids))


def share_batch(
    pending: Sequence[Work], chunk: int, batch: int, *, others: bool
) -> list[tuple[Work, int]]:
    """Who gets how many tokens of the next batch. pending: oldest first. others: sequences are at
    work that are not among them.

    The oldest always gets some. While others decode, prompts get a chunk in all. Pieces of a prompt
    are whole chunks, but for its last: the pieces decide how ONNX Runtime rounds.
    """
    sizes = [0] * len(pending)
    if len(pending) == 1 and not others:
        return [(pending[0], min(pending[0].left, batch))]
    prompts = [index for index, request in enumerate(pending) if request.left > 1]
    tokens = [index for index, request in enumerate(pending) if request.left == 1]
    room, for_prompts = batch, chunk if others or tokens else batch

    def give(index: int) -> bool:
        nonlocal room, for_prompts
        piece = min(pending[index].left - sizes[index], chunk)
        is_prompt = pending[index].left > 1
        if piece == 0 or piece > room or (is_prompt and piece > for_prompts):
            return False
        sizes[index] += piece
        room -= piece
        for_prompts -= piece if is_prompt else 0
        return True

    for index in dict.fromkeys([0, *tokens, *prompts]):
        give(index)
    given = True
    while given:  # another piece for each in turn
        given = sum(map(give, prompts)) > 0
    return [(request, size) for request, size in zip(pending, sizes, strict=True) if size]
