"""GPUs of servers."""

from __future__ import annotations

from .gpu import Drive, gpu

_A100 = "NVIDIA A100 Tensor Core GPU data sheet"
_H200 = "NVIDIA H200 Tensor Core GPU data sheet"
_GEN4 = Drive(4, 4, "typical of a server with such a card: the drive is the host's")

SERVERS = (
    gpu(
        "a100-40gb", "A100 40GB (Ampere)", "8.0",
        gib=40, bandwidth=1555e9, link=(4, 16), document=_A100, drive=_GEN4,
    ),
    gpu(
        "a100-80gb", "A100 80GB (Ampere)", "8.0",
        gib=80, bandwidth=1935e9, link=(4, 16), document=_A100, drive=_GEN4,
        bandwidth_source=f"{_A100}: of the PCIe card; SXM modules read 2039 GB/s",
    ),
    gpu(
        "h200", "H200, 141 GB (Hopper)", "9.0",
        gib=141, bandwidth=4.8e12, link=(5, 16), document=_H200, drive=_GEN4,
        toolchain="tensorrt", toolchain_source="TensorRT 10 as it is installed on the server",
    ),
)  # fmt: skip
