"""`build`: the TensorRT engines of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError, TargetError
from ..sizes import format_size
from ..targets import Target, find_target
from .arguments import BUNDLE, targets_file
from .console import ProgressDisplay


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
@click.option("--force", is_flag=True, help="Build again what the bundle has.")
@click.option(
    "--remove", metavar="ARCH|all",
    help="Build nothing: take the engines for an architecture, or all of them, out of the bundle.",
)  # fmt: skip
@click.pass_context
def build(
    ctx: click.Context,
    bundle: Path,
    toolchain: str,
    architectures: tuple[str, ...],
    portable: bool,
    force: bool,
    remove: str | None,
) -> None:
    """Build the TensorRT engines of a bundle, and put them into it.

    On a Jetson this is the step after copying the bundle there: an engine of TensorRT runs on the
    device that built it.
    """
    from ..bundle.manifest import read_manifest
    from ..engines.architectures import choose_capabilities, choose_toolchain
    from ..engines.build import add_engines, gpu_graphs
    from ..engines.hardware import find_gpu
    from ..engines.libraries import RTX
    from ..engines.present import whole_sets

    if remove is not None:
        if architectures or portable or force or toolchain != "auto":
            raise InputError("--remove builds nothing: leave out the other options")
        _remove(bundle, remove)
        return
    manifest = read_manifest(bundle)
    graphs = gpu_graphs(bundle, manifest)
    target = _target(manifest.target, targets_file(ctx))
    chosen = choose_toolchain(
        None if toolchain == "auto" else toolchain, target, architectures, portable=portable
    )
    gpu = None
    capabilities: tuple[str, ...] = ()
    if chosen == RTX:
        capabilities = choose_capabilities(
            architectures, target, manifest.precision, graphs, portable=portable
        )
    else:
        gpu = find_gpu()
    if not force and (there := whole_sets(bundle, chosen, capabilities, gpu)):
        names = ", ".join(item.capability_name for item in there)
        click.echo(
            f"{bundle} has its engines for {names} of {chosen} {there[0].version}: nothing to do "
            "(--force builds them again)"
        )
        return
    with ProgressDisplay() as progress:
        sets = add_engines(
            bundle, toolchain=chosen, compute_capabilities=capabilities, gpu=gpu, progress=progress
        )
    engines = sets[0].engines
    size = sum((bundle / engine.file).stat().st_size for engine in engines)
    names = ", ".join(item.capability_name for item in sets)
    where = f", built on {gpu.name}" if gpu is not None else ""
    click.echo(
        f"{bundle}: {len(engines)} engines for {names}, {format_size(size)}, "
        f"{chosen} {sets[0].version}{where}"
    )


def _remove(bundle: Path, name: str) -> None:
    from ..engines.architectures import parse_capability
    from ..engines.build import remove_engines

    gone = remove_engines(bundle, None if name == "all" else parse_capability(name))
    if not gone:
        raise InputError(f"{bundle} has no engines{'' if name == 'all' else f' for {name}'}")
    click.echo(f"{bundle}: removed engines for {', '.join(i.capability_name for i in gone)}")


def _target(name: str, measured: Path | None) -> Target | None:
    """The bundle's target; None where this machine does not know it."""
    try:
        return find_target(name, measured)
    except TargetError:
        return None
