"""The backbone on the native kernels and on ONNX Runtime, taking turns in one process.

    python bench/speed/backbone.py BUNDLE [--past 100 --past 1000] [--rounds 4] [--threads N]

The experts are native in both. Prints milliseconds, the tenth and the fiftieth of a hundred: of a
token after so many, and of a prompt of 128 tokens; the whole of it, and the backbone's part.
Both sessions keep all pages in memory.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import click
import numpy as np

from pocketmoe.runtime.cpu import native_backbone
from pocketmoe.runtime.cpu.backbone import Backbone
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.runtime.session import Session

PROMPT, BLOCK, BLOCKS = 128, 12, 4  # tokens; tokens before the other one's turn; turns


class Timer:
    """Seconds of a call, and those that a backbone took of it."""

    def __init__(self) -> None:
        self.backbone = 0.0
        for name in ("run", "run_last"):
            setattr(Backbone, name, self._timed(getattr(Backbone, name)))

    def _timed(self, function: object) -> object:
        def timed(*arguments: object) -> object:
            start = time.perf_counter()
            try:
                return function(*arguments)  # type: ignore[operator]
            finally:
                self.backbone += time.perf_counter() - start

        return timed

    def forward(self, session: Session, ids: list[int]) -> tuple[float, float]:
        self.backbone = 0.0
        start = time.perf_counter()
        session.forward(ids, last_only=True)
        return time.perf_counter() - start, self.backbone


def sessions(bundle: Path, context: int, threads: int | None) -> Iterator[Session]:
    yield open_bundle(bundle, context=context, threads=threads)
    with patch.object(native_backbone, "can_serve", lambda spec: False):
        yield open_bundle(bundle, context=context, threads=threads)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--past", type=int, multiple=True, default=(100, 1000))
@click.option("--rounds", default=4)
@click.option("--threads", type=int)
def main(bundle: Path, past: tuple[int, ...], rounds: int, threads: int | None) -> None:
    timer = Timer()
    tokens = max(past) + BLOCK * BLOCKS
    both = list(sessions(bundle, max(tokens, PROMPT), threads))
    vocabulary = both[0].manifest.spec.vocab_size
    ids = np.random.default_rng(0).integers(vocabulary, size=max(tokens, PROMPT)).tolist()
    taken: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)

    def measure(session: Session, what: str, part: list[int], warm: bool) -> None:
        figures = timer.forward(session, part)
        if warm:
            taken[what, session.stats.backbone_engine].append(figures)

    for turn in range(rounds):
        for session in both:
            session.reset()
            measure(session, f"prompt of {PROMPT}", ids[:PROMPT], turn > 0)
        for start in past:
            for session in both:
                session.reset()
                session.forward(ids[:start], last_only=True)
            for first in range(start, start + BLOCK * BLOCKS, BLOCK):
                for session in both:
                    for index in range(first, first + BLOCK):
                        what = f"token after {start}"
                        measure(session, what, [ids[index]], turn > 0 and index > first + 1)
    for (what, engine), figures in sorted(taken.items()):
        low, middle = np.percentile(np.array(figures) * 1e3, (10, 50), axis=0)
        print(
            f"{what:16} {engine:16} {low[0]:8.2f} {middle[0]:8.2f}   "
            f"backbone {low[1]:8.2f} {middle[1]:8.2f}"
        )


if __name__ == "__main__":
    main()
