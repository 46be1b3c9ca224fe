"""Speed of pocketmoe beside llama.cpp, both from one checkpoint, in one run, alternating.

    python bench/make_checkpoint.py --shape olmoe-1b-7b -o build/olmoe-1b-7b
    sudo python bench/peers/compare_llama_cpp.py build/olmoe-1b-7b --llama-python ENV/bin/python

The checkpoint becomes a GGUF in Q4_0 (4.5 bits per weight) and a bundle in int4 with blocks of 64
(4.25), once. Both sides then run the same random token ids: greedy text from random weights repeats
itself and flatters any cache. All in memory, llama.cpp repacks its weights, as it does by itself,
and a row shows it without; under a hard limit that would have it killed, so it maps the file.
pocketmoe's budget is the limit. Rows under a limit need root.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from pocketmoe.analysis.planning.plan import plan_model
from pocketmoe.bench.peers.compared_files import check_llama_python, make_bundle, make_gguf
from pocketmoe.bench.peers.comparison import (
    MIB,
    Agreement,
    ComparedRun,
    Comparison,
    as_json,
    tables,
)
from pocketmoe.bench.peers.limit_model import measure_bandwidths
from pocketmoe.bench.peers.side_runs import SideRequest, SideRun, run_side
from pocketmoe.bundle.manifest import MANIFEST, Manifest, hash_file, read_manifest
from pocketmoe.bundle.weight_index import weights_file
from pocketmoe.commands.console import print_table
from pocketmoe.errors import InputError, PocketMoEError
from pocketmoe.sizes import format_size
from pocketmoe.targets import Target, find_target

LIMITS = (3000, 2400, 2000, 1500)  # MiB
PAGING_LIMIT = 2000  # MiB, of the rows `prompt` and `first`
SLOW_LIMIT = 2000  # MiB, at and below which llama.cpp decodes few tokens
LEAST_CORRELATION = 0.9
MOST_DRIFT = 0.1  # of bandwidths within one run, before it is said


@dataclass(frozen=True)
class ComparisonSettings:
    """Numbers of decoded tokens: in memory, under limits, and by llama.cpp where it is slow."""

    bundle: Path
    gguf: Path
    llama_python: str
    threads: int
    context: int
    seed: int
    tokens: int
    limited_tokens: int
    slow_tokens: int
    most_seconds: float
    repeats: int
    limited_repeats: int
    quick: bool
    target: Target | None

    def request(self, **values: object) -> SideRequest:
        plain = SideRequest(
            "", self.threads, self.context, self.seed, most_seconds=self.most_seconds
        )
        return replace(plain, **values)  # type: ignore[arg-type]

    def ours(self, request: SideRequest, limit: int | None) -> SideRun:
        request = replace(request, model=str(self.bundle), memory_budget=limit)
        return run_side(sys.executable, "pocketmoe_run.py", request, limit)

    def theirs(self, request: SideRequest, limit: int | None) -> SideRun:
        request = replace(request, model=str(self.gguf))
        return run_side(self.llama_python, "llama_cpp_run.py", request, limit)


def need(run: SideRun) -> SideRun:
    """Raises InputError where a run that has all memory did not end well."""
    if run.exit_code:
        raise InputError(f"{run.request.model} did not run: {run.error}")
    return run


def compare_logits(settings: ComparisonSettings) -> Agreement:
    """Raises InputError where the two do not compute the same model."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("ours.npy", "theirs.npy")]
        need(settings.ours(settings.request(logits=files[0]), None))
        need(settings.theirs(settings.request(logits=files[1]), None))
        ours, theirs = (np.load(file) for file in files)
    agreement = agree(ours, theirs)
    if not agreement.correlation >= LEAST_CORRELATION:  # NaN too
        raise InputError(
            f"the two sides do not compute the same model: their logits correlate with "
            f"{agreement.correlation:.3f}; remove {settings.gguf} and {settings.bundle}"
        )
    return agreement


def agree(ours: np.ndarray, theirs: np.ndarray) -> Agreement:
    """Of logits `[T, V]`."""
    correlation = np.corrcoef(ours.ravel().astype(np.float64), theirs.ravel())[0, 1]
    top1 = np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1))
    return Agreement(float(correlation), float(top1), len(ours))


def run_rows(
    settings: ComparisonSettings, names: list[str], manifest: Manifest
) -> Iterator[ComparedRun]:
    """Measures one row after another, and the bandwidths around each, as they drift."""
    before = measure_bandwidths(settings.bundle, manifest, settings.threads)
    for name in names:
        click.echo(f"measuring {name}", err=True)
        rows = list(measured_rows(settings, name))
        after = measure_bandwidths(settings.bundle, manifest, settings.threads)
        for row in rows:
            yield predict(settings, replace(row, bandwidths=before.mean(after)))
        before = after


def predict(settings: ComparisonSettings, row: ComparedRun) -> ComparedRun:
    """With what `pocketmoe plan` says of a limit, on a machine of the row's bandwidths and with the
    kernels' speed as `pocketmoe targets --measure` found it."""
    if settings.target is None or row.limit is None or row.bandwidths is None or not row.decodes:
        return row
    bandwidths = row.bandwidths.at_least([run.read_bandwidth("decode") for run in row.ours])
    target = replace(settings.target, storage_bandwidth=bandwidths.storage)
    budget = row.limit * MIB
    plan = plan_model(settings.bundle, target, budgets=[budget], context=settings.context)
    return replace(row, predicted=plan.rows[0].tokens_per_second)


def measured_rows(settings: ComparisonSettings, name: str) -> Iterator[ComparedRun]:
    """The rows of a name; the sides alternate."""
    if name == "memory":
        request = settings.request(new=settings.tokens, long_prompt=128, warm=True)
        ours, repacked, mapped = [], [], []
        for _ in range(settings.repeats):
            ours.append(need(settings.ours(request, None)))
            repacked.append(need(settings.theirs(replace(request, repack=True), None)))
            if not settings.quick:
                mapped.append(need(settings.theirs(request, None)))
        yield ComparedRun("in memory", None, tuple(ours), tuple(repacked))
        if mapped:
            yield ComparedRun("in memory, not repacked", None, tuple(ours), tuple(mapped))
    elif name == "prompt":
        request = settings.request(long_prompt=512)
        resident = need(settings.ours(replace(request, warm=True), None))
        row = limited_row(
            settings, f"512-token prompt, {PAGING_LIMIT} MiB", PAGING_LIMIT, request,
            None if settings.quick else request,
        )  # fmt: skip
        yield replace(row, resident_prompt=resident.result["long_prompt_seconds"], decodes=False)
    elif name == "first":
        # One token, so that the prompt is run.
        title = f"32-token prompt, {PAGING_LIMIT} MiB"
        yield limited_row(settings, title, PAGING_LIMIT, settings.request(new=1), None)
    else:
        limit = int(name)
        request = settings.request(new=settings.limited_tokens)
        few = settings.slow_tokens if limit <= SLOW_LIMIT else settings.limited_tokens
        yield limited_row(settings, f"{limit} MiB", limit, request, settings.request(new=few))


def limited_row(
    settings: ComparisonSettings,
    title: str,
    limit: int,
    ours: SideRequest,
    theirs: SideRequest | None,
) -> ComparedRun:
    """theirs: None to leave llama.cpp out."""
    our_runs, their_runs = [], []
    for _ in range(settings.limited_repeats):
        our_runs.append(settings.ours(ours, limit * MIB))
        if theirs is not None:
            their_runs.append(settings.theirs(theirs, limit * MIB))
    return ComparedRun(title, limit, tuple(our_runs), tuple(their_runs), decodes=ours.new > 1)


def compare(settings: ComparisonSettings, names: list[str], check: bool) -> Comparison:
    """Raises InputError where a side cannot run, or the bundle changed meanwhile."""
    manifest, sha256 = read_manifest(settings.bundle), hash_file(settings.bundle / MANIFEST)
    agreement = compare_logits(settings) if check else None
    before = measure_bandwidths(settings.bundle, manifest, settings.threads)
    rows = tuple(run_rows(settings, names, manifest))
    after = measure_bandwidths(settings.bundle, manifest, settings.threads)
    # Rows of two bundles would stand side by side as if they were of one.
    if hash_file(settings.bundle / MANIFEST) != sha256:
        raise InputError(f"{settings.bundle} was changed while it was measured; run this again")
    return Comparison(
        bundle=str(settings.bundle), manifest_sha256=sha256, bundle_bytes=manifest.total_bytes,
        gguf_bytes=settings.gguf.stat().st_size, pages=sum(1 for _ in manifest.pages()),
        threads=settings.threads,
        context=settings.context, seed=settings.seed, agreement=agreement, before=before,
        after=after, resident=weights_of_a_token(manifest), rows=rows,
    )  # fmt: skip


def weights_of_a_token(manifest: Manifest) -> int:
    """Bytes as they are stored: the backbone's and those of a token's pages."""
    backbone = sum(manifest.files[weights_file(segment)].size for segment in manifest.segments)
    return backbone + manifest.footprint.token_page_bytes


def read_names(text: str) -> list[str]:
    """Raises click.BadParameter for a row that there is not."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ("memory", "prompt", "first") and not (name.isdecimal() and int(name)):
            raise click.BadParameter(
                f"{name!r} is none of memory, prompt, first and a limit in MiB"
            )
    return names


def show(comparison: Comparison) -> None:
    click.echo(
        f"bundle {format_size(comparison.bundle_bytes)}, GGUF {format_size(comparison.gguf_bytes)}"
        f"; {comparison.threads} threads, context {comparison.context}"
    )
    for when, found in (("before", comparison.before), ("after", comparison.after)):
        click.echo(
            f"bandwidths {when}: memory {found.memory / 1e9:.1f} GB/s, "
            f"storage {found.storage / 1e9:.2f} GB/s"
        )
    if comparison.drift > MOST_DRIFT:
        click.echo(
            f"bandwidths differ by {comparison.drift:.0%} before and after: so uncertain are the "
            "limits and the shares below"
        )
    if comparison.agreement is not None:
        found = comparison.agreement
        click.echo(
            f"logits of {found.tokens} tokens: correlation {found.correlation:.4f}, "
            f"the same top-1 for {found.top1:.0%}"
        )
    for table in tables(comparison):
        click.echo()
        print_table(table.title, table.columns, table.rows)


FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(help="Compare pocketmoe with llama.cpp on CHECKPOINT, of OLMoE's architecture.")
@click.argument("checkpoint", type=FOLDER)
@click.option("--llama-python", default=sys.executable, help="a Python with gguf and llama_cpp")
@click.option("--bundle", type=FOLDER, help="a finished bundle of the checkpoint")
@click.option(
    "--output", default="build/compare", show_default=True, type=click.Path(path_type=Path)
)
@click.option(
    "--only",
    default=f"memory,{','.join(map(str, LIMITS))},prompt,first",
    show_default=True,
    help="rows; a number is a limit in MiB",
)
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--context", default=1024, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--tokens",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="decoded when all is in memory",
)
@click.option("--limited-tokens", default=24, show_default=True, type=click.IntRange(1))
@click.option(
    "--llama-tokens",
    default=6,
    show_default=True,
    type=click.IntRange(1),
    help=f"decoded by llama.cpp at {SLOW_LIMIT} MiB and below",
)
@click.option("--most-seconds", default=120.0, show_default=True, help="of decoding, in one run")
@click.option("--repeats", default=2, show_default=True, type=click.IntRange(1), help="in memory")
@click.option("--limited-repeats", default=1, show_default=True, type=click.IntRange(1))
@click.option(
    "--targets", "targets_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="the targets.json of `pocketmoe targets --measure`, to predict with its target local",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="leave out what is no figure of the comparison")
@click.option("--no-check", is_flag=True, help="do not compare the logits first")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    checkpoint: Path, llama_python: str, bundle: Path | None, output: Path, only: str,
    threads: int, context: int, seed: int, tokens: int, limited_tokens: int, llama_tokens: int,
    most_seconds: float, repeats: int, limited_repeats: int, targets_file: Path | None,
    quick: bool, no_check: bool, json_file: Path | None,
) -> None:  # fmt: skip
    names = read_names(only)
    gguf = output / f"{checkpoint.name}-q4_0.gguf"
    made = output / f"{checkpoint.name}-int4"
    target = find_target("local", targets_file) if targets_file is not None else None
    settings = ComparisonSettings(
        bundle or made, gguf, llama_python, threads, context, seed, tokens, limited_tokens,
        llama_tokens, most_seconds, repeats, limited_repeats, quick, target,
    )  # fmt: skip
    try:
        check_llama_python(llama_python)
        make_gguf(llama_python, checkpoint, gguf)
        if bundle is None:
            make_bundle(checkpoint, made)
        comparison = compare(settings, names, not no_check)
    except (PocketMoEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    show(comparison)
    if json_file is not None:
        text = json.dumps(as_json(comparison), indent=2) + "\n"
        json_file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
