"""Models that are open in this process, so that another session of the same one shares it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..bundle.manifest import Manifest
from .context import choose_context
from .loaded import LoadedModel, Opening
from .memory.budget import BATCH
from .memory.leftover import count_opened
from .session import Session

_lock = threading.RLock()
_models: list[LoadedModel] = []


@contextmanager
def opening_alone() -> Iterator[None]:
    """While a bundle is opened: so that what is opened twice at the same time is one model."""
    with _lock:
        yield


@dataclass(frozen=True)
class Settings:
    """What has to be the same for two sessions to share a model, beside bundle and budget: the
    arguments of `open_bundle`, as they are given."""

    root: str
    threads: int
    verify_pages: bool
    kernels: str
    prefetch: str
    active_experts: int | None
    skip_cold: float
    backend: str
    gpu_memory: int | str | None
    host_memory: int | str | None


def share(
    settings: Settings,
    manifest: Manifest,
    context: int | None,
    memory_budget: int | str | None,
) -> Session | None:
    """Another session of a model that is open with these settings and this bundle; None where there
    is none. context, memory_budget: as for `open_bundle`.

    Raises:
        BudgetError: its keys and values do not fit into the budget beside those of the others.
    """
    wanted = choose_context(context, manifest.spec, settings.root)
    for model in list(_models):
        model.reclaim()
    for model in list(_models):
        seen = wanted if context is not None else min(wanted, model.longest)
        # Where ONNX Runtime computes, the size of a batch decides how it rounds.
        same_batch = model.plan.batch == min(BATCH, seen)
        alike = (model.settings, model.manifest) == (settings, manifest)
        if alike and same_batch and model.process == os.getpid():
            seat = model.open_seat(seen, memory_budget)
            if seat is not None:
                return Session(model, seen, seat)
    return None


def open_session(opening: Opening, context: int) -> Session:
    """The first session of a model; see opening_alone."""
    model = LoadedModel(opening, _forget)
    seat = model.open_seat(context)
    if seat is None:  # nobody else has it
        raise RuntimeError("a model that is closed before it is open")
    count_opened()
    if opening.settings is not None:
        _models.append(model)
    return Session(model, context, seat)


def _forget(model: LoadedModel) -> None:
    if model in _models:
        _models.remove(model)


def _after_fork() -> None:
    """The child has none of them: see Model.need_open."""
    global _lock
    _lock = threading.RLock()
    _models.clear()


os.register_at_fork(after_in_child=_after_fork)
