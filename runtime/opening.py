"""Opening a bundle: what a caller asks for becomes a plan, a runner, and a session."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..bundle.damage import incomplete_engines
from ..bundle.manifest import TOKENIZER, Manifest, read_manifest
from ..cpus import cpu_count
from ..errors import BudgetError, InputError
from ..numeric import is_integer
from .context import choose_context
from .cpu.experts import choose_kernels
from .cpu.installed import find_onnxruntime
from .cpu.native_backbone import NativeBackbone
from .cpu.runner import HostRunner
from .expert_choice import ExpertChoice
from .generation.text import load_tokenizer
from .loaded import Opening
from .memory.budget import AUTO, plan_memory, read_budget
from .memory.host_memory import give_back_freed
from .memory.leftover import count_open, left_behind
from .paging.predict import can_predict
from .recording.files import open_recording
from .recording.stats import process_memory
from .session import Session
from .sharing import Settings, open_session, opening_alone, share

_log = logging.getLogger(__name__)
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "cuda", "cpu")


def open_bundle(
    path: str | os.PathLike[str],
    *,
    memory_budget: int | str | None = None,
    threads: int | None = None,
    context: int | None = None,
    verify_pages: bool = True,
    kernels: str = "auto",
    prefetch: str = "auto",
    active_experts: int | None = None,
    skip_cold: float = 0.0,
    record_routes: str | os.PathLike[str] | None = None,
    trace: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    gpu_memory: int | str | None = None,
    host_memory: int | str | None = None,
) -> Session:
    """Opens a bundle to run it. Where it is open in this process with the same settings, this is
    another session of the same model, as by `Session.another`, and a memory budget that is given
    is that of all its sessions from then on; but not where files are to be made.

    memory_budget: bytes, or text like "2GiB", for the whole process; "auto" takes what the machine
    has free, and None keeps all experts in memory, or the budget of the model that is open. With a
    GPU that has its own memory there are two budgets instead: gpu_memory, on the GPU, by default
    "auto", what is free, and host_memory, for the process on the host, by default "auto".
    backend: what runs the layers: "tensorrt", "tensorrt-rtx", "cuda" (ONNX Runtime), "cpu", or
    "auto", the best of them that works; which and why is logged, and in the stats.
    threads: default is all CPUs that the process may use. context: tokens that a session
    can see, by default 4096, or what the model can see if that is less. verify_pages: check the
    hashes of graphs and backbone now, and the hash of each page when it is first read.
    kernels: what computes, "native", "onnxruntime", or "auto": native where it can. Segments of the
    backbone that the native kernels do not know run in ONNX Runtime: see Stats.backbone_engine.
    prefetch: whether pages that the next layer may want are read early, "on", "off", or "auto":
    while most guesses are right.
    Lossy, see lossy.py: active_experts, how many of a token's experts are used, the strongest ones;
    skip_cold, below which share of an even split an expert that is not in the cache is left out.
    Files that are made when the session is closed: record_routes, which experts each token went to,
    for `pocketmoe replay`; trace, what happened when, for chrome://tracing.

    Raises:
        BundleError, BudgetError, ContextError, EngineError, InputError: each says what to do.
    """
    with opening_alone():
        return _open(
            _path(path), memory_budget, threads, context, verify_pages, kernels, prefetch,
            active_experts, skip_cold, record_routes, trace, backend, gpu_memory, host_memory,
        )  # fmt: skip


def _path(named: object) -> Path:
    if isinstance(named, (str, os.PathLike)):
        if not os.fspath(named):
            raise InputError("the path of the bundle is empty")
        return Path(named)
    raise InputError(f"a bundle is named by a path, not by {type(named).__name__}")


def _open(
    root: Path,
    memory_budget: int | str | None,
    threads: int | None,
    context: int | None,
    verify_pages: bool,
    kernels: str,
    prefetch: str,
    active_experts: int | None,
    skip_cold: float,
    record_routes: str | os.PathLike[str] | None,
    trace: str | os.PathLike[str] | None,
    backend: str,
    gpu_memory: int | str | None,
    host_memory: int | str | None,
) -> Session:
    find_onnxruntime()
    if not isinstance(verify_pages, bool):
        raise InputError(f"verify_pages must be True or False, not {verify_pages!r}")
    budget = read_budget(memory_budget)
    gpu_memory = None if gpu_memory == AUTO else gpu_memory
    gpu_budget = read_budget(gpu_memory, "GPU memory") if gpu_memory is not None else None
    host_budget = host_memory if host_memory == AUTO else read_budget(host_memory, "host memory")
    threads = _choose_threads(threads)
    manifest = read_manifest(root)
    if left_out := incomplete_engines(root, manifest):
        _log.warning("%s", left_out)
    settings = None
    if record_routes is None and trace is None:
        settings = Settings(
            os.path.realpath(root), threads, verify_pages, kernels, prefetch, active_experts,
            skip_cold, backend, gpu_memory, host_memory,
        )  # fmt: skip
        shared = share(settings, manifest, context, memory_budget)
        if shared is not None:
            return shared
    choice = ExpertChoice(manifest.spec, active_experts, skip_cold)
    seen = choose_context(context, manifest.spec, str(root))
    tokenizer = load_tokenizer(root / TOKENIZER)
    reason = _why_no_gpu(backend, kernels, manifest)
    about: dict[str, Any] = {"bundle": str(root), "threads": threads}
    with ExitStack() as undo:
        recording = open_recording(manifest, record_routes, trace, about)
        undo.callback(recording.discard)
        if not reason:
            from .gpu.choosing import open_on_gpu
            from .gpu.loading import DeviceRequest, TierSizes

            request = DeviceRequest(
                root, manifest, context, threads, verify_pages, choice, recording,
                TierSizes(gpu_budget, host_budget, memory_budget), prefetch,
            )  # fmt: skip
            opened, reason = open_on_gpu(backend, request)
            if opened is not None:
                undo.callback(opened.runner.close)
                session = open_session(
                    Opening(
                        root, manifest, opened.plan, tokenizer, threads, opened.runner, choice,
                        recording, opened.longest, settings,
                    ),
                    opened.context,
                )  # fmt: skip
                about["cache_slots"] = opened.plan.slots
                undo.pop_all()
                return session
        for name, size in (("GPU memory", gpu_memory), ("host memory", host_memory)):
            if size not in (None, AUTO):
                raise InputError(
                    f"a size of {name} has no effect with the CPU backend, which runs because "
                    f"{reason}; give a memory budget instead"
                )
        native = choose_kernels(kernels, manifest, threads)
        segments = NativeBackbone(root, manifest, native)
        if native is None or len(segments.segments) < len(manifest.segments):
            from .cpu.ort import set_up  # loads ONNX Runtime, which takes memory

            threads = set_up(threads)
        give_back_freed()
        resident = process_memory("VmRSS")
        others = count_open()
        try:
            plan = plan_memory(
                manifest.footprint,
                context=seen,
                budget=budget,
                process=resident,
                left=left_behind(resident),
                name=str(root),
                kernels=native,
                segments=segments,
                reads_early=can_predict(manifest, prefetch),
                auto=memory_budget == AUTO,
            )
        except BudgetError as error:
            if not others:
                raise
            raise BudgetError(
                f"{error}; the process holds {others} other model{'s' * (others > 1)}, which a "
                "session with the same settings as theirs would share"
            ) from error
        about.update(threads=threads, cache_slots=plan.slots)
        runner = HostRunner(
            root, manifest, plan, verify_pages, native, segments, choice, prefetch,
            recording, reason,
        )  # fmt: skip
        undo.callback(runner.close)
        session = open_session(
            Opening(
                root, manifest, plan, tokenizer, threads, runner, choice, recording,
                manifest.spec.max_context, settings,
            ),
            seen,
        )  # fmt: skip
        undo.pop_all()
    return session


def _choose_threads(wanted: object) -> int:
    if wanted is None:
        return cpu_count()
    if not is_integer(wanted) or wanted < 1:
        raise InputError(f"threads must be a whole number, 1 or more, not {wanted!r}")
    return int(wanted)


def _why_no_gpu(backend: str, kernels: str, manifest: Manifest) -> str:
    """Why the CPU runs a bundle without a look for GPUs; empty where there is to be one.

    Raises:
        InputError: there is no such backend, or `kernels` are asked of one on a GPU.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, not {backend}")
    if backend == "cpu":
        return "it was asked for"
    if backend == "auto":
        if kernels != "auto":
            return f"kernels {kernels!r} were asked for"
        return "" if manifest.graphs is not None else "the bundle has nothing for GPUs"
    if kernels != "auto":
        raise InputError(f"kernels have no effect with the backend {backend}; use backend 'cpu'")
    return ""
