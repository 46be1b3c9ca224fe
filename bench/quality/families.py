"""Holds every family against transformers: the PyTorch module, and bundles made of it.

    python bench/quality/families.py                       # all families, all their configs
    python bench/quality/families.py --family gpt_oss --config default

For each config of a family (`TINY` and `VARIANTS` of its file) transformers makes a small random
model. The same prompt and 32 more tokens, one by one through the cache, go through transformers,
the module and an fp32 bundle; an int4 bundle generates text and is verified. Differences are the
largest over all logits, relative to the largest logit. It ends with exit code 1 where one is over
its limit.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers

from pocketmoe.analysis.evaluation.verify import compare_with_checkpoint, load_decoder
from pocketmoe.bench.lib.random_models import make_model
from pocketmoe.bundle.damage import find_damage
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.model.attention import KeyValueCache
from pocketmoe.model.families import FAMILIES, Family
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.targets import find_target

PROMPT, DECODED = 40, 32  # 40 and 72 are 5 and 9 windows of 8
MODULE_LIMIT, BUNDLE_LIMIT = 1e-4, 1e-3
BLOCK = 32

Forward = Callable[[list[int]], np.ndarray]


@dataclass(frozen=True)
class Result:
    """module, fp32: relative difference from transformers.

    generated: tokens that the int4 bundle generated. damaged: files that its verification found.
    """

    family: str
    config: str
    module: float
    fp32: float
    generated: int
    damaged: int

    @property
    def passed(self) -> bool:
        near = self.module <= MODULE_LIMIT and self.fp32 <= BUNDLE_LIMIT
        return near and self.generated > 0 and not self.damaged


def configs(family: Family) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "default", dict(family.tiny)
    for name, changes in family.variants.items():
        yield name, {**family.tiny, **changes}


def prompt_and_continuation(model: transformers.PreTrainedModel) -> tuple[list[list[int]], Any]:
    """Chunks of tokens, the greedy continuation one by one, and transformers' logits for them."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 256, (1, PROMPT), generator=generator)
    cache = transformers.DynamicCache(config=model.config)
    chunks, logits = [], []
    with torch.no_grad():
        for _ in range(1 + DECODED):
            out = model(tokens, past_key_values=cache, use_cache=True).logits
            chunks.append(tokens[0].tolist())
            logits.append(out[0].numpy())
            tokens = out[:, -1:].argmax(dim=-1)
    return chunks, np.concatenate(logits)


def difference(forward: Forward, chunks: list[list[int]], expected: np.ndarray) -> float:
    found = np.concatenate([forward(chunk) for chunk in chunks])
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def module_forward(path: Path) -> Forward:
    module, cache = load_decoder(path), KeyValueCache()

    @torch.no_grad()
    def forward(tokens: list[int]) -> np.ndarray:
        out: np.ndarray = module(torch.tensor([tokens]), cache)[0].numpy()
        return out

    return forward


def compile_at(checkpoint: Path, precision: str) -> Path:
    target, out = find_target("cpu"), checkpoint.with_name(precision)
    parsed = parse_precision([precision], BLOCK, target)
    compile_bundle(checkpoint, out, target=target, precision=parsed)
    return out


def check(family: Family, name: str, config: dict[str, Any], work: Path) -> Result:
    checkpoint = work / "checkpoint"
    chunks, expected = prompt_and_continuation(make_model(config, checkpoint))
    module = difference(module_forward(checkpoint), chunks, expected)
    with open_bundle(compile_at(checkpoint, "fp32")) as session:
        fp32 = difference(session.forward, chunks, expected)
    generated, damaged = try_bundle(checkpoint, compile_at(checkpoint, "int4"))
    return Result(family.model_type, name, module, fp32, generated, damaged)


def try_bundle(checkpoint: Path, bundle: Path) -> tuple[int, int]:
    """Tokens that it generates, and files that its verification finds damaged."""
    with open_bundle(bundle) as session:
        list(session.generate("def main(", max_new_tokens=16))
        generated = session.stats.new_tokens
        damaged = len(find_damage(bundle, session.manifest))
    compare_with_checkpoint(bundle, checkpoint)
    return generated, damaged


def print_markdown(results: list[Result]) -> None:
    """One row for each family: the worst of its configs."""
    print("| family | configs | module | fp32 bundle | int4 bundle |")
    print("|---|---|---|---|---|")
    for family in dict.fromkeys(result.family for result in results):
        rows = [result for result in results if result.family == family]
        names = ", ".join(result.config for result in rows)
        module, fp32 = max(row.module for row in rows), max(row.fp32 for row in rows)
        int4 = "runs, verified" if all(r.generated and not r.damaged for r in rows) else "FAILED"
        print(f"| `{family}` | {names} | {module:.1e} | {fp32:.1e} | {int4} |")


@click.command(help="Hold every family against transformers.")
@click.option("--family", "only", type=click.Choice(sorted(set(FAMILIES) - {"reference"})))
@click.option("--config", "only_config", help="one config, such as default")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="results as JSON")
def main(only: str | None, only_config: str | None, output: Path | None) -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    results = []
    for family in FAMILIES.values():
        if family.model_type == "reference" or only not in (None, family.model_type):
            continue
        for name, config in configs(family):
            if only_config not in (None, name):
                continue
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory() as work:
                result = check(family, name, config, Path(work))
            results.append(result)
            seconds = time.perf_counter() - begun
            print(f"{result} {seconds:.0f} s", file=sys.stderr)
    if output is not None:
        output.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    print_markdown(results)
    failed = [f"{result.family} ({result.config})" for result in results if not result.passed]
    if failed:
        raise click.ClickException(f"over the limit: {', '.join(failed)}")


if __name__ == "__main__":
    main()
