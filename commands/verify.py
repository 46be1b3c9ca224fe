"""`verify`: a bundle's hashes, and its numbers beside the checkpoint's."""

from __future__ import annotations

import math
from pathlib import Path

import click

from ..errors import BundleError
from ..sizes import format_size
from .arguments import AGAINST, BUNDLE, JSON
from .console import ProgressDisplay, print_json, print_table


@click.command()
@BUNDLE
@AGAINST
@JSON
def verify(bundle: Path, against: Path | None, as_json: bool) -> None:
    """Check a bundle's hashes, and its numbers."""
    from ..bundle.damage import find_damage, remedy_for
    from ..bundle.manifest import read_manifest

    manifest = read_manifest(bundle)
    with ProgressDisplay() as progress:
        progress.stage("hash", manifest.total_bytes)
        damaged = find_damage(bundle, manifest, progress.advance)
        differences = None
        if against is not None and not damaged:
            from ..analysis.evaluation.verify import compare_with_checkpoint

            progress.stage(f"compare with {against}", 0)
            differences = compare_with_checkpoint(bundle, against)
    named = [f"{name} ({part})" if part else name for name, part in damaged.items()]
    if as_json:
        print_json({
            "bundle": str(bundle), "files": len(manifest.files), "bytes": manifest.total_bytes,
            "damaged": named, "differences": differences,
        })  # fmt: skip
    if damaged:
        remedy = remedy_for(bundle, manifest, damaged)
        raise BundleError(f"{bundle} is damaged: {', '.join(named)}; {remedy}")
    if as_json:
        return
    size = format_size(manifest.total_bytes)
    click.echo(f"{bundle}: {len(manifest.files)} files, {size}, every hash is right")
    if differences is not None:
        rows = [(d.where, f"{d.relative:.2e}", f"{d.maximum:.2e}") for d in differences]
        print_table(f"difference from {against}", ["", "relative", "largest"], rows)
        wrong = [d.where for d in differences if not math.isfinite(d.relative)]
        if wrong:
            raise BundleError(f"{bundle} computes numbers that are not finite: {wrong[0]}")
