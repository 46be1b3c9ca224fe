"""The model card, which is written beside a trained checkpoint."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict

import torch

from .corpus import Corpus
from .schedule import Schedule


def model_card(
    name: str, family: str, schedule: Schedule, text: Corpus, training_tokens: int,
    seconds: float, loss: float, bytes_per_token: float,
) -> str:  # fmt: skip
    """Markdown: data, steps, time, held-out loss."""
    tokens = schedule.steps * schedule.tokens_per_step
    facts = {
        "Data": f"the standard library of Python {platform.python_version()}, "
        f"{len(text.training)} files ({training_tokens:,} tokens); sha256 {text.sha256[:16]}",
        "Held out": f"{len(text.held_out)} files, chosen by the hash of their paths",
        "Steps": f"{schedule.steps} × {schedule.tokens_per_step} tokens = "
        f"{tokens / 1e6:.1f} M tokens",
        "Time": f"{seconds / 60:.0f} minutes on {torch.get_num_threads()} CPU threads",
        "Held-out loss": f"{loss:.3f} nats per token, {loss / math.log(2) / bytes_per_token:.3f} "
        "bits per byte",
        "Schedule": f"`{json.dumps(asdict(schedule))}`",
        "torch": torch.__version__,
    }
    table = "\n".join(f"| {fact} | {value} |" for fact, value in facts.items())
    return f"""# pocketmoe `{name}`

A small model of the family `{family}`. It writes text that looks like Python; it is here to try
the compiler and the runtime with, and fit for nothing else.

| | |
|---|---|
{table}

The training text is under the PSF licence; the weights are under Apache-2.0, as pocketmoe is.
Made by `python -m pocketmoe.model.train` with the schedule and the config.json that are here.
"""
