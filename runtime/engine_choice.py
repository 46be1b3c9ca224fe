"""The engine that runs a bundle, and why it and no other."""

from __future__ import annotations

import logging
from dataclasses import replace

from ..bundle.manifest import Manifest
from ..errors import EngineError, InputError
from .cpu.loading import load_on_cpu
from .loading import LoadedRunner, LoadRequest
from .memory.budget import AUTO
from .options import OpenOptions

_log = logging.getLogger(__name__)
_ASKED = "it was asked for"


def load_chosen(request: LoadRequest) -> LoadedRunner:
    """Loads a bundle by the backend that was asked for, or by the best that works.

    Raises:
        BudgetError, BundleError, ContextError, EngineError, InputError: of the engine that was
            asked for, or, with "auto", of the last that was tried.
    """
    options, manifest = request.options, request.manifest
    reason = why_no_gpu(options, manifest)
    if not reason:
        from .gpu.backends import Candidates, find_backend
        from .gpu.errors import DeviceMemoryError
        from .gpu.loading import load_on_gpu

        if options.backend != "auto":
            backend = find_backend(options.backend, request.root, manifest)
            return load_on_gpu(backend, replace(request, reason=_ASKED))
        candidates = Candidates(request.root, manifest)
        for backend in candidates:
            try:
                return load_on_gpu(backend, replace(request, reason=candidates.reason))
            except DeviceMemoryError:
                raise
            except EngineError as error:
                candidates.drop(backend.name, error)
        reason = candidates.reason
        _log.info("backend cpu: %s", reason)
    for name, size in (("GPU memory", options.gpu_memory), ("host memory", options.host_memory)):
        if size not in (None, AUTO):
            raise InputError(
                f"a size of {name} has no effect with the CPU backend, which runs because "
                f"{reason}; give a memory budget instead"
            )
    return load_on_cpu(replace(request, reason=reason))


def why_no_gpu(options: OpenOptions, manifest: Manifest) -> str:
    """Why the CPU runs a bundle without a look for GPUs; empty where there is to be one."""
    if options.backend == "cpu":
        return _ASKED
    if options.backend != "auto":
        return ""
    if options.kernels != "auto":
        return f"kernels {options.kernels!r} were asked for"
    return "" if manifest.graphs is not None else "the bundle has nothing for GPUs"
