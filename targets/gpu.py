"""Facts that follow from a GPU's compute capability and toolchain: so a device is one entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .pcie import pcie, pcie_bandwidth, pcie_source
from .target import NumberFormat, Target

# Of each compute capability, what its tensor cores multiply.
_AMPERE = ("tf32", "bf16", "fp16", "int8", "int4")
_BLACKWELL = ("tf32", "bf16", "fp16", "fp8", "nvfp4", "int8")
HARDWARE_FORMATS: dict[str, tuple[str, ...]] = {
    "7.5": ("fp16", "int8", "int4"),
    "8.0": _AMPERE,
    "8.6": _AMPERE,
    "8.7": _AMPERE,
    "8.9": ("tf32", "bf16", "fp16", "fp8", "int8", "int4"),
    "9.0": ("tf32", "bf16", "fp16", "fp8", "int8"),
    "11.0": _BLACKWELL,
    "12.0": _BLACKWELL,
    "12.1": _BLACKWELL,
}
_RTX = (
    "TensorRT for RTX, tried with 1.7: engines are built when compiling, without a GPU, for SM75, "
    "SM80, SM86, SM89, SM120 and SM121"
)
_DRIVE_LIMIT = "the interface's limit, which drives stay below"


@dataclass(frozen=True)
class Drive:
    """A drive on a PCIe link; source: why it is taken to be there."""

    generation: int
    lanes: int
    source: str


def version(capability: str) -> tuple[int, int]:
    """A compute capability as numbers that compare."""
    major, minor = capability.split(".")
    return int(major), int(minor)


def gpu(
    name: str,
    description: str,
    capability: str,
    *,
    gib: int,
    bandwidth: float,
    document: str,
    drive: Drive,
    toolchain: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx",
    toolchain_source: str = _RTX,
    link: tuple[int, int] | None = None,
    bandwidth_source: str | None = None,
    limits: tuple[str, ...] = (),
) -> Target:
    """A GPU of a compute capability, with `gib` GiB that it reads at `bandwidth` bytes per second.

    document: where memory, bandwidth and link are from; bandwidth_source: if not there. link:
    generation and lanes of PCIe; None where host and GPU share one memory. limits: what follows
    from this device alone.
    """
    sources = {
        "toolchain": toolchain_source,
        "precisions": "what TensorRT computes with on such a compute capability; routers stay fp32",
        "compute_capability": "NVIDIA, CUDA GPU Compute Capability",
        "hardware_formats": "CUDA C++ Programming Guide, compute capabilities: tensor cores",
        "memory_bytes": f"{document}; GB read as GiB, of which driver and system keep a part",
        "memory_bandwidth": bandwidth_source or document,
        "storage": drive.source,
        "storage_bandwidth": f"{_DRIVE_LIMIT}; {pcie_source(drive.generation)}",
    }
    if link is None:
        sources["unified_memory"] = document
        sources["link"] = "host and GPU share one memory"
    else:
        sources["unified_memory"] = "the GPU has a memory of its own"
        sources["link"] = document
        sources["link_bandwidth"] = pcie_source(link[0])
    return Target(
        name=name,
        description=description,
        kind="gpu",
        toolchain=toolchain,
        precisions=_precisions(capability),
        unified_memory=link is None,
        compute_capability=capability,
        hardware_formats=HARDWARE_FORMATS[capability],
        memory_bytes=gib << 30,
        memory_bandwidth=bandwidth,
        link=pcie(*link) if link else None,
        link_bandwidth=pcie_bandwidth(*link) if link else None,
        storage=f"NVMe, {pcie(drive.generation, drive.lanes)}",
        storage_bandwidth=pcie_bandwidth(drive.generation, drive.lanes),
        limits=(*_limits(capability, toolchain), *limits),
        sources=sources,
    )


def _precisions(capability: str) -> tuple[NumberFormat, ...]:
    """TensorRT refuses int4 below 8.0 and fp8 below 8.9, also where the hardware has int4; below
    8.0 TensorRT for RTX has no product of fp32 matrices either."""
    precisions: list[NumberFormat] = ["int4"] if version(capability) >= (8, 0) else []
    precisions.append("int8")
    if version(capability) >= (8, 9):
        precisions.append("fp8")
    precisions.append("fp16")
    if version(capability) >= (8, 0):
        precisions.append("fp32")
    return tuple(precisions)


def _limits(capability: str, toolchain: str) -> tuple[str, ...]:
    limits = []
    if version(capability) < (8, 0):
        limits += [
            "no int4: TensorRT has it from compute capability 8.0 on",
            "no fp32: TensorRT for RTX multiplies no fp32 matrices here; routers are summed",
            "int8 saves memory, not time: TensorRT for RTX has no product with int8 weights here",
        ]
    if version(capability) < (8, 9):
        limits.append("no fp8: it needs compute capability 8.9")
    if "nvfp4" in HARDWARE_FORMATS[capability]:
        limits.append("nvfp4 is not used yet")
    if toolchain == "tensorrt":
        limits.append("engines are built on the device: pocketmoe build BUNDLE")
    return tuple(limits)
