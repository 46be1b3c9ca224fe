"""Worth of running several sequences together: tokens per second of 1, 2, 4 and 8 threads.

    python bench/speed/parallel.py build/demo --text cli.py
    python bench/speed/parallel.py build/olmoe --cache 0.5 --forced

One model; each thread has a session of its own and decodes after a prompt of its own, cut from
places of a text that lie apart, or random tokens without one. Numbers of threads take turns. With
--memory-budget, the sessions' keys and values come out of the page cache; --cache keeps a share of
all pages cached for any number of sessions. --forced: the tokens are those of the text, not the
likeliest, which models with random weights repeat.

Speed counts decoding alone, from when all prompts are read until the last thread is done.
"""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

import pocketmoe
from pocketmoe.commands.console import print_table
from pocketmoe.errors import InputError, PocketMoEError


@dataclass(frozen=True)
class ParallelRun:
    """Of `threads` that decoded together."""

    threads: int
    tokens_per_second: float
    hit_rate: float
    bytes_per_token: float
    busy: float
    early_per_token: float


@dataclass(frozen=True)
class Task:
    """prompt: tokens of the prompt; tokens: that are decoded; forced: see above."""

    prompt: int
    tokens: int
    forced: bool


def passages(session: pocketmoe.Session, text: str | None, count: int, length: int) -> np.ndarray:
    """int64 `[count, length]`. Raises InputError where the text is too short."""
    if text is None:
        size = session.manifest.spec.vocab_size
        return np.random.default_rng(0).integers(0, size, (count, length))
    ids = np.array(session.encode(text))
    if len(ids) < count * length:
        raise InputError(f"the text has {len(ids)} tokens; {count * length} are needed")
    starts = np.arange(count) * (len(ids) // count)
    return np.stack([ids[start : start + length] for start in starts])


def decode(
    session: pocketmoe.Session, ids: list[int], task: Task, ready: threading.Barrier
) -> None:
    session.reset()
    logits = session.forward(ids[: task.prompt], last_only=True)
    ready.wait()
    for place in range(task.prompt, task.prompt + task.tokens):
        token = ids[place] if task.forced else int(logits[0].argmax())
        logits = session.forward([token], last_only=True)
    ready.wait()


def run(model: list[pocketmoe.Session], ids: np.ndarray, task: Task) -> ParallelRun:
    count = len(model)
    ready = threading.Barrier(count + 1)
    threads = [
        threading.Thread(target=decode, args=(session, one.tolist(), task, ready))
        for session, one in zip(model, ids, strict=False)
    ]
    for thread in threads:
        thread.start()
    ready.wait()
    before, began = model[0].stats, time.perf_counter()
    ready.wait()
    seconds, after = time.perf_counter() - began, model[0].stats
    for thread in threads:
        thread.join()
    hits = after.page_hits - before.page_hits
    requests = hits + after.page_misses - before.page_misses
    total = count * task.tokens
    return ParallelRun(
        count, total / seconds, hits / max(1, requests),
        (after.bytes_read - before.bytes_read) / total,
        (after.read_seconds - before.read_seconds) / seconds,
        (after.early_pages - before.early_pages) / total,
    )  # fmt: skip


def measure(
    bundle: Path, budget: str | None, cache: float, counts: list[int], task: Task, repeats: int,
    text: str | None, threads: int | None,
) -> list[ParallelRun]:  # fmt: skip
    length = task.prompt + task.tokens
    runs: list[ParallelRun] = []
    with pocketmoe.open(bundle, context=length, memory_budget=budget, threads=threads) as first:
        ids = passages(first, text, max(counts), length)
        for _ in range(repeats):
            for count in counts:
                with ExitStack() as opened:
                    model = [first]
                    for _ in range(count - 1):
                        model.append(opened.enter_context(first.another()))
                    if budget is None:
                        plan, pages = first.plan, first.manifest.num_pages
                        slots = max(plan.fewest + 2, round(cache * pages))
                        fixed = plan.fixed - plan.predictor * plan.predicts
                        first.set_memory_budget(fixed + plan.predictor + slots * plan.page)
                    runs.append(run(model, ids, task))
                if budget is None:
                    first.set_memory_budget(None)
    return runs


@click.command(help="Measure what running several sequences of BUNDLE together is worth.")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--parallel", "counts", multiple=True, default=(1, 2, 4, 8), type=click.IntRange(1))
@click.option("--memory-budget", help="In place of --cache.")
@click.option("--cache", default=0.5, show_default=True, type=click.FloatRange(0.01, 1))
@click.option("--prompt", default=32, show_default=True, type=click.IntRange(1))
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(1))
@click.option("--forced", is_flag=True)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--threads", type=click.IntRange(1))
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(
    bundle: Path, counts: tuple[int, ...], memory_budget: str | None, cache: float, prompt: int,
    tokens: int, forced: bool, repeats: int, threads: int | None, text: Path | None,
) -> None:  # fmt: skip
    try:
        source = text.read_text(encoding="utf-8") if text else None
        task = Task(prompt, tokens, forced)
        runs = measure(bundle, memory_budget, cache, list(counts), task, repeats, source, threads)
    except (PocketMoEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    rows = []
    base = 0.0
    for count in counts:
        group = [one for one in runs if one.threads == count]
        speed = statistics.median(one.tokens_per_second for one in group)
        base = base or speed
        middle = sorted(group, key=lambda one: one.tokens_per_second)[len(group) // 2]
        rows.append([
            str(count), f"{speed:.1f}", f"{speed / base:.2f} x", f"{middle.hit_rate:.1%}",
            f"{middle.bytes_per_token / 2**20:.2f} MiB", f"{middle.busy:.0%}",
            f"{middle.early_per_token:.2f}",
        ])  # fmt: skip
    columns = ["parallel", "tok/s", "", "hits", "read/token", "disk busy", "early/token"]
    budget = memory_budget or f"{cache:.0%} of the pages cached"
    print_table(f"sequences together, {bundle}, {budget}", columns, rows)


if __name__ == "__main__":
    main()
