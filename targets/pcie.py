"""Links of PCI Express."""

from __future__ import annotations

# Transfers per second and lane, and the share of them that is data.
_LANES = {2: (5e9, 8 / 10), 3: (8e9, 128 / 130), 4: (16e9, 128 / 130), 5: (32e9, 128 / 130)}


def pcie(generation: int, lanes: int) -> str:
    """The link's name, such as "PCIe 4.0 x16"."""
    return f"PCIe {generation}.0 x{lanes}"


def pcie_bandwidth(generation: int, lanes: int) -> float:
    """Bytes per second in one direction, before the headers of packets."""
    transfers, data = _LANES[generation]
    return transfers * data / 8 * lanes


def pcie_source(generation: int) -> str:
    """Where its bandwidth is from."""
    transfers, data = _LANES[generation]
    coding = "8b/10b" if data == 8 / 10 else "128b/130b"
    return (
        f"PCI Express Base Specification: {transfers / 1e9:.0f} GT/s a lane, {coding} coding, one "
        "direction, before packet headers"
    )
