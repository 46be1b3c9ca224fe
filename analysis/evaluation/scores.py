"""Perplexity of a bundle on a text, and its divergence from a reference. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...errors import BundleError, ContextError, InputError
from ...progress import Progress, Silent
from ...runtime.session import Session
from .deviation import Deviations, LayerDeviation
from .intervals import CONFIDENCE, RESAMPLES, BlockBootstrap, Interval
from .windows import Windows

_ELEMENTS = 1 << 21  # logits that are compared at once, in float64


@dataclass(frozen=True)
class Bootstrap:
    """How intervals were found: see intervals.py."""

    blocks: str = "windows"
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """window: tokens that share one context, in so many `windows`. tokens: number scored. kl_*:
    KL(reference || bundle) in nats, over tokens.

    top1_agreement: share of tokens where both find the same one most likely. changed_experts: see
    LayerDeviation; over all layers. perplexity_ratio: bundle to reference. What needs a reference
    is None without one. intervals: 95 % confidence of the figures of that name, but where there is
    one window alone. lossy: what changes the bundle's output; routes are those before it.
    """

    window: int
    windows: int
    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    perplexity_ratio: float | None = None
    kl_mean: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None
    changed_experts: float | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    bootstrap: Bootstrap = Bootstrap()
    layers: tuple[LayerDeviation, ...] = ()
    lossy: tuple[str, ...] = ()


def evaluate(
    session: Session,
    windows: Windows,
    logits: Callable[[int], np.ndarray] | None = None,
    deviations: Deviations | None = None,
    progress: Progress | None = None,
    step: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Scores windows, each from an empty context; the first token of each is not scored.

    logits: those of the reference, `[T, V]` by a window's number; asked for in order.
    deviations: compares the layers too. progress is told tokens. step: tokens run at once, by
    default the session's chunk; 1 is how they run while decoding. seed: of the intervals.

    Raises:
        InputError: a step below 1.
        ContextError: the windows are longer than the session's context.
        BundleError: the bundle's numbers are not finite.
    """
    step = session.plan.chunk if step is None else step
    if step < 1:
        raise InputError(f"evaluation step must be 1 token or more, not {step}")
    if windows.length > session.context:
        raise ContextError(
            f"evaluation window of {windows.length} tokens is longer than the context of "
            f"{session.context}; use a smaller window or open the bundle with a larger context"
        )
    progress = progress or Silent()
    progress.stage("evaluating", windows.tokens)
    scores = Scores(windows, compared=logits is not None)
    for number in range(len(windows)):
        ids = windows[number]
        expected = logits(number) if logits is not None else None
        session.reset()
        if deviations is not None:
            deviations.begin(number)
        # By steps, so that only a step's logits are held at once.
        for begin in range(0, len(ids), step):
            part, targets = ids[begin : begin + step], ids[begin + 1 : begin + step + 1]
            observe = deviations.observe if deviations is not None else None
            found = session.forward(part.tolist(), observe=observe)
            wanted = expected[begin : begin + len(targets)] if expected is not None else None
            scores.add(number, targets, found[: len(targets)], wanted)
            progress.advance(len(part))
    session.reset()
    return scores.result(deviations, seed, session.stats.lossy)


class Scores:
    """Figures of each token, as they come; windows in their order."""

    def __init__(self, windows: Windows, *, compared: bool):
        count = int((windows.lengths - 1).sum())
        self._windows, self._compared, self._done = windows, compared, 0
        self._number = np.empty(count, np.int32)  # of its window
        self._loss, self._reference_loss, self._kl = np.empty((3, count))
        self._agrees = np.empty(count, bool)

    def add(
        self, number: int, targets: np.ndarray, found: np.ndarray, wanted: np.ndarray | None
    ) -> None:
        """found, wanted: logits of bundle and reference, `[T, V]`, for `[T]` targets."""
        if not np.isfinite(found).all():
            raise BundleError(
                "the bundle computes logits that are not finite; compile it with a backbone of "
                "fp32, or see what 'pocketmoe verify' finds"
            )
        rows = max(1, _ELEMENTS // found.shape[1])
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            own = _log_softmax(found[part])
            here, each = targets[part], np.arange(len(own))
            at = slice(self._done, self._done + len(own))
            self._number[at] = number
            self._loss[at] = -own[each, here]
            if wanted is not None:
                other = _log_softmax(wanted[part])
                self._reference_loss[at] = -other[each, here]
                self._kl[at] = (np.exp(other) * (other - own)).sum(axis=1)
                self._agrees[at] = other.argmax(axis=1) == own.argmax(axis=1)
            self._done += len(own)

    def result(
        self, deviations: Deviations | None = None, seed: int = 0, lossy: tuple[str, ...] = ()
    ) -> Evaluation:
        bootstrap = BlockBootstrap(len(self._windows), seed)
        sizes = self._windows.lengths - 1
        figures: dict[str, float] = {}
        intervals: dict[str, Interval | None] = {}

        def mean(name: str, values: np.ndarray, *, exponent: bool = False) -> None:
            sums = np.bincount(self._number, values, len(sizes))
            found = np.array([values.mean(), *(bootstrap.mean(sums, sizes) or ())])
            with np.errstate(over="ignore"):
                found = np.exp(found) if exponent else found
            figures[name] = float(found[0])
            intervals[name] = (float(found[1]), float(found[2])) if len(found) > 1 else None

        mean("perplexity", self._loss, exponent=True)
        if self._compared:
            mean("reference_perplexity", self._reference_loss, exponent=True)
            mean("perplexity_ratio", self._loss - self._reference_loss, exponent=True)
            mean("kl_mean", self._kl)
            figures["kl_p99"] = float(np.quantile(self._kl, 0.99))
            intervals["kl_p99"] = bootstrap.quantile(self._kl, self._number, 0.99)
            mean("top1_agreement", self._agrees.astype(np.float64))
        layers = deviations.layers() if deviations is not None else ()
        if deviations is not None and any(item.changed_experts is not None for item in layers):
            changed, choices = (
                np.sum(list(counts.values()), axis=0)
                for counts in (deviations.changed, deviations.choices)
            )
            figures["changed_experts"] = float(changed.sum() / choices.sum())
            intervals["changed_experts"] = bootstrap.mean(changed, choices)
        return Evaluation(
            window=self._windows.length, windows=len(sizes), tokens=len(self._loss), **figures,
            intervals={name: found for name, found in intervals.items() if found is not None},
            bootstrap=Bootstrap(seed=seed), layers=layers, lossy=lossy,
        )  # fmt: skip


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64, along the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
