"""A session on a device that the caller brings: how tests run all of this without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ...bundle.manifest import TOKENIZER, read_manifest
from ..expert_choice import ExpertChoice
from ..generation.text import load_tokenizer
from ..loaded import Opening
from ..paging.policy import CachePolicy
from ..recording.files import PathLike, open_recording
from ..session import Session
from ..sharing import open_session
from .backends import Backend, onnx_backend
from .device import Device
from .loading import DeviceRequest, TierSizes, graphs_of, open_runner


def open_device_session(
    root: Path,
    device: Device,
    *,
    backend: Backend | None = None,
    sizes: TierSizes | None = None,
    context: int | None = None,
    threads: int = 1,
    verify_pages: bool = True,
    active_experts: int | None = None,
    skip_cold: float = 0.0,
    record_routes: PathLike | None = None,
    trace: PathLike | None = None,
    policy: Callable[[], CachePolicy] | None = None,
) -> Session:
    """As open_bundle. backend: by default ONNX Runtime, whose CPU provider serves a HostDevice.

    Raises:
        BudgetError, BundleError, ContextError, EngineError, InputError: as open_bundle.
    """
    manifest = read_manifest(root)
    choice = ExpertChoice(manifest.spec, active_experts, skip_cold)
    if backend is None:
        backend = onnx_backend(root, graphs_of(manifest, str(root)), manifest, device)
    with ExitStack() as undo:
        recording = open_recording(manifest, record_routes, trace, {"bundle": str(root)})
        undo.callback(recording.discard)
        request = DeviceRequest(
            root, manifest, context, threads, verify_pages, choice, recording,
            sizes or TierSizes(), reason="it was brought", policy=policy,
        )  # fmt: skip
        opened = open_runner(backend, request)
        undo.callback(opened.runner.close)
        session = open_session(
            Opening(
                root, manifest, opened.plan, load_tokenizer(root / TOKENIZER), threads,
                opened.runner, choice, recording, opened.longest,
            ),
            opened.context,
        )  # fmt: skip
        undo.pop_all()
    return session
