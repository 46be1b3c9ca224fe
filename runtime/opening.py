"""Opening a bundle: choose an engine, plan the memory, load; a session of it comes out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..bundle.damage import incomplete_engines
from ..bundle.manifest import TOKENIZER, Manifest, read_manifest
from ..errors import InputError
from .context import choose_context
from .cpu.installed import find_onnxruntime
from .engine_choice import load_chosen
from .expert_choice import ExpertChoice
from .generation.text import load_tokenizer
from .loading import LoadedRunner, LoadRequest
from .options import OpenOptions, one_by_one
from .recording.files import PathLike, open_recording
from .session import Session
from .sharing import open_session, opening_alone, share

_log = logging.getLogger(__name__)


def open_with(path: PathLike, options: OpenOptions) -> Session:
    """Opens a bundle to run it. Where it is open in this process with the same options, this is
    another session of the same model, as by `Session.another`, and a memory budget that is given
    is that of all its sessions from then on; but not where files are to be made.

    Raises:
        BundleError, BudgetError, ContextError, EngineError, InputError: each says what to do.
    """
    with opening_alone():
        root = _path(path)
        find_onnxruntime()
        manifest = read_manifest(root)
        if left_out := incomplete_engines(root, manifest):
            _log.warning("%s", left_out)
        shared = share(root, manifest, options)
        return shared if shared is not None else open_by(load_chosen, root, manifest, options)


@one_by_one(OpenOptions)
def open_bundle(path: PathLike, options: OpenOptions) -> Session:
    """Opens a bundle to run it; what can be asked for is in OpenOptions, each by its name:
    `pocketmoe.open("bundle", memory_budget="2GiB", context=1024)`.

    Where the bundle is open in this process with the same options, this is another session of the
    same model, as by `Session.another`, and a memory budget that is given is that of all its
    sessions from then on; but not where files are to be made.

    Raises:
        BundleError, BudgetError, ContextError, EngineError, InputError: each says what to do.
        TypeError: there is no such option.
    """
    return open_with(path, options)


def open_by(
    load: Callable[[LoadRequest], LoadedRunner],
    root: Path,
    manifest: Manifest,
    options: OpenOptions,
    *,
    shared: bool = True,
) -> Session:
    """The first session of a bundle that `load` brings into memory. shared: later ones share it.

    Raises:
        As `open_with`.
    """
    choose_context(options.context, manifest.spec, str(root))
    choice = ExpertChoice(manifest.spec, options.active_experts, options.skip_cold)
    tokenizer = load_tokenizer(root / TOKENIZER)
    about: dict[str, Any] = {"bundle": str(root), "threads": options.cpu_threads}
    with ExitStack() as undo:
        recording = open_recording(manifest, options.record_routes, options.trace, about)
        undo.callback(recording.discard)
        request = LoadRequest(root, manifest, options, choice, recording)
        loaded = load(request)
        undo.callback(loaded.runner.close)
        about.update(threads=loaded.threads, cache_slots=loaded.plan.slots)
        session = open_session(request, loaded, tokenizer, shared=shared)
        undo.pop_all()
    return session


def _path(named: object) -> Path:
    if isinstance(named, (str, os.PathLike)):
        if not os.fspath(named):
            raise InputError("the path of the bundle is empty")
        return Path(named)
    raise InputError(f"a bundle is named by a path, not by {type(named).__name__}")
