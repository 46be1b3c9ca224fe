"""The plan of a model on a target, and the predictions of `run` and `bench`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...bundle.footprint import Footprint
from ...bundle.gpu_graphs import GpuGraphs
from ...bundle.manifest import TOKENIZER, Precision, is_bundle, read_manifest
from ...compiler.footprint import expected_footprint
from ...compiler.precision import DEFAULT, check_blocks, lacking_precision
from ...cpus import cpu_count
from ...errors import BudgetError, ConfigError, ContextError, InputError, TargetError
from ...runtime.context import choose_context
from ...runtime.cpu.budget import plan_memory
from ...runtime.cpu.experts import choose_kernels
from ...runtime.cpu.native_backbone import NativeBackbone
from ...runtime.generation.text import load_tokenizer
from ...runtime.memory.budget import CHUNK, MIB, MemoryPlan
from ...runtime.memory.host_memory import process_memory
from ..inspection.inspect import read_spec
from .gpu import (
    Plans,
    assumptions,
    choose_budgets,
    gpu_speed,
    has_own_memory,
    plan_gpu,
    with_half_cache,
)
from .limits import (
    MachineSpeed,
    SpeedEstimate,
    assumed_speed,
    estimate_prefill,
    estimate_speed,
)
from .locality import ASSUMED, no_locality, replayed
from .route_sources import load_routes

if TYPE_CHECKING:
    from ...runtime.recording.stats import Stats
    from ...targets import Target

NOT_MEASURED = "not measured: pocketmoe targets --measure"
_SHARES = (0.125, 0.25, 0.5, 0.75)  # of the pages, in budgets that nobody named


@dataclass(frozen=True)
class PlanRow:
    """One budget. memory and all after it are None where it is too small, all after hit_rate where
    the target's speed is not known.

    tokens_per_second: while decoding, after 128 tokens; full_context_tokens_per_second: at the end
    of the context. prompt_tokens_per_second: of a chunk of a long prompt; None for GPUs.
    """

    budget_bytes: int
    memory: MemoryPlan | None = None
    hit_rate: float | None = None
    speed: SpeedEstimate | None = None
    tokens_per_second: float | None = None
    limit_tokens_per_second: float | None = None
    full_context_tokens_per_second: float | None = None
    prompt_tokens_per_second: float | None = None


@dataclass(frozen=True)
class ModelPlan:
    """Bytes, and what is to be expected at each budget. everything: the plan without a budget.

    hits_from: what the hit rates are from. speed_from: the same of the speeds, or why there are
    none. token_page_bytes: the pages of one token. budget_of: what the budgets are for;
    missing_from: where pages come from that they have no room for. assumptions: of GPUs, in words.
    """

    path: str
    kind: str
    target: str
    target_memory_bytes: int | None
    precision: Precision
    context: int
    num_pages: int
    token_page_bytes: int
    smallest_budget: int
    everything: MemoryPlan
    hits_from: str
    speed_from: str
    rows: tuple[PlanRow, ...]
    budget_of: Literal["process", "GPU"] = "process"
    missing_from: Literal["storage", "link"] = "storage"
    assumptions: tuple[str, ...] = ()


def plan_model(
    path: Path,
    target: Target,
    *,
    budgets: Sequence[int] = (),
    gpu_budgets: Sequence[int] = (),
    context: int | None = None,
    routes: Path | None = None,
    precision: Precision | None = None,
) -> ModelPlan:
    """The plan of a bundle, or of the bundle that a checkpoint, or a config.json alone, would make:
    its backbone is counted as ONNX Runtime takes it, which is a little more than native kernels do.

    budgets: of the whole process; gpu_budgets: of a GPU's own memory; none for some between the
    smallest and one that holds everything, or all that a GPU has. precision: of what is not
    compiled yet; by default that of `compile`.

    Raises:
        InputError: the path is neither, the routes are not this model's, or the target has no such
            budgets.
        BudgetError: the one budget that was given is too small, or all that a GPU has.
        TargetError: the target does not have a precision of the model.
        CheckpointError, ConfigError, BundleError, ContextError: as when it is opened.
    """
    budgets = choose_budgets(target, budgets, gpu_budgets)
    kind, footprint, precision = _read_model(path, precision)
    _check_precision(path, kind, precision, target)
    graphs = read_manifest(path).graphs if kind == "bundle" and target.kind == "gpu" else None
    context = _context(context, footprint, graphs, str(path))
    if target.kind == "gpu":
        process = 0 if has_own_memory(target) else _process_bytes(path, onnxruntime=False)
        plan = plan_gpu(footprint, target, context=context, process=process, name=str(path))
    else:
        plan = _plan_cpu(path, footprint, context)
    hit_rate = no_locality(footprint)
    hits_from = ASSUMED
    if routes is not None:
        source = load_routes(routes)
        hit_rate = replayed(footprint, source.routes, str(routes))
        hits_from = f"replayed: {routes}" + (f", {source.note}" if source.note else "")
    speed = machine_speed(target)
    whole = plan(None)
    rows = []
    for budget in budgets or _usual_budgets(whole, target):
        try:
            memory = plan(budget)
        except BudgetError:
            if len(budgets) == 1:
                raise
            rows.append(PlanRow(budget))
        else:
            rows.append(_row(budget, memory, footprint, hit_rate(memory.slots), target, context))
    return ModelPlan(
        path=str(path),
        kind=kind,
        target=target.name,
        target_memory_bytes=target.memory_bytes,
        precision=precision,
        context=context,
        num_pages=footprint.num_pages,
        token_page_bytes=footprint.token_page_bytes,
        smallest_budget=whole.smallest,
        everything=whole,
        hits_from=hits_from,
        speed_from=NOT_MEASURED if speed is None else f"target {target.name}",
        rows=tuple(rows),
        budget_of="GPU" if has_own_memory(target) else "process",
        missing_from="link" if has_own_memory(target) else "storage",
        assumptions=(*_recompiling(kind, graphs, target), *assumptions(target, footprint))
        if target.kind == "gpu"
        else (),
    )


def _context(wanted: int | None, footprint: Footprint, graphs: GpuGraphs | None, name: str) -> int:
    """As choose_context, within what the graphs for GPUs are made for, which count on one alone.

    Raises:
        ContextError: the model or they see less.
    """
    context = choose_context(wanted, footprint.spec, name)
    if graphs is None:
        return context
    if wanted is not None and wanted > graphs.context:
        raise ContextError(
            f"context {wanted} is more than the {graphs.context} tokens that the device graphs of "
            f"{name} are made for; compile it with a longer --context"
        )
    return min(context, graphs.context)


def _recompiling(kind: str, graphs: GpuGraphs | None, target: Target) -> tuple[str, ...]:
    if kind != "bundle" or graphs is not None:
        return ()
    return (
        f"the bundle has nothing for GPUs: it runs there once it is compiled for {target.name}",
    )


def _plan_cpu(path: Path, footprint: Footprint, context: int) -> Plans:
    kernels = choose_kernels("auto", footprint, cpu_count())
    bundle = is_bundle(path)
    segments = NativeBackbone(path, read_manifest(path), kernels) if bundle else None
    served = 0 if segments is None else len(segments.segments)
    process = _process_bytes(path, onnxruntime=served < footprint.segments)

    def plan(budget: int | None) -> MemoryPlan:
        return plan_memory(
            footprint, context=context, budget=budget, process=process, name=str(path),
            kernels=kernels, segments=segments, reads_early=True,
        )  # fmt: skip

    return plan


def _check_precision(path: Path, kind: str, precision: Precision, target: Target) -> None:
    lacking = lacking_precision(precision, target)
    if lacking is not None:
        part, name = lacking
        compiled = ", and compile it again" if kind == "bundle" else ""
        raise TargetError(
            f"{path} has {part} in {name}, which target {target.name} does not have: choose with "
            f"--precision {part}={target.precisions[0]}{compiled}; it has "
            f"{', '.join(target.precisions)}"
        )


def _process_bytes(path: Path, *, onnxruntime: bool) -> int:
    """What this process takes once it has loaded what running a bundle needs."""
    from ...runtime import conversation, opening  # noqa: F401

    if onnxruntime:
        from ...runtime.cpu.ort import set_up

        set_up(cpu_count())
    load_tokenizer(path / TOKENIZER)
    return process_memory("VmRSS")


def _read_model(path: Path, precision: Precision | None) -> tuple[str, Footprint, Precision]:
    if is_bundle(path):
        if precision is not None:
            raise InputError(f"{path} is a bundle, which has its precision; plan its checkpoint")
        manifest = read_manifest(path)
        return "bundle", manifest.footprint, manifest.precision
    spec = read_spec(path)
    chosen = precision or DEFAULT
    try:
        check_blocks(spec, chosen)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return "checkpoint", expected_footprint(spec, chosen), chosen


def _usual_budgets(whole: MemoryPlan, target: Target) -> list[int]:
    """From the smallest to one that holds everything, or all of a GPU's memory, in whole MiB."""
    room = [whole.fixed + round(share * whole.slots) * whole.page for share in (*_SHARES, 1.0)]
    larger = {-(-nbytes // MIB) * MIB for nbytes in room}
    if target.kind == "gpu" and target.memory_bytes is not None:
        larger = {min(size, target.memory_bytes) for size in larger}
    return [whole.smallest, *sorted(size for size in larger if size > whole.smallest)]


def _row(
    budget: int,
    memory: MemoryPlan,
    footprint: Footprint,
    hit_rate: float,
    target: Target,
    context: int,
) -> PlanRow:
    row = PlanRow(budget, memory, hit_rate)
    speed = machine_speed(target)
    if speed is None or (hit_rate < 1 and speed.storage_bandwidth is None):
        return row
    short = min(CHUNK, context - 1)
    decode, full = (
        estimate_speed(
            footprint, speed, hit_rate=hit_rate, position=position, prefetches=memory.predicts
        )
        for position in (short, context - 1)
    )
    prompt = None
    if target.kind == "gpu":
        decode, full = with_half_cache(decode), with_half_cache(full)
    else:
        # A chunk needs about every page, in turn: those in the cache are as many as there are
        # slots.
        held = no_locality(footprint)(memory.slots)
        chunk = estimate_prefill(footprint, speed, hit_rate=held, tokens=memory.batch)
        prompt = memory.batch / chunk
    return replace(
        row,
        speed=decode,
        tokens_per_second=decode.tokens_per_second,
        limit_tokens_per_second=decode.limit_tokens_per_second,
        full_context_tokens_per_second=full.tokens_per_second,
        prompt_tokens_per_second=prompt,
    )


def machine_speed(target: Target) -> MachineSpeed | None:
    """What a target reaches; what it does not say is assumed. None without its bandwidths."""
    if target.kind == "gpu":
        return gpu_speed(target)
    if target.memory_bandwidth is None:
        return None
    assumed = assumed_speed(target.memory_bandwidth, target.storage_bandwidth)
    known = {name: getattr(target, name) for name in vars(assumed)}
    return replace(assumed, **{name: value for name, value in known.items() if value is not None})


def predict_run(stats: Stats, footprint: Footprint, target: Target) -> SpeedEstimate | None:
    """What a run's new tokens should have taken, with what was read for them.

    None where there were none, or where the target's bandwidths are not known.
    """
    speed = machine_speed(target)
    if speed is None or not stats.decode_steps:
        return None
    hit_rate = share_not_read(footprint, stats.decode_bytes_read / stats.decode_steps)
    if hit_rate < 1 and not speed.storage_bandwidth:
        return None
    position = stats.prompt_tokens + stats.new_tokens // 2
    return estimate_speed(
        footprint, speed, hit_rate=hit_rate, position=position, prefetches=stats.early_pages > 0
    )


def share_not_read(footprint: Footprint, bytes_per_token: float) -> float:
    """The hit rate that leads to so many bytes: early reads count as what they are."""
    return max(0.0, 1 - bytes_per_token / max(1, footprint.token_page_bytes))
