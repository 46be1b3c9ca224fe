"""Trains a preset of the reference family on the Python standard library's sources.

    python -m pocketmoe.model.train -o model/demo --work build/train

Interrupted, the same command continues at its last saved step. The result depends on the seed,
the sources, the number of threads and torch's version alone, not on where it was interrupted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, PocketMoEError
from . import corpus
from .checkpoint_writer import write_checkpoint
from .families import find_family
from .module import Decoder
from .presets import find_preset
from .routing import Route, load_balancing_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """steps: optimizer steps of tokens_per_step tokens each.

    The last long_share of them use sequences of long_length instead of length. The learning rate
    rises over warmup steps and falls linearly to 0 over the last cooldown share.
    """

    steps: int
    tokens_per_step: int = 4096
    length: int = 512
    long_length: int = 2048
    long_share: float = 0.08
    learning_rate: float = 3e-3
    warmup: int = 50
    cooldown: float = 0.5
    weight_decay: float = 0.05
    seed: int = 0

    def sequence_length(self, step: int) -> int:
        return self.long_length if step >= self.steps * (1 - self.long_share) else self.length

    def rate(self, step: int) -> float:
        left = (self.steps - step) / max(1.0, self.cooldown * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)

    def batch(self, tokens: np.ndarray, step: int) -> Tensor:
        """`[sequences, length + 1]` int64: each epoch reads every window once, in a fresh order."""
        length = self.sequence_length(step)
        count = self.tokens_per_step // length
        windows = (len(tokens) - 1) // length - 1
        rows = []
        for index in range(step * count, (step + 1) * count):
            epoch, place = divmod(index, windows)
            order = np.random.default_rng((self.seed, epoch, length))
            shift = int(order.integers(length))
            start = int(order.permutation(windows)[place]) * length + shift
            rows.append(tokens[start : start + length + 1].astype(np.int64))
        return torch.from_numpy(np.stack(rows))


def initialize(model: Decoder, config: dict[str, Any], seed: int) -> None:
    """Normal weights; what is added to the residual stream shrinks with depth.

    With post norms that scale is the norm's weight, else the output projections' (GPT-2).
    """
    torch.manual_seed(seed)
    std = float(config.get("initializer_range", 0.02))
    depth = 1 / math.sqrt(2 * len(model.layers)) if config.get("depth_scaled_init", True) else 1.0
    for name, parameter in model.named_parameters():
        output = name.endswith(("o_proj.weight", "down.weight"))
        if parameter.ndim == 2:
            scale = depth if output and not model.spec.post_norm else 1.0
            nn.init.normal_(parameter, std=std * scale)
        elif name.endswith("post_norm.weight"):
            nn.init.constant_(parameter, depth)


def make_optimizers(model: Decoder, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embedding, routers and norms."""
    named = list(model.named_parameters())
    matrices = [
        p for n, p in named if p.ndim == 2 and not n.startswith("embed") and "router" not in n
    ]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    rate, decay = schedule.learning_rate, schedule.weight_decay
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=True),
    ]


def train_step(
    model: Decoder, batch: Tensor, balance: float, optimizers: list[torch.optim.Optimizer]
) -> tuple[float, float]:
    """One optimizer step; returns the text loss and the balancing loss."""
    routes: list[Route] = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch[:, :-1], routes=routes)
    loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
    balancing = load_balancing_loss(routes)
    (loss + balance * balancing).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item(), balancing.item()


@torch.no_grad()
def held_out_loss(model: Decoder, tokens: np.ndarray, length: int, sequences: int) -> float:
    """Mean cross-entropy in nats per token over evenly spread windows, in float32."""
    starts = np.linspace(0, len(tokens) - length - 1, sequences).astype(int)
    losses = []
    for start in starts:
        window = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))[None]
        logits = model(window[:, :-1])
        losses.append(F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()).item())
    return float(np.mean(losses))


class TrainingState:
    """What is needed to continue: saved beside and renamed."""

    def __init__(self, path: Path, model: Decoder, optimizers: list[torch.optim.Optimizer]):
        self.path, self.model, self.optimizers = path, model, optimizers

    def save(self, step: int, seconds: float, identity: dict[str, Any]) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save(
            {
                "step": step,
                "seconds": seconds,
                "identity": identity,
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            },
            temporary,
        )
        os.replace(temporary, self.path)

    def load(self, identity: dict[str, Any]) -> tuple[int, float]:
        """The step to continue at and the seconds spent; (0, 0.0) where nothing was saved."""
        if not self.path.exists():
            return 0, 0.0
        saved = torch.load(self.path, weights_only=True)
        if saved["identity"] != identity:
            raise InputError(
                f"{self.path} belongs to a run with other settings; choose another --work "
                "directory or remove it"
            )
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return saved["step"], saved["seconds"]


def train(
    preset: str, schedule: Schedule, root: Path, work: Path, out: Path, save_every: int
) -> None:
    """Runs the schedule, then writes the checkpoint and its model card to `out`."""
    config = find_preset(preset)
    work.mkdir(parents=True, exist_ok=True)
    text = corpus.read_corpus(root)
    if not text.held_out:
        raise InputError(
            f"{root} has too few Python files to hold any out; choose another --corpus"
        )
    tokenizer = corpus.train_tokenizer(text.training, config["vocab_size"])
    training = corpus.encode(tokenizer, text.training)
    held_out = corpus.encode(tokenizer, text.held_out)
    if len(training) <= 2 * schedule.long_length or len(held_out) <= schedule.length:
        raise InputError(
            f"{root} has {len(training)} training and {len(held_out)} held-out tokens, but "
            f"{2 * schedule.long_length + 1} and {schedule.length + 1} are needed; "
            "choose a larger --corpus"
        )
    logger.info("corpus: %d training tokens, %d held out", len(training), len(held_out))

    model = Decoder(find_family(config).read_config(config))
    initialize(model, config, schedule.seed)
    optimizers = make_optimizers(model, schedule)
    state = TrainingState(work / "state.pt", model, optimizers)
    identity = {"preset": preset, "corpus": text.sha256, **asdict(schedule)}
    first, spent = state.load(identity)
    began = time.monotonic() - spent
    for step in range(first, schedule.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
        batch = schedule.batch(training, step)
        loss, balancing = train_step(model, batch, config["router_aux_loss_coef"], optimizers)
        done, seconds = step + 1, time.monotonic() - began
        if done % 10 == 0 or done == schedule.steps:
            left = seconds / done * (schedule.steps - done)
            logger.info(
                "step %d/%d  loss %.3f  balance %.3f  %.0f tok/s  %.0f min left",
                done, schedule.steps, loss, balancing,
                done * schedule.tokens_per_step / seconds, left / 60,
            )  # fmt: skip
        if done % save_every == 0 or done == schedule.steps:
            state.save(done, seconds, identity)
            logger.info("held-out loss %.4f", held_out_loss(model, held_out, schedule.length, 16))

    seconds = time.monotonic() - began
    final = held_out_loss(model, held_out, schedule.length, 128)
    bytes_per_token = sum(len(part.encode()) for part in text.held_out) / len(held_out)
    card = model_card(preset, schedule, text, len(training), seconds, final, bytes_per_token)
    parameters = {
        name: tensor.to(torch.float16)
        for name, tensor in model.state_dict().items()
        if name != "head.weight" or not model.spec.tie_word_embeddings
    }
    write_checkpoint(
        out, config, parameters, {"tokenizer.json": tokenizer.to_str(), "README.md": card}
    )
    logger.info("wrote %s; held-out loss %.4f nats per token", out, final)


def model_card(
    preset: str, schedule: Schedule, text: corpus.Corpus, training_tokens: int,
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
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""# pocketmoe `{preset}`

A small Mixture-of-Experts model of pocketmoe's reference family. It writes text that looks like
Python; it is here to try the compiler and the runtime with, and fit for nothing else.

| | |
|---|---|
{table}

The training text is under the PSF licence; the weights are under Apache-2.0, as pocketmoe is.
Made by `python -m pocketmoe.model.train --preset {preset} --steps {schedule.steps} -o {preset}`.
"""


class Refusal(click.ClickException):
    """A wrong input, with the exit code that the other commands have."""

    exit_code = 2


@click.command(help="Train a preset of the reference family on the Python standard library.")
@click.option("--preset", default="demo", show_default=True)
@click.option("--steps", default=1000, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@click.option("--corpus", "root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--save-every", default=50, show_default=True, type=click.IntRange(1))
@click.option(
    "--work", default=Path("build/train"), show_default=True, type=click.Path(path_type=Path)
)
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path))
def main(
    preset: str, steps: int, seed: int, threads: int, root: Path | None, save_every: int,
    work: Path, out: Path,
) -> None:  # fmt: skip
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(threads)
    schedule = Schedule(steps=steps, seed=seed)
    try:
        train(preset, schedule, root or corpus.standard_library(), work, out, save_every)
    except PocketMoEError as error:
        raise Refusal(str(error)) from error


if __name__ == "__main__":
    main()
