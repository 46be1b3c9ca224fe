"""Loading a bundle on a CPU: memory is planned first, and pages get what is left of it."""

from __future__ import annotations

from ...errors import BudgetError
from ..context import choose_context
from ..loading import LoadedRunner, LoadRequest
from ..memory.budget import AUTO, read_budget
from ..memory.host_memory import give_back_freed, process_memory
from ..memory.leftover import count_open, left_behind
from ..paging.predict import can_predict
from .budget import plan_memory
from .experts import choose_kernels
from .native_backbone import NativeBackbone
from .runner import HostRunner


def load_on_cpu(request: LoadRequest) -> LoadedRunner:
    """Raises:
    BudgetError: the memory budget is too small.
    BundleError: a file is not what was written.
    ContextError, InputError: an option does not fit the bundle.
    """
    options, manifest, name = request.options, request.manifest, str(request.root)
    context = choose_context(options.context, manifest.spec, name)
    budget, threads = read_budget(options.memory_budget), options.cpu_threads
    native = choose_kernels(options.kernels, manifest, threads)
    segments = NativeBackbone(request.root, manifest, native)
    if native is None or len(segments.segments) < len(manifest.segments):
        from .ort import set_up  # loads ONNX Runtime, which takes memory

        threads = set_up(threads)
    give_back_freed()
    resident = process_memory("VmRSS")
    others = count_open()
    try:
        plan = plan_memory(
            manifest.footprint,
            context=context,
            budget=budget,
            process=resident,
            left=left_behind(resident),
            name=name,
            kernels=native,
            segments=segments,
            reads_early=can_predict(manifest, options.prefetch),
            auto=options.memory_budget == AUTO,
        )
    except BudgetError as error:
        if not others:
            raise
        raise BudgetError(
            f"{error}; the process holds {others} other model{'s' * (others > 1)}, which a "
            "session with the same settings as theirs would share"
        ) from error
    runner = HostRunner(
        request.root, manifest, plan, options.verify_pages, native, segments, request.choice,
        options.prefetch, request.recording, request.reason,
    )  # fmt: skip
    return LoadedRunner(runner, plan, context, manifest.spec.max_context, threads)
