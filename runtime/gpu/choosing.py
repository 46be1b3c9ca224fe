"""From the backend that a caller names, or leaves open, to a runner on a GPU."""

from __future__ import annotations

import logging
from dataclasses import replace

from ...errors import EngineError
from .backends import Candidates, find_backend
from .errors import DeviceMemoryError
from .loading import DeviceRequest, Opened, open_runner

_log = logging.getLogger(__name__)


def open_on_gpu(choice: str, request: DeviceRequest) -> tuple[Opened | None, str]:
    """choice: one of opening.BACKENDS but "cpu". Returns None where "auto" finds that no GPU
    serves; and why it is what it is.

    Raises:
        EngineError: what was asked for does not work.
        BudgetError, BundleError, InputError: see open_runner.
    """
    root, manifest = request.root, request.manifest
    if choice != "auto":
        reason = "it was asked for"
        backend = find_backend(choice, root, manifest)
        return open_runner(backend, replace(request, reason=reason)), reason
    candidates = Candidates(root, manifest)
    for backend in candidates:
        reason = candidates.reason
        try:
            return open_runner(backend, replace(request, reason=reason)), reason
        except DeviceMemoryError:
            raise
        except EngineError as error:
            candidates.drop(backend.name, error)
    _log.info("backend cpu: %s", candidates.reason)
    return None, candidates.reason
