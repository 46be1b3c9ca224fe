"""Files of a bundle that are not what was written, and the remedy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from .expert_layers import ExpertLayer
from .gpu_graphs import rebuilding
from .manifest import Manifest, hash_file


def find_damage(
    root: Path, manifest: Manifest, progress: Callable[[int], None] = lambda _: None
) -> dict[str, str]:
    """Files whose hash is not the manifest's, and which part of them, in words, where it is known;
    for page files that is the pages. Engines that are missing count too."""
    damaged = dict.fromkeys(manifest.missing, "missing, or not whole")
    pages = {layer.file: layer for layer in manifest.experts}
    for name, record in manifest.files.items():
        if hash_file(root / name, progress) == record.sha256:
            continue
        layer = pages.get(name)
        bad = _damaged_pages(root, layer) if layer is not None else []
        damaged[name] = f"layer {layer.layer}, expert {', '.join(bad)}" if layer and bad else ""
    return damaged


def remedy_for(root: Path, manifest: Manifest, damaged: Iterable[str]) -> str:
    """What makes files anew: `build`, where they are engines alone."""
    names = set(damaged)
    sets = (*manifest.engines, *manifest.incomplete)
    built = [item for item in sets if not item.files.isdisjoint(names)]
    if names.issubset(file for item in built for file in item.files):
        return rebuilding(str(root), built)
    return "compile the bundle again"


def incomplete_engines(root: Path, manifest: Manifest) -> str:
    """A line about the sets that were left out; empty where there are none."""
    if not manifest.incomplete:
        return ""
    more = f" and {len(manifest.missing) - 1} more" if len(manifest.missing) > 1 else ""
    return (
        f"{root / manifest.missing[0]}{more} missing, or not whole: these engines are left out; "
        f"{rebuilding(str(root), manifest.incomplete)}"
    )


def _damaged_pages(root: Path, layer: ExpertLayer) -> list[str]:
    bad = []
    with (root / layer.file).open("rb") as file:
        for expert, (offset, expected) in enumerate(zip(layer.offsets, layer.sha256, strict=True)):
            file.seek(offset)
            if hashlib.sha256(file.read(layer.format_of(expert).nbytes)).hexdigest() != expected:
                bad.append(str(expert))
    return bad
