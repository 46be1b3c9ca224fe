"""The description of a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NumberFormat = Literal["int4", "int8", "fp8", "fp16", "fp32"]
Toolchain = Literal["onnxruntime", "tensorrt-rtx", "tensorrt"]


@dataclass(frozen=True)
class Target:
    """What a device can hold and how fast it reads; None where only the device itself can say.

    Memory is in bytes, bandwidths are in bytes per second. expert_bandwidth to backbone_rate are
    what the runtime reaches there (see analysis/planning/limits.py). `sources` names, for each
    figure, where it is from; for one that is None, why.

    toolchain: what runs the model. Engines of "tensorrt-rtx" (TensorRT for RTX) are built when
    compiling, without a GPU; those of "tensorrt" on the device. precisions: what pages can be
    stored in; fp8 is e4m3 values with block scales. hardware_formats: what the tensor cores
    multiply. link: between host memory and the GPU's own. storage: a drive that is typical there.
    limits: what it cannot do, in words.
    """

    name: str
    description: str
    kind: Literal["cpu", "gpu"]
    toolchain: Toolchain
    precisions: tuple[NumberFormat, ...]
    unified_memory: bool  # host and device share one memory
    compute_capability: str | None = None  # such as "8.7"
    hardware_formats: tuple[str, ...] = ()
    memory_bytes: int | None = None
    memory_bandwidth: float | None = None
    link: str | None = None  # such as "PCIe 4.0 x16"
    link_bandwidth: float | None = None  # host to device, where they are apart
    storage: str | None = None  # such as "NVMe, PCIe 3.0 x4"
    storage_bandwidth: float | None = None
    expert_bandwidth: float | None = None
    backbone_bandwidth: float | None = None
    layer_seconds: float | None = None
    expert_rate: float | None = None
    backbone_rate: float | None = None
    limits: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
