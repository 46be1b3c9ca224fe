"""The command that builds a bundle's engines."""

from __future__ import annotations

from pathlib import Path

import click

from .arguments import BUNDLE, targets_file
from .console import ProgressDisplay
from .errors import InputError, TargetError
from .sizes import format_size
from .targets import Target, find_target


@click.command()
@BUNDLE
@click.option(
    "--toolchain", type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]), default="auto",
    help="tensorrt builds for the GPU that is here, tensorrt-rtx without a GPU; auto is the "
    "target's.",
)  # fmt: skip
@click.option(
    "--arch", "architectures", metavar="ARCH", multiple=True,
    help="With tensorrt-rtx: build for it, such as sm89; may be given several times.  "
    "[default: the target's]",
)  # fmt: skip
@click.option(
    "--portable", is_flag=True,
    help="With tensorrt-rtx: build for every architecture that the bundle's precision allows.",
)  # fmt: skip
@click.pass_context
def build(
    ctx: click.Context, bundle: Path, toolchain: str, architectures: tuple[str, ...], portable: bool
) -> None:
    """Build the TensorRT engines of a bundle, and put them into it.

    On a Jetson this is the step after copying the bundle there: an engine of TensorRT runs on the
    device that built it.
    """
    from .compiler.architectures import (
        choose_capabilities,
        choose_toolchain,
        parse_architecture,
    )
    from .compiler.engine_builder import architecture
    from .compiler.engines import add_engines, device_graphs
    from .runtime.bundle import read_manifest
    from .runtime.gpu.hardware import find_gpu
    from .runtime.gpu.libraries import RTX

    manifest = read_manifest(bundle)
    device_graphs(bundle, manifest)
    target = _target(manifest.target, targets_file(ctx))
    chosen = choose_toolchain(None if toolchain == "auto" else toolchain, target)
    gpu = None
    capabilities: tuple[str, ...] = ()
    if chosen == RTX:
        capabilities = choose_capabilities(
            architectures, target, manifest.precision, portable=portable
        )
    else:
        if portable:
            raise InputError("--portable needs --toolchain tensorrt-rtx: tensorrt builds for the "
                             "GPU that is here alone")  # fmt: skip
        gpu = find_gpu()
        for name in architectures:
            if parse_architecture(name) != gpu.compute_capability:
                raise InputError(
                    f"tensorrt builds for the GPU that is here alone, {gpu}: leave out --arch "
                    f"{name}, or build on that device"
                )
    with ProgressDisplay() as progress:
        sets = add_engines(
            bundle, toolchain=chosen, compute_capabilities=capabilities, gpu=gpu, progress=progress
        )
    engines = sets[0].engines
    size = sum((bundle / engine.file).stat().st_size for engine in engines)
    names = ", ".join(architecture(item.compute_capability) for item in sets)
    where = f", built on {gpu.name}" if gpu is not None else ""
    click.echo(
        f"{bundle}: {len(engines)} engines for {names}, {format_size(size)}, "
        f"{chosen} {sets[0].version}{where}"
    )


def _target(name: str, measured: Path | None) -> Target | None:
    """The bundle's target; None where this machine does not know it."""
    try:
        return find_target(name, measured)
    except TargetError:
        return None
