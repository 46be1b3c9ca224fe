"""Options of a session that trade quality for speed: tokens go to fewer experts.

An expert that a token goes without has the id DROPPED and weight 0; shapes stay as they are.
Weights are float32 `[T, k]` and not negative, ids int64 `[T, k]`; what comes in is not changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..errors import InputError
from ..model.spec import ModelSpec

DROPPED = -1
# Weights that are equal, or just the share, are not below it because of how a sum is rounded.
_JUST_BELOW = np.float32(1 - 1e-5)

Choice = tuple[np.ndarray, np.ndarray]  # weights, ids


def keep_strongest(
    weights: np.ndarray, ids: np.ndarray, active: int, *, renormalise: bool
) -> Choice:
    """Only the `active` experts of each token with the largest weights; of equal ones, the first.

    renormalise: what is kept of a token's weights has the sum that all of them had.
    """
    if active >= weights.shape[1]:
        return weights, ids
    order = np.argsort(-weights, axis=1, kind="stable")
    dropped = np.zeros(weights.shape, bool)
    np.put_along_axis(dropped, order[:, active:], True, axis=1)
    kept = np.where(dropped, np.float32(0), weights)
    if renormalise:
        before, after = weights.sum(axis=1, keepdims=True), kept.sum(axis=1, keepdims=True)
        kept *= np.divide(before, after, out=np.ones_like(after), where=after > 0)
    return kept, np.where(dropped, DROPPED, ids)


def drop_cold(
    weights: np.ndarray,
    ids: np.ndarray,
    is_resident: Callable[[int], bool],
    share: float,
) -> Choice:
    """Without the experts that would have to be read for tokens to which they matter little.

    An expert is dropped where it is not resident and its weight is below `share` of an even split
    of the token's weights, for every token that it was chosen for: if it is read for one of them,
    all may have it. share is at most 1, so the strongest expert of a token always stays.

    The weights of the others stay as they are: making up for what is missing has the higher KL
    divergence, as it changes what is there (docs/design.md).
    """
    chosen = ids != DROPPED
    even = weights.sum(axis=1, keepdims=True) / np.maximum(chosen.sum(axis=1, keepdims=True), 1)
    weak = chosen & (weights < share * even * _JUST_BELOW)
    np.put_along_axis(weak, weights.argmax(axis=1)[:, None], False, axis=1)
    if not weak.any():
        return weights, ids
    wanted = set(ids[chosen & ~weak].tolist())
    cold = [e for e in set(ids[weak].tolist()) - wanted if not is_resident(e)]
    if not cold:
        return weights, ids
    dropped = weak & np.isin(ids, cold)
    return np.where(dropped, np.float32(0), weights), np.where(dropped, DROPPED, ids)


class ExpertChoice:
    """What a session does with the routers' choice; by default nothing.

    names: the options in use, in words. skipped: how often a token went without an expert because
    its page was not there.

    Raises:
        InputError: an option is out of range, or has no effect on this model.
    """

    def __init__(self, spec: ModelSpec, active_experts: int | None = None, skip_cold: float = 0.0):
        routers = {
            index: layer.router
            for index, layer in enumerate(spec.layers)
            if layer.is_moe and layer.router is not None
        }
        top_k = sorted({router.top_k for router in routers.values()})
        if active_experts is not None:
            if not routers:
                raise InputError("active experts have no effect: the model has no routed experts")
            if isinstance(active_experts, bool) or not 1 <= active_experts <= top_k[-1]:
                raise InputError(
                    f"{active_experts} active experts are out of range: the model uses "
                    f"{top_k[-1]} per token, so choose 1 to {top_k[-1]}"
                )
        if not (math.isfinite(skip_cold) and 0 <= skip_cold <= 1):
            raise InputError(
                f"skip cold {skip_cold} is out of range: choose a share of an even split from 0 "
                "(none is skipped) to 1"
            )
        if skip_cold and (active_experts or max(top_k, default=1)) == 1:
            raise InputError("skip cold has no effect: a token has one expert, which always stays")
        self._renormalise = {index: router.normalize for index, router in routers.items()}
        self._active = active_experts if active_experts is not None else max(top_k, default=1)
        self._skip_cold = skip_cold
        self.names = (
            *(f"active experts {k} → {self._active}" for k in top_k if self._active < k),
            *([f"skip cold {skip_cold:g}"] if skip_cold else []),
        )
        self.skipped = 0

    def choose(
        self,
        layer: int,
        weights: np.ndarray,
        ids: np.ndarray,
        is_resident: Callable[[int], bool],
    ) -> Choice:
        """The weights and ids of a chunk that a layer is to run with."""
        if not self.names or layer not in self._renormalise:
            return weights, ids
        weights, ids = keep_strongest(
            weights, ids, self._active, renormalise=self._renormalise[layer]
        )
        if self._skip_cold:
            before = np.count_nonzero(ids == DROPPED)
            weights, ids = drop_cold(weights, ids, is_resident, self._skip_cold)
            self.skipped += int(np.count_nonzero(ids == DROPPED) - before)
        return weights, ids
