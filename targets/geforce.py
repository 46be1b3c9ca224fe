"""GeForce cards of desktop PCs."""

from __future__ import annotations

from .gpu import Drive, gpu

_TURING = "NVIDIA Turing GPU architecture whitepaper"
_AMPERE = "NVIDIA Ampere GA102 GPU architecture whitepaper"
_ADA = "NVIDIA Ada GPU architecture whitepaper"
_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper"
_WHOSE = "typical of a PC with such a card: the drive is the host's"
_GEN3, _GEN4 = Drive(3, 4, _WHOSE), Drive(4, 4, _WHOSE)


def _specs(card: str) -> str:
    return f"NVIDIA GeForce {card} specifications"


GEFORCE = (
    gpu(
        "rtx-2080-ti", "GeForce RTX 2080 Ti, 11 GB (Turing)", "7.5",
        gib=11, bandwidth=616e9, link=(3, 16), document=_TURING, drive=_GEN3,
    ),
    gpu(
        "rtx-3060-12gb", "GeForce RTX 3060 12GB (Ampere)", "8.6",
        gib=12, bandwidth=360e9, link=(4, 16), document=_specs("RTX 3060"), drive=_GEN4,
    ),
    gpu(
        "rtx-3090", "GeForce RTX 3090, 24 GB (Ampere)", "8.6",
        gib=24, bandwidth=936e9, link=(4, 16), document=_AMPERE, drive=_GEN4,
    ),
    gpu(
        "rtx-4060-8gb", "GeForce RTX 4060 8GB (Ada)", "8.9",
        gib=8, bandwidth=272e9, link=(4, 8), document=_specs("RTX 4060"), drive=_GEN4,
    ),
    gpu(
        "rtx-4070", "GeForce RTX 4070, 12 GB (Ada)", "8.9",
        gib=12, bandwidth=504e9, link=(4, 16), document=_specs("RTX 4070"), drive=_GEN4,
        limits=("cards with GDDR6 instead of GDDR6X read 480 GB/s, not 504",),
    ),
    gpu(
        "rtx-4090", "GeForce RTX 4090, 24 GB (Ada)", "8.9",
        gib=24, bandwidth=1008e9, link=(4, 16), document=_ADA, drive=_GEN4,
    ),
    gpu(
        "rtx-5060", "GeForce RTX 5060, 8 GB (Blackwell)", "12.0",
        gib=8, bandwidth=448e9, link=(5, 8), document=_specs("RTX 5060"), drive=_GEN4,
    ),
    gpu(
        "rtx-5070", "GeForce RTX 5070, 12 GB (Blackwell)", "12.0",
        gib=12, bandwidth=672e9, link=(5, 16), document=_specs("RTX 5070"), drive=_GEN4,
    ),
    gpu(
        "rtx-5090", "GeForce RTX 5090, 32 GB (Blackwell)", "12.0",
        gib=32, bandwidth=1792e9, link=(5, 16), document=_BLACKWELL, drive=_GEN4,
    ),
)  # fmt: skip
