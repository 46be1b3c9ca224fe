"""Loading a bundle on a GPU: everything is loaded first, and pages get what memory is left."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ...bundle.gpu_graphs import ALIGNMENT, GpuGraphs
from ...bundle.manifest import Manifest, check_file
from ...errors import BundleError, ContextError, InputError
from ..context import choose_context
from ..loading import LoadedRunner, LoadRequest
from ..memory.budget import AUTO, MemoryPlan, read_budget
from ..memory.host_memory import process_memory, read_host_memory
from ..options import OpenOptions
from ..paging.pager import Pager
from ..paging.policy import CachePolicy
from ..runner import Engines
from .backends import Backend
from .device import Device, Stream
from .errors import DeviceMemoryError
from .host_slots import PinnedMemory, SharedSlots
from .memory import (
    DeviceMemory,
    choose_slots,
    fewest_slots,
    needed_bytes,
    out_of_memory,
    plan_host,
    spare_bytes,
)
from .runner import DeviceRunner
from .slots import DeviceSlots, Tier

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TierSizes:
    """What a caller gives of it. gpu, host: bytes of the session on the GPU, and of the process on
    the host; whole: of both, where they are one memory. host may be "auto", like None.

    slots, host_slots: pages in each tier, in place of what is planned; for tests.
    """

    gpu: int | None = None
    host: int | str | None = None
    whole: int | str | None = None
    slots: int | None = None
    host_slots: int | None = None

    @classmethod
    def of(cls, options: OpenOptions) -> TierSizes:
        """Raises InputError where "auto" is asked for, and the system does not say what is free."""
        gpu = None if options.gpu_memory == AUTO else read_budget(options.gpu_memory, "GPU memory")
        return cls(gpu, options.host_memory, options.memory_budget)


def device_context(wanted: int | None, manifest: Manifest, name: str) -> int:
    """As choose_context, within what the device graphs are made for.

    Raises:
        ContextError: they are made for less.
    """
    context = choose_context(wanted, manifest.spec, name)
    graphs = graphs_of(manifest, name)
    if context > graphs.context and wanted is not None:
        raise ContextError(
            f"context {context} is more than the {graphs.context} tokens that the device graphs of "
            f"{name} are made for; compile it with a longer --context, or use --backend cpu"
        )
    return min(context, graphs.context)


def check_sizes(sizes: TierSizes, device: Device) -> None:
    """Raises InputError where a size is of memory that the device does not have."""
    if device.info.unified and (sizes.gpu is not None or sizes.host is not None):
        raise InputError(
            f"{device.info.name} shares the host's memory: give one memory budget for both, in "
            "place of GPU memory and host memory"
        )
    if not device.info.unified and sizes.whole is not None:
        raise InputError(
            f"a memory budget is of one memory, and {device.info.name} has its own: give sizes of "
            "GPU memory and host memory, or choose the backend cpu"
        )


def load_on_gpu(
    backend: Backend,
    request: LoadRequest,
    sizes: TierSizes | None = None,
    policy: Callable[[], CachePolicy] | None = None,
) -> LoadedRunner:
    """Loads a bundle onto a device. sizes: by default those of the options. policy: makes the one
    of the GPU tier, by default NextUse.

    Raises:
        BudgetError: a memory is too small.
        BundleError: a graph or an engine is not what was written.
        EngineError: the backend does not work.
        InputError: see check_sizes.
    """
    device, manifest, root = backend.device, request.manifest, request.root
    options, threads = request.options, request.options.cpu_threads
    sizes = TierSizes.of(options) if sizes is None else sizes
    check_sizes(sizes, device)
    graphs = graphs_of(manifest, str(root))
    context = device_context(options.context, manifest, str(root))
    chunk, batch = min(graphs.chunk, context), min(graphs.batch, context)
    if options.verify_pages:
        for file in backend.files:
            check_file(root, manifest, file)
    if options.prefetch == "on":
        _log.warning("prefetch on has no effect: pages go to the GPU when a router asks for them")
    before = process_memory("VmRSS")
    free, total = device.memory()
    with ExitStack() as undo:
        try:
            stream = device.stream()
            undo.callback(stream.free)
            loader = backend.loader(stream, threads)
            runner = DeviceRunner(
                root, manifest, graphs, loader, device, stream, context, chunk, batch,
                request.choice, request.recording,
            )  # fmt: skip
            undo.callback(runner.close)
            runner.warm_up(manifest.page_bytes)
            plan, slots = _plan(request, sizes, device, context, chunk, batch, free, before)
        except DeviceMemoryError as error:
            weights = _segment_bytes(manifest, graphs)
            needed = needed_bytes(manifest, weights, context, chunk, batch)
            raise out_of_memory(str(root), needed, free, total, context) from error
        pager = Pager(
            root, manifest, plan.slots, verify=options.verify_pages,
            trace=request.recording.trace, memory=PinnedMemory(device),
        )  # fmt: skip
        undo.callback(pager.close)
        tier = _make_tier(manifest, device, stream, pager, slots, policy)
        if not pager.direct:
            _log.info("%s: pages are read through the page cache (no O_DIRECT here)", root)
        engines = Engines(
            experts=backend.engine,
            backbone=backend.engine,
            backbone_bytes=_segment_bytes(manifest, graphs),
            backend=backend.name,
            reason=request.reason,
            device=device.info.name,
        )
        taken = max(0, free - device.memory()[0])
        tier.spare = spare_bytes(device.memory()[0], taken, sizes.gpu)
        runner.use(tier, pager, engines, taken)
        undo.pop_all()
        runner.on_close(stream.free)
    _log.info(
        "backend %s on %s: %d of %d pages on the GPU, %d on the host",
        backend.name, device.info.name, slots, manifest.num_pages, plan.slots,
    )  # fmt: skip
    return LoadedRunner(runner, plan, context, context, threads)


def _plan(
    request: LoadRequest,
    sizes: TierSizes,
    device: Device,
    context: int,
    chunk: int,
    batch: int,
    free_before: int,
    process_before: int,
) -> tuple[MemoryPlan, int]:
    """Of the host, and how many pages the GPU has slots for: 0 where it reads the host's."""
    manifest, name = request.manifest, str(request.root)
    free, total = device.memory()
    taken = max(0, free_before - free)  # others may have given memory back meanwhile
    slots = 0
    if not device.info.unified:
        memory = DeviceMemory(
            free, total, taken, manifest.page_bytes, fewest_slots(manifest), manifest.num_pages
        )
        slots = sizes.slots or choose_slots(memory, sizes.gpu, name, context)
        budget, auto = _host_budget(sizes.host)
        plan = plan_host(
            manifest, budget, chunk=chunk, batch=batch, context=context, name=name, auto=auto,
            device_slots=slots, process=process_memory("VmRSS"),
        )  # fmt: skip
    else:  # what it took since then is the process's own memory too
        budget, auto = _host_budget(sizes.whole)
        plan = plan_host(
            manifest, budget, chunk=chunk, batch=batch, context=context, name=name, auto=auto,
            process=process_before, device_bytes=taken, fewest=fewest_slots(manifest),
        )  # fmt: skip
    if sizes.host_slots is not None:
        plan = replace(plan, slots=sizes.host_slots)
    return plan, slots


def _host_budget(given: int | str | None) -> tuple[int | None, bool]:
    """Bytes, or None where the system does not say what is free; and whether that is it."""
    if given is not None and given != AUTO:
        return read_budget(given), False
    try:
        return read_host_memory().budget, True
    except InputError:
        return None, False


def _make_tier(
    manifest: Manifest,
    device: Device,
    stream: Stream,
    pager: Pager,
    slots: int,
    policy: Callable[[], CachePolicy] | None,
) -> Tier:
    if device.info.unified:
        return SharedSlots(device, pager, stream)
    page_bytes = {layer.layer: layer.format.nbytes for layer in manifest.experts}
    made = policy() if policy is not None else None
    return DeviceSlots(device, pager, page_bytes, slots, stream, made, fewest_slots(manifest))


def _segment_bytes(manifest: Manifest, graphs: GpuGraphs) -> int:
    names = [name.rpartition(".")[0] for name in graphs.segments]
    files = manifest.files
    return sum(files[f"{name}.bin"].size for name in names if f"{name}.bin" in files)


def graphs_of(manifest: Manifest, name: str) -> GpuGraphs:
    """Raises BundleError where there are none."""
    if manifest.graphs is None:
        raise BundleError(f"{name} has nothing for GPUs; compile it with a GPU as --target")
    formats = [page_format for layer in manifest.experts for page_format in layer.formats]
    if any(page_format.alignment < ALIGNMENT for page_format in formats):
        raise BundleError(f"{name} has pages that no GPU takes; compile the bundle again")
    return manifest.graphs
