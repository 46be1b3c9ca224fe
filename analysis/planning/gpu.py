"""The part of a model that a GPU's memory holds, and its speed. No GPU has confirmed any of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from ...bundle.footprint import Footprint
from ...errors import BudgetError, InputError
from ...runtime.cpu.budget import plan_memory
from ...runtime.memory.budget import MIB, MemoryPlan, fit_budget
from ...sizes import format_size
from .limits import (
    BACKBONE_SHARE,
    EXPERT_SHARE,
    MachineSpeed,
    SpeedEstimate,
    assumed_speed,
)

if TYPE_CHECKING:
    from ...targets import Target

Plans: TypeAlias = "Callable[[int | None], MemoryPlan]"  # of a budget; None for no limit

# Assumed, until a GPU can be measured.
CONTEXT_BYTES = 500 * MIB  # of CUDA and TensorRT, before anything of the model
LAYER_SECONDS = 1e-4  # launches, and the wait for the router's choice


def has_own_memory(target: Target) -> bool:
    """Whether pages get there over a link."""
    return target.kind == "gpu" and not target.unified_memory


def choose_budgets(target: Target, budgets: Sequence[int], gpu: Sequence[int]) -> Sequence[int]:
    """The budgets that count for a target: of the whole process, or of a GPU's own memory.

    Raises:
        InputError: those of the other kind were given, or one that the GPU does not have.
    """
    if budgets and has_own_memory(target):
        raise InputError(
            f"{target.name} has a memory of its own: use --gpu-memory instead of --memory-budget"
        )
    if gpu and not has_own_memory(target):
        raise InputError(
            f"{target.name} computes in the host's memory: use --memory-budget instead of "
            "--gpu-memory"
        )
    largest = max((*budgets, *gpu), default=0)
    if target.kind == "gpu" and target.memory_bytes is not None and largest > target.memory_bytes:
        raise InputError(
            f"{format_size(largest)} is more than the {format_size(target.memory_bytes)} that "
            f"{target.name} has; choose at most {target.memory_bytes // MIB}MiB"
        )
    return gpu or budgets


def plan_gpu(
    footprint: Footprint, target: Target, *, context: int, process: int, name: str
) -> Plans:
    """Gives the plan for a budget. process: bytes of the host's that lie in the same memory.

    Raises:
        BudgetError: the smallest plan is larger than the target's memory. So does what is
            returned, for a budget that is too small; the message names the smallest.
    """
    whole = plan_memory(
        footprint, context=context, budget=None, process=process + CONTEXT_BYTES, name=name
    )
    whole = replace(whole, kv=whole.kv // 2)  # fp16, where the CPU's cache is fp32
    memory = target.memory_bytes
    if memory is not None and whole.smallest > memory:
        raise BudgetError(
            f"{name} with a context of {context} tokens takes at least "
            f"{whole.smallest // MIB}MiB, and {target.name} has {memory // MIB}MiB "
            "(a shorter context needs less)"
        )

    def plan(budget: int | None) -> MemoryPlan:
        fewest = whole.fixed + whole.fewest * whole.page
        if budget is not None and has_own_memory(target) and budget < fewest:
            raise BudgetError(
                f"{format_size(budget)} of GPU memory are too few for {name} with a context of "
                f"{context} tokens; the smallest that works is {whole.smallest // MIB}MiB "
                "(a shorter context needs less)"
            )
        return fit_budget(whole, budget, num_pages=footprint.num_pages, context=context, name=name)

    return plan


def gpu_speed(target: Target) -> MachineSpeed | None:
    """What a GPU may reach; pages that are missing come over its link, if it has one."""
    if target.memory_bandwidth is None:
        return None
    missing = target.link_bandwidth if has_own_memory(target) else target.storage_bandwidth
    return replace(
        assumed_speed(target.memory_bandwidth, missing),
        layer_seconds=LAYER_SECONDS,
    )


def with_half_cache(estimate: SpeedEstimate) -> SpeedEstimate:
    """The estimate where keys and values are fp16, not fp32."""
    return replace(estimate, attention_seconds=estimate.attention_seconds / 2)


def assumptions(target: Target, footprint: Footprint) -> tuple[str, ...]:
    """What is behind the figures, in words."""
    if has_own_memory(target):
        pages = sum(layer.nbytes for layer in footprint.experts)
        missing = (
            f"host memory holds all pages ({format_size(pages)}); those that GPU memory lacks come "
            f"over the link, {target.link}, at its limit"
        )
    else:
        missing = (
            f"missing pages come from storage, {target.storage}, at its limit; the system needs a "
            "part of the memory too"
        )
    return (
        "the speeds have never been compared with a GPU: they are data sheets and the lines below",
        missing,
        f"experts reach {EXPERT_SHARE:.0%} of the memory bandwidth and the backbone "
        f"{BACKBONE_SHARE:.0%}, and a layer takes {1000 * LAYER_SECONDS:g} ms besides",
        f"CUDA takes {CONTEXT_BYTES // MIB}MiB, keys and values are fp16, backbone and workspace "
        "take what they take in ONNX Runtime; no page is read early",
        "prompts are not predicted: the table of devices does not say how fast a GPU computes",
    )
