"""Routes to replay: of a route file, or of a calibration record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...bundle.pages import PageFormat
from ...calibration.record import CalibrationRecord, is_record, read_record
from ...errors import InputError
from ...runtime.recording.routes import Routes, Visit, read_routes

TOKENS = 512  # of a record that are replayed: a replay of all of them would take minutes
_PAGES = 100_000  # that they ask for, at most, for the same reason
_RUN = 128  # tokens that follow one another, of each sequence
_WARM_UP = 0.25  # share of the tokens that fill the cache, and are not counted
_BLOCK = 64


@dataclass(frozen=True)
class RouteSource:
    """note: what is to be known about the routes, in words; empty for a route file."""

    routes: Routes
    note: str = ""


def load_routes(path: Path) -> RouteSource:
    """Raises InputError where the path is neither a route file nor a whole record."""
    if is_record(path) or path.is_dir():
        source = recorded_routes(read_record(path))
        if not source.routes.visits:
            raise InputError(f"{path} holds no routes: the model has no experts in pages")
        return source
    return RouteSource(read_routes(path))


def recorded_routes(record: CalibrationRecord, tokens: int = TOKENS) -> RouteSource:
    """The beginnings of several sequences of a record, a visit for each token and layer, as when
    decoding. The first of them count as a prompt, which fills the cache.

    Pages are taken to be int4: a record says nothing of how the model will be stored.
    """
    chosen = sampled_tokens(record, tokens)
    warm = int(len(chosen) * _WARM_UP)
    by_layer = [(item.layer, item.experts[chosen].tolist()) for item in record.layers]
    visits = tuple(
        Visit(layer, tuple(experts[token]), token < warm)
        for token in range(len(chosen))
        for layer, experts in by_layer
    )
    sizes = {
        item.layer: assumed_page(item.input_square.shape[1], item.inner_square.shape[1]).nbytes
        for item in record.layers
    }
    note = (
        f"{len(chosen):,} of {record.ids.size:,} calibration tokens, the first {warm:,} of which "
        "fill the cache"
    )
    return RouteSource(Routes(visits, sizes), note)


def sampled_tokens(record: CalibrationRecord, tokens: int) -> np.ndarray:
    """Which tokens are replayed: int64, sequence after sequence."""
    count, length = record.ids.shape
    needed = sum(item.experts.shape[1] for item in record.layers)
    tokens = max(1, min(tokens, _PAGES // max(1, needed), record.ids.size))
    run = min(length, max(_RUN, -(-tokens // count)))
    first = np.arange(-(-tokens // run))[:, None] * length
    return (first + np.arange(run)).ravel()[:tokens]


def assumed_page(hidden_size: int, intermediate_size: int) -> PageFormat:
    """int4 in the largest blocks up to 64 that fit; fp16 where none do."""
    for block in (_BLOCK, _BLOCK // 2):
        if hidden_size % block == 0 and intermediate_size % block == 0:
            return PageFormat("int4", block, hidden_size, intermediate_size)
    return PageFormat("fp16", 0, hidden_size, intermediate_size)
