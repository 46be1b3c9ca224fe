"""The engines that a bundle has already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..bundle.gpu_graphs import EngineSet
from ..bundle.manifest import hash_file, read_manifest
from .hardware import Gpu
from .libraries import load_tensorrt


def whole_sets(
    bundle: Path, toolchain: str, compute_capabilities: Sequence[str], gpu: Gpu | None
) -> tuple[EngineSet, ...]:
    """The sets that a build would make, where the bundle has all of them: of the toolchain's very
    version, for the very GPU, undamaged. Empty otherwise."""
    manifest = read_manifest(bundle)
    device = gpu.name if gpu is not None else None
    version = load_tensorrt(toolchain).__version__
    capabilities = (gpu.compute_capability,) if gpu is not None else compute_capabilities
    wanted = [(toolchain, version, capability, device) for capability in capabilities]
    sets = {
        (item.toolchain, item.version, item.compute_capability, item.device): item
        for item in manifest.engines
    }
    if not all(key in sets for key in wanted):
        return ()
    found = tuple(sets[key] for key in wanted)
    files = {file for item in found for file in item.files}
    right = all(hash_file(bundle / file) == manifest.files[file].sha256 for file in files)
    return found if right else ()
