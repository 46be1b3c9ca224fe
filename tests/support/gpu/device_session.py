"""A session on a device that the caller brings: how the GPU runtime runs without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.runtime.gpu.backends import Backend, onnx_backend
from pocketmoe.runtime.gpu.device import Device
from pocketmoe.runtime.gpu.loading import TierSizes, graphs_of, load_on_gpu
from pocketmoe.runtime.loading import LoadedRunner, LoadRequest
from pocketmoe.runtime.opening import open_by
from pocketmoe.runtime.options import OpenOptions
from pocketmoe.runtime.paging.policy import CachePolicy
from pocketmoe.runtime.session import Session


def open_on_device(
    root: Path,
    device: Device,
    *,
    backend: Backend | None = None,
    sizes: TierSizes | None = None,
    policy: Callable[[], CachePolicy] | None = None,
    **options: Any,
) -> Session:
    """backend: by default ONNX Runtime, whose CPU provider serves a device of the host's. options:
    of OpenOptions; threads is 1 unless it is given.

    Raises:
        BudgetError, BundleError, ContextError, EngineError, InputError: as open_with.
    """
    manifest = read_manifest(root)
    chosen = backend
    if chosen is None:
        chosen = onnx_backend(root, graphs_of(manifest, str(root)), manifest, device)

    def load(request: LoadRequest) -> LoadedRunner:
        return load_on_gpu(chosen, replace(request, reason="it was brought"), sizes, policy)

    return open_by(load, root, manifest, OpenOptions(**{"threads": 1, **options}), shared=False)
