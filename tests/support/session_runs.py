"""A text for a session, and what it takes to run it."""

from __future__ import annotations

import numpy as np

from pocketmoe.runtime.session import Session

TOKENS = np.random.default_rng(0).integers(1, 384, 80).tolist()


def run(session: Session) -> np.ndarray:
    parts = [session.forward(TOKENS[:50])]
    parts += [session.forward([token]) for token in TOKENS[50:]]
    return np.concatenate(parts)


def decode(session: Session, tokens: list[int]) -> None:
    """Token by token, as generation does it."""
    for token in tokens:
        session.forward([token], last_only=True)
