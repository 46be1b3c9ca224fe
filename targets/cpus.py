"""CPUs."""

from __future__ import annotations

from dataclasses import replace

from .pcie import pcie, pcie_bandwidth, pcie_source
from .target import Target

_MEASURE = "differs from machine to machine: 'pocketmoe targets --measure' makes a target of it"
_TYPICAL = "its figures are of a typical machine: 'pocketmoe targets --measure' takes yours"
_NO_FP8 = "no fp8: no engine for CPUs reads such pages"

CPU = Target(
    name="cpu",
    description="the CPU of the machine that runs the bundle, through ONNX Runtime",
    kind="cpu",
    toolchain="onnxruntime",
    precisions=("int4", "int8", "fp16", "fp32"),
    unified_memory=True,
    limits=(_NO_FP8,),
    sources={
        "toolchain": "native kernels where they serve, ONNX Runtime for the rest",
        "precisions": "the page formats that the runtime's expert engines read; routers stay fp32",
        "unified_memory": "a CPU computes in host memory; nothing is copied over a link",
        "memory_bytes": "asked of the operating system when a bundle is opened",
        "memory_bandwidth": _MEASURE,
        "storage_bandwidth": _MEASURE,
    },
)

CPUS = (
    CPU,
    replace(
        CPU,
        name="cpu-x86",
        description="a PC with an x86-64 CPU and two channels of DDR4-3200; bundles as for cpu",
        memory_bandwidth=2 * 8 * 3.2e9,
        storage=f"NVMe, {pcie(3, 4)}",
        storage_bandwidth=pcie_bandwidth(3, 4),
        limits=(_NO_FP8, _TYPICAL),
        sources={
            **CPU.sources,
            "memory_bandwidth": "JEDEC JESD79-4, DDR4: two channels of 8 bytes at 3.2 GT/s",
            "storage": "typical of such a PC",
            "storage_bandwidth": f"the interface's limit; {pcie_source(3)}",
        },
    ),
    replace(
        CPU,
        name="cpu-arm",
        description="a board with a 64-bit Arm CPU, such as a Raspberry Pi 5; bundles as for cpu",
        memory_bandwidth=4 * 4.267e9,
        storage=f"NVMe, {pcie(2, 1)}",
        storage_bandwidth=pcie_bandwidth(2, 1),
        limits=(_NO_FP8, _TYPICAL),
        sources={
            **CPU.sources,
            "memory_bandwidth": "Raspberry Pi 5 product brief, LPDDR4X-4267: 32 bits at 4.267 GT/s",
            "storage": "Raspberry Pi 5 product brief: one lane of PCIe 2.0",
            "storage_bandwidth": f"the interface's limit; {pcie_source(2)}",
        },
    ),
)
