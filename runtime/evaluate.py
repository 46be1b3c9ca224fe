"""How well a bundle predicts text, and how close it stays to a reference. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ContextError, InputError
from ..progress import Progress, Silent
from .session import Session


@dataclass(frozen=True)
class Evaluation:
    """window: tokens that share one context. tokens: number scored. kl_*: KL(reference || bundle)
    in nats, over tokens.

    top1_agreement: share of tokens where both find the same one most likely. What needs a
    reference is None without one. lossy: what changes the bundle's output.
    """

    window: int
    tokens: int
    perplexity: float
    kl_mean: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None
    reference_perplexity: float | None = None
    lossy: tuple[str, ...] = ()


def evaluate(
    session: Session,
    token_ids: Sequence[int],
    window: int,
    reference: Callable[[Sequence[int]], np.ndarray] | None = None,
    progress: Progress | None = None,
    step: int | None = None,
) -> Evaluation:
    """Scores windows of `window` tokens, each from an empty context; its first token is not scored.

    reference: token ids → logits `[T, V]`. progress is told tokens. step: tokens run at once, by
    default the session's chunk; 1 is how they run while decoding.

    Raises:
        InputError: fewer than two tokens, a window that scores nothing, or a step below 1.
        ContextError: the window is longer than the session's context.
    """
    if len(token_ids) < 2:
        raise InputError(f"evaluation needs at least 2 tokens, and the text has {len(token_ids)}")
    if window < 2:
        raise InputError(f"evaluation window must be 2 tokens or more, not {window}")
    step = session.plan.chunk if step is None else step
    if step < 1:
        raise InputError(f"evaluation step must be 1 token or more, not {step}")
    if window > session.context:
        raise ContextError(
            f"evaluation window of {window} tokens is longer than the context of "
            f"{session.context}; use a smaller window or open the bundle with a larger context"
        )
    progress = progress or Silent()
    progress.stage("evaluating", len(token_ids))
    losses: list[np.ndarray] = []
    reference_losses: list[np.ndarray] = []
    divergences: list[np.ndarray] = []
    agreements: list[np.ndarray] = []
    for start in range(0, len(token_ids), window):
        ids = [int(token) for token in token_ids[start : start + window]]
        if len(ids) < 2:
            continue
        expected = reference(ids) if reference is not None else None
        session.reset()
        # By steps, so that only a step's logits are held at once.
        for begin in range(0, len(ids), step):
            part = ids[begin : begin + step]
            targets = np.asarray(ids[begin + 1 : begin + 1 + len(part)])
            logits = session.forward(part)[: len(targets)]
            progress.advance(len(part))
            if not len(targets):
                continue
            found = _log_softmax(logits)
            losses.append(-found[np.arange(len(targets)), targets])
            if expected is not None:
                wanted = _log_softmax(expected[begin : begin + len(targets)])
                reference_losses.append(-wanted[np.arange(len(targets)), targets])
                divergences.append((np.exp(wanted) * (wanted - found)).sum(axis=1))
                agreements.append(wanted.argmax(axis=1) == found.argmax(axis=1))
    session.reset()
    loss = np.concatenate(losses)
    perplexity, lossy = math.exp(loss.mean()), session.stats.lossy
    if reference is None:
        return Evaluation(window, len(loss), perplexity, lossy=lossy)
    divergence = np.concatenate(divergences)
    return Evaluation(
        window=window,
        tokens=len(loss),
        perplexity=perplexity,
        kl_mean=float(divergence.mean()),
        kl_p99=float(np.percentile(divergence, 99)),
        top1_agreement=float(np.concatenate(agreements).mean()),
        reference_perplexity=math.exp(np.concatenate(reference_losses).mean()),
        lossy=lossy,
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64, along the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
