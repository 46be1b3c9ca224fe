"""Builds every engine of published models' shapes for every architecture, without a GPU.

    python bench/gpu/engines.py                           # all shapes, all six architectures
    python bench/gpu/engines.py --shape olmoe-1b-7b --arch sm89

A shape is one layer of the model (two where its layers differ) with its embedding's rows and head,
and random weights; `demo` is the whole model that comes with pocketmoe. Experts are int4 and the
backbone is int8, in blocks of 64; Turing (sm75) has no int4, so its experts are int8. A row tells
how long an architecture's engines took to build, and the size of each kind; the last one of a shape
is one set for all architectures that have its precision, as `--portable` makes it. It ends with
exit code 1 where an engine is not built, or its inputs are not those of the bundle's pages.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pocketmoe.bench.lib.random_source import RandomSource
from pocketmoe.bench.lib.shapes import SHAPES, with_layers
from pocketmoe.bundle.gpu_graphs import EngineSet, GpuGraphs, capability_name, page_inputs
from pocketmoe.bundle.manifest import Precision
from pocketmoe.commands.console import print_table
from pocketmoe.compiler.compile import write_graphs
from pocketmoe.compiler.footprint import page_formats
from pocketmoe.engines.architectures import (
    RTX_CAPABILITIES,
    parse_capability,
    portable_capabilities,
)
from pocketmoe.engines.build import build_engines
from pocketmoe.engines.libraries import RTX
from pocketmoe.errors import EngineError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.families import find_family
from pocketmoe.model.spec import ModelSpec
from pocketmoe.progress import Silent
from pocketmoe.sizes import format_size

if TYPE_CHECKING:
    from pocketmoe.compiler.compile import ParameterSource

DEMO = "demo"
LAYERS = {"mixtral-8x7b": 1, "qwen3-30b-a3b": 1, "olmoe-1b-7b": 1, "deepseek-v3": 1,
          "gpt-oss-20b": 2}  # fmt: skip
INT4 = Precision(experts="int4", backbone="int8", head="int8", block_size=64)
INT8 = Precision(experts="int8", backbone="int8", head="int8", block_size=64)
TURING = "7.5"
COLUMNS = [
    "shape", "for", "experts", "engines", "seconds", "segments", "expert", "token", "combine",
]  # fmt: skip


@dataclass(frozen=True)
class Built:
    """One row of the table."""

    cells: tuple[str, ...]
    problem: str | None


def load(shape: str) -> tuple[ModelSpec, ParameterSource]:
    if shape == DEMO:
        checkpoint = Checkpoint(Path(__file__).parents[2] / "model/demo")
        return checkpoint.spec, checkpoint
    config = {k: v for k, v in SHAPES[shape].items() if k != "quantization_config"}
    config = with_layers(config, LAYERS[shape])
    spec = find_family(config).read_config(config)
    return spec, RandomSource(spec, seed=0)


def build_shape(shape: str, capabilities: Sequence[str], context: int) -> list[Built]:
    spec, source = load(shape)
    built = []
    for precision, wanted in (
        (INT4, [c for c in capabilities if c != TURING]),
        (INT8, [c for c in capabilities if c == TURING]),
    ):
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            graphs = write_graphs(
                root, source, spec, precision, context=context,
                fp32_products=TURING not in wanted, progress=Silent(),
            )  # fmt: skip
            choices = [(capability,) for capability in wanted]
            if len(wanted) > 1:
                choices.append(portable_capabilities(precision))
            for choice in choices:
                built.append(build_set(shape, root, graphs, spec, precision, choice))
                print("  ".join(built[-1].cells), file=sys.stderr, flush=True)
    return built


def build_set(
    shape: str, root: Path, graphs: GpuGraphs, spec: ModelSpec, precision: Precision,
    capabilities: tuple[str, ...],
) -> Built:  # fmt: skip
    first = (shape, ", ".join(map(capability_name, capabilities)), precision.experts)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        try:
            item = build_engines(
                root, graphs, into, toolchain=RTX, compute_capabilities=capabilities
            )[0]
        except EngineError as error:
            return Built((*first, "0"), str(error))
        seconds = time.monotonic() - begun
        sizes = dict.fromkeys(("segment", "expert", "token", "combine"), 0)
        for engine in item.engines:
            path = into / engine.file
            sizes[path.name.partition("_")[0]] += path.stat().st_size
    cells = (*first, str(len(item.engines)), f"{seconds:.1f}", *map(format_size, sizes.values()))
    return Built(cells, wrong_inputs(graphs, item, spec, precision))


def wrong_inputs(
    graphs: GpuGraphs, item: EngineSet, spec: ModelSpec, precision: Precision
) -> str | None:
    """The first engine that does not take the pages of its layer, in words."""
    engines = {engine.graph: engine for engine in item.engines}
    formats = page_formats(spec, precision)
    for layer in graphs.layers:
        router = spec.layers[layer.layer].router
        top_k = router.top_k if router is not None else 1
        suffixes = [f".{index}" for index in range(top_k)]
        for graph, wanted in ((layer.expert, [""]), (layer.token, suffixes)):
            tensors = {t for suffix in wanted for t in page_inputs(formats[layer.layer], suffix)}
            if not tensors <= set(engines[graph].inputs):
                missing = min(t.name for t in tensors - set(engines[graph].inputs))
                return (
                    f"{engines[graph].file} does not take {missing} as layer {layer.layer} has it"
                )
    return None


@click.command(help=__doc__, context_settings={"show_default": True})
@click.option("--shape", "shapes", type=click.Choice([DEMO, *LAYERS]), multiple=True)
@click.option("--arch", "architectures", multiple=True, help="Such as sm89.  [default: all]")
@click.option("--context", default=4096, help="Positions that attention is made for.")
def main(shapes: tuple[str, ...], architectures: tuple[str, ...], context: int) -> None:
    capabilities = [parse_capability(name) for name in architectures] or RTX_CAPABILITIES
    built = [
        item
        for shape in shapes or (DEMO, *LAYERS)
        for item in build_shape(shape, capabilities, context)
    ]
    print_table("engines", COLUMNS, [item.cells for item in built])
    problems = [item.problem for item in built if item.problem is not None]
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
