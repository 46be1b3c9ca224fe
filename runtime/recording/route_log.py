"""The log of experts that a session's tokens went to, on the way into a route file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ...bundle.manifest import Manifest
from ...bundle.pages import ExpertKey
from .routes import RouteRow, RouteWriter

_log = logging.getLogger(__name__)

# So much is kept before it becomes text: that takes longer than a token's own work on it.
_MOST_KEPT = 16_384

# Steps of batches of several sequences are numbered from here on: more than any position.
_FIRST_JOINT = 1 << 32

# Of a layer's run: turn, phase, first step, whether all rows have it, layer, then weights and ids
# `[T, k]`, and the experts whose pages were in the cache.
_Run = tuple[int, int, int, int, int, np.ndarray, np.ndarray, frozenset[int]]


class RouteLog:
    """Writes what `pocketmoe replay` reads; the file is in its place once the log is closed.

    A step is a token's position; where tokens of several sequences ran together it is one number
    for all of them, so that they are one visit. A turn begins with a prompt, or with each batch of
    a long one. An expert's rows are together, experts in the order in which their pages are used.

    Where the file cannot be written any further, a warning is logged, nothing more is recorded and
    no file is made: the run goes on.

    Raises:
        InputError: the file cannot be made.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._page_bytes = {page.key: page.nbytes for page in manifest.pages()}
        averages = {layer.layer: round(layer.page_bytes) for layer in manifest.footprint.experts}
        note = f"model={manifest.spec.family} n_layer={len(manifest.spec.layers)}"
        self._writer: RouteWriter | None = RouteWriter(path, averages, note)
        self._runs: list[_Run] = []
        self._kept = 0
        self._turn, self._phase, self._step, self._joint = -1, 0, 0, 0
        self._batches = 0  # joint ones

    def begin(self, step: int, *, prompt: bool, joint: bool = False) -> None:
        """A batch is run next. step: the position of its first token. joint: it is of several
        sequences."""
        self._turn = max(0, self._turn + prompt)
        self._phase, self._step, self._joint = int(not prompt), step, 0
        if joint:
            self._batches += 1
            self._step, self._joint = _FIRST_JOINT + self._batches, 1
        if self._kept > _MOST_KEPT:
            self._flush()

    def add(
        self, layer: int, weights: np.ndarray, ids: np.ndarray, holds: Callable[[int, int], bool]
    ) -> None:
        """A layer of the batch runs. weights, ids: `[T, k]`; an id below 0 stands for no expert.
        holds: whether a layer's expert is in the cache."""
        if self._writer is None:
            return
        there = frozenset(expert for expert in set(ids.ravel().tolist()) if holds(layer, expert))
        run = (
            self._turn, self._phase, self._step, self._joint, layer, weights.copy(), ids.copy(),
            there,
        )  # fmt: skip
        self._runs.append(run)
        self._kept += ids.size

    def close(self) -> None:
        self._flush(closing=True)

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()

    def _flush(self, *, closing: bool = False) -> None:
        writer = self._writer
        if writer is None:
            return
        rows = [row for run in self._runs for row in self._rows(*run)]
        self._runs.clear()
        self._kept = 0
        try:
            writer.write(rows)
            if closing:
                writer.close()
        except OSError as error:
            writer.discard()
            _log.warning("%s is not made: %s", writer.path, error.strerror or error)
            self._writer = None

    def _rows(
        self,
        turn: int,
        phase: int,
        first: int,
        joint: int,
        layer: int,
        weights: np.ndarray,
        ids: np.ndarray,
        there: frozenset[int],
    ) -> Iterator[RouteRow]:
        slots, chosen, shares = ids.shape[1], ids.ravel(), weights.ravel()
        last = -1
        for place in np.argsort(chosen, kind="stable").tolist():
            expert = int(chosen[place])
            if expert < 0:
                continue
            nbytes = self._page_bytes[ExpertKey(layer, expert)]
            read = 0 if expert in there or expert == last else nbytes
            last = expert
            step, slot = divmod(place, slots)
            yield RouteRow(
                turn, phase, first + (0 if joint else step), layer, slot, expert,
                float(shares[place]),
                int(expert in there), read,
            )  # fmt: skip
