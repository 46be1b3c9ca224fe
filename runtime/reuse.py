"""What of a prompt the session has seen already and need not run again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session

_BY_LENGTH = ("dynamic", "longrope")  # rotations that depend on how long the sequence becomes


def rewind_to_shared(session: Session, ids: Sequence[int]) -> int:
    """Takes the session back to where what it has seen and `ids` part; returns how many tokens that
    is. One at least is left to be run, for its logits."""
    seen = session.seen
    shared = shared_length(seen, ids[:-1])
    rope = session.manifest.spec.rope
    longest = max(len(seen), len(ids))
    if rope.kind in _BY_LENGTH and longest > rope.original_length:
        shared = 0
    return session.rewind(shared)


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many items two sequences have in common at their beginning."""
    shortest = min(len(first), len(second))
    for place in range(shortest):
        if first[place] != second[place]:
            return place
    return shortest
