"""Opening a bundle: what a caller asks for becomes a plan, and the plan a session."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from ..errors import InputError
from .budget import AUTO, plan_memory, read_budget
from .bundle import TOKENIZER, read_manifest
from .context import choose_context
from .experts import choose_kernels
from .host_runner import HostRunner
from .lossy import ExpertChoice
from .native_backbone import NativeBackbone
from .predict import can_predict
from .recording import open_recording
from .session import Session
from .stats import process_memory
from .text import load_tokenizer


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
) -> Session:
    """Opens a bundle to run it.

    memory_budget: bytes, or text like "2GiB", for the whole process; "auto" takes what the machine
    has free, and None keeps all experts in memory.
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
        BundleError, BudgetError, ContextError, InputError: each says what to do.
    """
    root = Path(path)
    budget = read_budget(memory_budget)
    if threads is None:
        threads = len(os.sched_getaffinity(0))
    elif threads < 1:
        raise InputError(f"threads must be 1 or more, not {threads}")
    manifest = read_manifest(root)
    choice = ExpertChoice(manifest.spec, active_experts, skip_cold)
    context = choose_context(context, manifest.spec, str(root))
    tokenizer = load_tokenizer(root / TOKENIZER)
    native = choose_kernels(kernels, manifest, threads)
    segments = NativeBackbone(root, manifest, native)
    if native is None or len(segments.segments) < len(manifest.segments):
        from .ort import set_up  # loads ONNX Runtime, which takes memory

        threads = set_up(threads)
    plan = plan_memory(
        manifest.footprint,
        context=context,
        budget=budget,
        process=process_memory("VmRSS"),
        name=str(root),
        kernels=native,
        segments=segments,
        reads_early=can_predict(manifest, prefetch),
        auto=memory_budget == AUTO,
    )
    about = {"bundle": str(root), "threads": threads, "cache_slots": plan.slots}
    with ExitStack() as undo:
        recording = open_recording(manifest, record_routes, trace, about)
        undo.callback(recording.discard)
        runner = HostRunner(
            root, manifest, plan, context, verify_pages, native, segments, choice, prefetch,
            recording,
        )  # fmt: skip
        undo.callback(runner.close)
        session = Session(
            root, manifest, plan, tokenizer, context, threads, runner, choice, recording
        )
        undo.pop_all()
    return session
