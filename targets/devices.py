"""The devices that a model can be compiled for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["int4", "int8", "fp16", "fp32"]


@dataclass(frozen=True)
class Target:
    """What a device can hold and how fast it reads; None where only the device itself can say.

    Memory is in bytes, bandwidths are in bytes per second. expert_bandwidth to backbone_rate are
    what the runtime reaches there (see runtime/limits.py). `sources` names, for each figure, where
    it is from.
    """

    name: str
    description: str
    kind: Literal["cpu"]
    toolchain: Literal["onnxruntime"]
    precisions: tuple[Precision, ...]
    unified_memory: bool  # host and device share one memory
    compute_capability: str | None = None
    memory_bytes: int | None = None
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None  # host to device, where they are apart
    storage_bandwidth: float | None = None
    expert_bandwidth: float | None = None
    backbone_bandwidth: float | None = None
    layer_seconds: float | None = None
    expert_rate: float | None = None
    backbone_rate: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)


_MEASURE = "differs from machine to machine: 'pocketmoe targets --measure' makes a target of it"

CPU = Target(
    name="cpu",
    description="the CPU of the machine that runs the bundle, through ONNX Runtime",
    kind="cpu",
    toolchain="onnxruntime",
    precisions=("int4", "int8", "fp16", "fp32"),
    unified_memory=True,
    sources={
        "precisions": "the page formats that the runtime's expert engines read",
        "unified_memory": "a CPU computes in host memory; nothing is copied over a link",
        "memory_bytes": "asked of the operating system when a bundle is opened",
        "memory_bandwidth": _MEASURE,
        "storage_bandwidth": _MEASURE,
    },
)

TARGETS: tuple[Target, ...] = (CPU,)
