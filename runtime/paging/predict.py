"""Guesses which experts the next layer will ask for, before its attention has run.

Its router is applied to the residual stream as the present layer's attention leaves it: published
as "look ahead", right for 74 to 89 % of the experts of trained models.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...bundle.footprint import predicted_layers, predictor_bytes
from ...bundle.manifest import PREDICTORS, Manifest
from ...errors import BundleError, InputError
from ...model.spec import ModelSpec

PREFETCH = ("auto", "on", "off")
EARLY_PAGES = 2  # read early, at most, for the next layer of one token
EARLY_PROMPT_PAGES = 32  # and of a prompt, whose attention takes longer
_SAMPLE = 32  # of a prompt's tokens, by which is guessed
# How fast the share of right guesses forgets: it covers about as many guesses.
_MEMORY = 256
# Guesses below this share of right ones are not acted on.
WORTHWHILE = 0.6


def can_predict(manifest: Manifest, choice: str) -> bool:
    """Whether a session of this bundle reads early; choice: "auto", "on" or "off".

    Raises:
        InputError: another choice, or "on" where it cannot be.
    """
    if choice not in PREFETCH:
        raise InputError(f"prefetch must be one of {', '.join(PREFETCH)}, not {choice}")
    if choice == "off":
        return False
    if not predicted_layers(manifest.spec):
        reason = "the model has no two layers of experts"
    elif PREDICTORS not in manifest.files:
        reason = "the bundle has no predictors; compile it again"
    else:
        return True
    if choice == "on":
        raise InputError(f"nothing can be read early: {reason}")
    return False


class Predictor:
    """accuracy: the share of recent guesses that were right, until there are some 1."""

    def __init__(self, root: Path, spec: ModelSpec):
        """Raises BundleError where the file cannot be read, or does not fit the model."""
        path = root / PREDICTORS
        self._weights: dict[int, np.ndarray] = {}
        self._bias: dict[int, np.ndarray] = {}
        self._correction: dict[int, np.ndarray] = {}
        self._sigmoid: dict[int, bool] = {}
        try:
            if path.stat().st_size != predictor_bytes(spec):
                raise BundleError(f"{path} does not fit the model; compile the bundle again")
            with path.open("rb") as file:
                for layer in predicted_layers(spec):
                    router = spec.layers[layer].router
                    if router is None:
                        continue
                    for expert in range(router.num_experts):  # a row at a time: no second copy
                        row = np.fromfile(file, np.float32, spec.hidden_size + 2)
                        self._rows(layer, router.num_experts, spec.hidden_size)[expert] = row[:-2]
                        self._bias[layer][expert], self._correction[layer][expert] = row[-2:]
                    self._sigmoid[layer] = router.scoring == "sigmoid"
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror})") from error
        self._eps, self._centred = spec.rms_norm_eps, spec.norm == "layer"
        self._following = dict(zip(spec.paged_layers, spec.paged_layers[1:], strict=False))
        self._guess: tuple[int, frozenset[int]] = (-1, frozenset())
        self.accuracy = 1.0

    def _rows(self, layer: int, experts: int, hidden_size: int) -> np.ndarray:
        if layer not in self._weights:
            self._weights[layer] = np.empty((experts, hidden_size), np.float32)
            self._bias[layer], self._correction[layer] = np.empty((2, experts), np.float32)
        return self._weights[layer]

    def guess(self, layer: int, hidden: np.ndarray, count: int) -> tuple[int, list[int]] | None:
        """The paged layer after `layer` and the experts that it will most likely ask for, likeliest
        first: `count` of them for one token; for several, those of any of them.

        hidden: float32 `[T, H]`. None where there is no next layer.
        """
        following = self._following.get(layer)
        if following is None or following not in self._weights:
            return None
        scores = self._scores(following, hidden[:: -(-len(hidden) // _SAMPLE)])
        best = np.argsort(-scores)[:, :count]
        if len(best) == 1:
            return following, best[0].tolist()
        wanted = np.bincount(best.ravel(), minlength=len(self._bias[following]))
        order = np.argsort(-wanted, kind="stable")
        return following, order[: np.count_nonzero(wanted)].tolist()

    def _scores(self, layer: int, hidden: np.ndarray) -> np.ndarray:
        """Of a layer's experts for tokens, float32 `[T, H]`; `[T, experts]`."""
        if self._centred:
            square = hidden.var(axis=1)
        else:
            square = np.einsum("th,th->t", hidden, hidden) / hidden.shape[1]
        scores = hidden @ self._weights[layer].T / np.sqrt(square + self._eps)[:, None]
        scores += self._bias[layer]
        correction = self._correction[layer]
        if self._sigmoid[layer]:
            return np.asarray(1.0 / (1.0 + np.exp(-scores)) + correction)
        if correction.any():  # else the order of the logits is that of their softmax
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = scores / scores.sum(axis=1, keepdims=True) + correction
        return np.asarray(scores)

    def remember(self, layer: int, experts: list[int]) -> None:
        """These experts of a layer were guessed, whether or not their pages are read for it."""
        self._guess = (layer, frozenset(experts))

    def learn(self, layer: int, experts: list[int]) -> None:
        """The layer has asked for these."""
        guessed_layer, guessed = self._guess
        if guessed_layer == layer and guessed:
            share = len(guessed.intersection(experts)) / len(guessed)
            weight = min(1.0, len(guessed) / _MEMORY)
            self.accuracy += (share - self.accuracy) * weight
        self._guess = (-1, frozenset())
