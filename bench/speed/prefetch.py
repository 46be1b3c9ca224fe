"""Worth of prefetching: the share of right guesses, and speed with and without.

    python bench/speed/prefetch.py build/demo --text cli.py
    python bench/speed/prefetch.py build/olmoe --cache 0.45

One session; its page cache holds a share of all pages. It decodes the same tokens, those of a text
or random ones, with reading ahead off and on in turn. For each depth, the most pages that are read
early for a layer: speed, page hits, bytes read, how many early pages were used, and the share of
the time in which the disk was busy.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

import pocketmoe
from pocketmoe.commands.console import print_table
from pocketmoe.errors import InputError, PocketMoEError
from pocketmoe.runtime.cpu import runner as host_runner


@dataclass(frozen=True)
class PrefetchRun:
    """Of `tokens` decoded; depth 0: nothing was read early. accuracy: of the guesses, or None."""

    depth: int
    tokens_per_second: float
    hit_rate: float
    bytes_per_token: float
    early_per_token: float
    used: float
    busy: float
    accuracy: float | None


def open_at(bundle: Path, cache: float, context: int, prefetch: str) -> pocketmoe.Session:
    session = pocketmoe.open(bundle, context=context, prefetch=prefetch)
    plan = session.plan
    slots = max(plan.fewest + 2, round(cache * session.manifest.num_pages))
    session.set_memory_budget(plan.fixed + plan.predictor + slots * plan.page)
    return session


def decode(
    session: pocketmoe.Session, prompt: list[int], tokens: list[int], depth: int
) -> PrefetchRun:
    """Decodes `tokens` after a prompt, over a cache that the same tokens have filled."""
    for _ in range(2):
        session.reset()
        session.forward(prompt, last_only=True)
        before, began = session.stats, time.perf_counter()
        for token in tokens:
            session.forward([token], last_only=True)
        seconds, after = time.perf_counter() - began, session.stats
    hits = after.page_hits - before.page_hits
    misses = after.page_misses - before.page_misses
    early = after.early_pages - before.early_pages
    used = after.early_pages_used - before.early_pages_used
    count = len(tokens)
    return PrefetchRun(
        depth, count / seconds, hits / (hits + misses),
        (after.bytes_read - before.bytes_read) / count, early / count, used / early if early else 0,
        (after.read_seconds - before.read_seconds) / seconds, after.guess_accuracy,
    )  # fmt: skip


def compare(
    bundle: Path, cache: float, count: int, depths: list[int], repeats: int, text: str | None
) -> list[PrefetchRun]:
    """Raises InputError where nothing can be guessed, or the text is too short."""
    context = count + 32
    runs: list[PrefetchRun] = []
    for _ in range(repeats):
        for depth in (0, *depths):
            host_runner.EARLY_PAGES = depth
            with open_at(bundle, cache, context, "on") as session:
                ids = pick_tokens(session, text, context)
                runs.append(decode(session, ids[:32], ids[32:], depth))
    return runs


def pick_tokens(session: pocketmoe.Session, text: str | None, count: int) -> list[int]:
    if text is None:
        size = session.manifest.spec.vocab_size
        return np.random.default_rng(0).integers(0, size, count).tolist()
    ids = session.encode(text[: 64 * count])[:count]
    if len(ids) < count:
        raise InputError(f"the text has {len(ids)} tokens, and {count} are needed; give a longer")
    return ids


@click.command(help="Measure what reading ahead is worth on BUNDLE.")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--cache", default=0.5, show_default=True, type=click.FloatRange(0.01, 0.99))
@click.option("--tokens", default=48, show_default=True, type=click.IntRange(2))
@click.option("--depth", "depths", multiple=True, default=(1, 2, 3), type=click.IntRange(1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(
    bundle: Path, cache: float, tokens: int, depths: tuple[int, ...], repeats: int,
    text: Path | None,
) -> None:  # fmt: skip
    try:
        source = text.read_text(encoding="utf-8") if text else None
        runs = compare(bundle, cache, tokens, list(depths), repeats, source)
    except (PocketMoEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    off = statistics.median(run.tokens_per_second for run in runs if run.depth == 0)
    rows = []
    for depth in (0, *depths):
        group = [run for run in runs if run.depth == depth]
        speed = statistics.median(run.tokens_per_second for run in group)
        one = group[-1]
        rows.append([
            str(depth) if depth else "off", f"{speed:.2f}", f"{speed / off:.2f} x",
            f"{one.hit_rate:.1%}", f"{one.bytes_per_token / 2**20:.1f} MiB",
            f"{one.early_per_token:.1f}", f"{one.used:.0%}" if depth else "",
            f"{one.busy:.0%}", f"{one.accuracy:.1%}" if one.accuracy is not None else "",
        ])  # fmt: skip
    columns = ["depth", "tok/s", "", "hits", "read", "early", "used", "disk busy", "right guesses"]
    print_table(f"reading ahead, {bundle}, {cache:.0%} of the pages cached", columns, rows)


if __name__ == "__main__":
    main()
