"""Jetson modules and the DGX Spark: GPUs that share the host's memory."""

from __future__ import annotations

from .gpu import Drive, gpu
from .target import Target

_JETPACK_6_7 = "TensorRT of JetPack: 10.3 in JetPack 6 (CUDA 12.6), 10.16 in JetPack 7.2"
_JETPACK_7 = "TensorRT of JetPack 7: 10.16 in JetPack 7.2"
_NANO = "NVIDIA Jetson Orin Nano Series data sheet, DS-11105"
_NX = "NVIDIA Jetson Orin NX Series data sheet, DS-10712"
_AGX = "NVIDIA Jetson AGX Orin Series data sheet, DS-10662"
_T4000 = "NVIDIA Jetson T4000 technical specifications"
_T5000 = "NVIDIA Jetson T5000 technical specifications"
_SPARK = "NVIDIA DGX Spark data sheet"


def _drive(generation: int, document: str) -> Drive:
    return Drive(generation, 4, f"typical: the four lanes that the module has ({document})")


def _orin(name: str, module: str, gib: int, bandwidth: float, drive: int, document: str) -> Target:
    return gpu(
        f"jetson-{name}", f"Jetson {module} {gib}GB (Orin, Ampere)", "8.7",
        gib=gib, bandwidth=bandwidth, document=document, drive=_drive(drive, document),
        toolchain="tensorrt", toolchain_source=_JETPACK_6_7,
    )  # fmt: skip


def _thor(name: str, gib: int, document: str) -> Target:
    return gpu(
        f"jetson-thor-{name.lower()}", f"Jetson Thor {name}, {gib} GB (Blackwell)", "11.0",
        gib=gib, bandwidth=273e9, document=document, toolchain="tensorrt",
        toolchain_source=_JETPACK_7,
        drive=Drive(4, 4, "typical of NVMe drives; the module's own lanes are PCIe 5.0"),
    )  # fmt: skip


JETSON = (
    gpu(
        "jetson-orin-nano-8gb", "Jetson Orin Nano 8GB (Orin, Ampere)", "8.7",
        gib=8, bandwidth=102e9, document=_NANO, drive=_drive(3, _NANO),
        bandwidth_source="NVIDIA Jetson Orin Nano Super Developer Kit data sheet: MAXN SUPER mode",
        toolchain="tensorrt", toolchain_source=_JETPACK_6_7,
        limits=("102 GB/s need JetPack 6.2 or later and the mode MAXN SUPER; else it is 68 GB/s",),
    ),
    _orin("orin-nx-8gb", "Orin NX", 8, 102.4e9, 4, _NX),
    _orin("orin-nx-16gb", "Orin NX", 16, 102.4e9, 4, _NX),
    _orin("agx-orin-32gb", "AGX Orin", 32, 204.8e9, 4, _AGX),
    _orin("agx-orin-64gb", "AGX Orin", 64, 204.8e9, 4, _AGX),
    _thor("T4000", 64, _T4000),
    _thor("T5000", 128, _T5000),
    gpu(
        "dgx-spark", "DGX Spark, 128 GB (GB10, Blackwell)", "12.1",
        gib=128, bandwidth=273e9, document=_SPARK,
        drive=Drive(4, 4, "Dell Pro Max with GB10 owner's manual; NVIDIA names no generation"),
        limits=("TensorRT for RTX runs there from version 1.6 on",),
    ),
)  # fmt: skip
