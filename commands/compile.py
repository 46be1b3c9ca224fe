"""`compile`: a checkpoint made into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ..errors import InputError, TargetError
from ..sizes import format_size
from ..targets import Target
from .arguments import POSITIVE, PRECISION, TARGET
from .console import ProgressDisplay

if TYPE_CHECKING:
    from ..bundle.manifest import Manifest
    from ..compiler.calibrated.methods import Method


@click.command("compile")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--target", metavar="NAME", type=TARGET, required=True, help="The device.")
@click.option(
    "-o", "--output", metavar="BUNDLE", type=click.Path(path_type=Path), required=True,
    help="The directory to make.",
)  # fmt: skip
@PRECISION
@click.option(
    "--block", type=click.Choice(["32", "64", "128"]), default="64",
    help="Weights that share one scale, where they are quantized.",
)  # fmt: skip
@click.option(
    "--active-experts", metavar="K", type=POSITIVE,
    help="Use fewer experts per token than the model says (lossy).",
)  # fmt: skip
@click.option(
    "--context", metavar="N", type=POSITIVE,
    help="For a GPU: positions that its engines are made for.  "
    "[default: the model's, at most 4096]",
)  # fmt: skip
@click.option(
    "--no-engines", is_flag=True,
    help="Leave out TensorRT's engines; 'pocketmoe build' adds them later.",
)  # fmt: skip
@click.option(
    "--portable", is_flag=True,
    help="Make TensorRT's engines for every GPU architecture that the precision allows.",
)  # fmt: skip
@click.option(
    "--calibration", metavar="CAL", type=click.Path(path_type=Path),
    help="What 'pocketmoe calibrate' made of this checkpoint: experts are quantized on its text.",
)  # fmt: skip
@click.option(
    "--workers", metavar="N|ray://HOST:PORT",
    help="With --calibration: processes that quantize experts, or a Ray cluster ('ray' for one on "
    "this machine).  [default: as many as there are CPUs and memory, one for a small model]",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(["gptq", "awq", "rtn"]),
    help="With --calibration: how.  [default: gptq]",
)  # fmt: skip
@click.option(
    "--bits", metavar="B", type=float,
    help="With --calibration: bits of each expert weight on average, scales included; experts get "
    "int4 in blocks of 128, 64 or 32, int8 or fp16, by what it is worth.",
)  # fmt: skip
@click.option(
    "--resume", is_flag=True,
    help="With --calibration: go on with the layers that a compile that was stopped has done.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace BUNDLE if it exists.")
def compile_command(
    checkpoint: Path,
    target: Target,
    output: Path,
    precision: tuple[str, ...],
    block: str,
    active_experts: int | None,
    context: int | None,
    no_engines: bool,
    portable: bool,
    calibration: Path | None,
    workers: str | None,
    method: str | None,
    bits: float | None,
    resume: bool,
    force: bool,
) -> None:
    """Make a bundle of a checkpoint."""
    if method is not None and calibration is None:
        raise InputError(f"--method {method} needs --calibration; 'pocketmoe calibrate' makes one")
    if workers is not None and calibration is None:
        raise InputError(f"--workers {workers} needs --calibration: what is only rounded is quick")
    if bits is not None:
        precision = _precision_beside_bits(precision, bits, calibration, target)
    record = None
    if calibration is not None:
        from ..calibration.record import read_record

        record = read_record(calibration)
    from ..compiler.precision import parse_precision
    from ..engines.architectures import has_fp32_products, plan_engines

    chosen = parse_precision(precision, int(block), target)
    if no_engines and portable:
        raise InputError("--no-engines and --portable contradict each other: leave one out")
    if no_engines and target.kind != "gpu":
        raise TargetError(f"--no-engines has no effect for target {target.name}: it has none")
    if context is not None and target.kind != "gpu":
        raise TargetError(
            f"--context has no effect for target {target.name}: it is chosen when the bundle runs"
        )
    capabilities = () if no_engines else plan_engines(target, chosen, portable=portable)
    from ..compiler.calibrated.layers import Calibration
    from ..compiler.compile import compile_bundle  # takes seconds, so after what is quickly checked

    calibrated = None
    if calibration is not None and record is not None:
        chosen_method = cast("Method", method or "gptq")
        calibrated = Calibration(calibration, record, chosen_method, signed=target.kind == "cpu")
    with ProgressDisplay() as progress:
        manifest = compile_bundle(
            checkpoint, output, target=target, precision=chosen,
            active_experts=active_experts, context=context,
            fp32_products=has_fp32_products(target, capabilities), capabilities=capabilities,
            calibration=calibrated, workers=workers or "auto", bits=bits, resume=resume,
            force=force, progress=progress,
        )  # fmt: skip
    lossy = f"; lossy: {', '.join(manifest.lossy)}" if manifest.lossy else ""
    click.echo(
        f"{output}: {format_size(manifest.total_bytes)}, {manifest.num_pages} experts of up to "
        f"{format_size(manifest.page_bytes)}{_bits(manifest)}{_engines(manifest, target)}{lossy}"
    )


def _precision_beside_bits(
    texts: tuple[str, ...], bits: float, calibration: Path | None, target: Target
) -> tuple[str, ...]:
    """`--precision` with something for the experts that the target has: --bits chooses for them.

    Raises:
        InputError: there is no calibration, or --precision would choose too.
    """
    if calibration is None:
        raise InputError(f"--bits {bits:g} needs --calibration; 'pocketmoe calibrate' makes one")
    for item in (item.strip() for text in texts for item in text.split(",")):
        if item.partition("=")[0].strip() not in ("backbone", "head"):
            raise InputError(
                f"--bits chooses how experts are stored, and so does --precision {item}: leave one "
                "out, or give --precision backbone=… and head=…"
            )
    return (*texts, f"experts={target.precisions[0]}")


def _bits(manifest: Manifest) -> str:
    if manifest.bits is None:
        return ""
    return f", {manifest.bits.reached:.4g} bits per expert weight"


def _engines(manifest: Manifest, target: Target) -> str:
    if manifest.graphs is None:
        return ""
    if manifest.engines:
        return f"; engines for {', '.join(item.capability_name for item in manifest.engines)}"
    where = f" on {target.name}" if target.toolchain == "tensorrt" else ""
    return f"; no engines yet: 'pocketmoe build' makes them{where}"
