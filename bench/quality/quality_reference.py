"""A held-out text, and the checkpoint's answers to it that others are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pocketmoe.analysis.evaluation.deviation import Deviations
from pocketmoe.analysis.evaluation.reference import run_reference
from pocketmoe.analysis.evaluation.scores import Evaluation, Scores, evaluate
from pocketmoe.analysis.evaluation.windows import cut_windows
from pocketmoe.errors import InputError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.train import corpus
from pocketmoe.runtime.opening import open_bundle

_STRETCH = 512


def read_tokens(checkpoint: Checkpoint, data: Path | None, limit: int) -> list[int]:
    """The first `limit` tokens of a text file, or of the files that the demo never saw."""
    if not checkpoint.tokenizer_path.exists():
        raise InputError(f"{checkpoint.tokenizer_path} is missing; the text cannot be tokenized")
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer_path))
    if data is None:
        # Evenly spread: the first files of the library are of one kind.
        texts = corpus.read_corpus(corpus.standard_library()).held_out
        ids = corpus.encode(tokenizer, texts).astype(int)
        part = max(1, len(ids) // max(1, limit // _STRETCH))
        stretches = [ids[start : start + _STRETCH] for start in range(0, len(ids), part)]
        return [int(token) for stretch in stretches for token in stretch][:limit]
    try:
        text = data.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{data} is not UTF-8 text ({error})") from error
    return list(tokenizer.encode(text).ids[:limit])


class Yardstick:
    """The checkpoint's answers to a text, which any number of its bundles are held against.

    The checkpoint runs once, layer by layer; what does not fit into memory lies in `folder`.
    """

    def __init__(self, checkpoint: Path, token_ids: Sequence[int], window: int, folder: Path):
        self.windows = cut_windows(token_ids, window)
        self._reference = run_reference(Checkpoint(checkpoint), self.windows, folder)

    def measure(self, bundle: Path) -> Evaluation:
        with open_bundle(bundle, context=self.windows.length) as session:
            deviations = Deviations(session.manifest, self._reference.layers, self.windows)
            return evaluate(session, self.windows, self._reference.logits, deviations)

    def score(self, logits: Callable[[int], np.ndarray]) -> Evaluation:
        """Of another program's logits: `[T, V]` or more rows, by a window's number."""
        scores = Scores(self.windows, compared=True)
        for number in range(len(self.windows)):
            targets = self.windows[number][1:]
            found, wanted = logits(number), self._reference.logits(number)
            scores.add(number, targets, found[: len(targets)], wanted[: len(targets)])
        return scores.result()


def figure(result: Evaluation, name: str, write: Callable[[float], str]) -> str:
    value, interval = getattr(result, name), result.intervals.get(name)
    if value is None:
        return ""
    return write(value) + (f" ({' to '.join(map(write, interval))})" if interval else "")
