"""Models that are open in this process, so that another session of the same one shares it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..bundle.manifest import Manifest
from .context import choose_context
from .loaded import LoadedModel
from .loading import LoadedRunner, LoadRequest
from .memory.budget import BATCH
from .memory.leftover import count_opened
from .options import OpenOptions
from .session import Session

_lock = threading.RLock()
_models: list[LoadedModel] = []


@contextmanager
def opening_alone() -> Iterator[None]:
    """While a bundle is opened: so that what is opened twice at the same time is one model."""
    with _lock:
        yield


def share(root: Path, manifest: Manifest, options: OpenOptions) -> Session | None:
    """Another session of a model that is open with these options and this bundle; None where there
    is none, or where files are to be made.

    Raises:
        BudgetError: its keys and values do not fit into the budget beside those of the others.
    """
    key = _key(root, options)
    if key is None:
        return None
    wanted = choose_context(options.context, manifest.spec, str(root))
    for model in list(_models):
        model.reclaim()
    for model in list(_models):
        seen = wanted if options.context is not None else min(wanted, model.longest)
        # Where ONNX Runtime computes, the size of a batch decides how it rounds.
        same_batch = model.plan.batch == min(BATCH, seen)
        alike = (model.shared_as, model.manifest) == (key, manifest)
        if alike and same_batch and model.process == os.getpid():
            seat = model.open_seat(seen, options.memory_budget)
            if seat is not None:
                return Session(model, seen, seat)
    return None


def open_session(
    request: LoadRequest, loaded: LoadedRunner, tokenizer: Any, *, shared: bool
) -> Session:
    """The first session of a model; see opening_alone. shared: later ones may share it."""
    key = _key(request.root, request.options) if shared else None
    model = LoadedModel(request, loaded, tokenizer, key, _forget)
    seat = model.open_seat(loaded.context)
    if seat is None:  # nobody else has it
        raise RuntimeError("a model that is closed before it is open")
    count_opened()
    if key is not None:
        _models.append(model)
    return Session(model, loaded.context, seat)


def _key(root: Path, options: OpenOptions) -> tuple[str, OpenOptions] | None:
    """What has to be the same for two sessions to share a model; None: it is not shared."""
    return None if options.makes_files else (os.path.realpath(root), options.of_model)


def _forget(model: LoadedModel) -> None:
    if model in _models:
        _models.remove(model)


def _after_fork() -> None:
    """The child has none of them: see Model.need_open."""
    global _lock
    _lock = threading.RLock()
    _models.clear()


os.register_at_fork(after_in_child=_after_fork)
