"""Trains a preset, or a config of any family, on the Python standard library's sources.

    python -m pocketmoe.model.train -o model/demo --work build/train
    python -m pocketmoe.model.train --config config.json -o build/mine --work build/train-mine

The tokenizer is made of the same text, with as many tokens as the config says. Interrupted, the
same command continues at its last saved step. The result depends on the seed, the sources, the
number of threads and torch's version alone, not on where it was interrupted.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError, InputError, PocketMoEError
from ..checkpoint.checkpoint import read_json
from ..families import find_family
from ..module import Decoder
from ..routing import Route, load_balancing_loss
from . import corpus
from .checkpoint_writer import write_checkpoint
from .model_card import model_card
from .presets import find_preset
from .schedule import Schedule

BALANCE = 0.01  # weight of the balancing loss where the config has none

logger = logging.getLogger(__name__)


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
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


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


def read_training_config(path: Path) -> dict[str, Any]:
    """A config.json of any family, or that of a directory; a text ends with the corpus's token.

    Raises:
        CheckpointError: there is no such file, or it is not JSON.
        ConfigError: its weights are said to be quantized.
    """
    config = read_json(path / "config.json" if path.is_dir() else path)
    if config.get("quantization_config"):
        raise ConfigError(
            f"{path}: a checkpoint is trained unquantized; remove quantization_config"
        )
    return config | {"eos_token_id": corpus.END_OF_TEXT_ID}


def train(
    name: str, config: dict[str, Any], schedule: Schedule, root: Path, work: Path, out: Path,
    save_every: int,
) -> None:  # fmt: skip
    """Runs the schedule, then writes the checkpoint and its model card to `out`.

    name: what the card calls the model.
    """
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
    balance = float(config.get("router_aux_loss_coef", BALANCE))
    initialize(model, config, schedule.seed)
    optimizers = make_optimizers(model, schedule)
    state = TrainingState(work / "state.pt", model, optimizers)
    identity = {"config": config, "corpus": text.sha256, **asdict(schedule)}
    first, spent = state.load(identity)
    began = time.monotonic() - spent
    for step in range(first, schedule.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step)
        batch = schedule.batch(training, step)
        loss, balancing = train_step(model, batch, balance, optimizers)
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
    card = model_card(
        name, model.spec.family, schedule, text, len(training), seconds, final, bytes_per_token
    )
    parameters = {
        parameter: tensor.to(torch.float16)
        for parameter, tensor in model.state_dict().items()
        if parameter != "head.weight" or not model.spec.tie_word_embeddings
    }
    write_checkpoint(
        out, config, parameters, {"tokenizer.json": tokenizer.to_str(), "README.md": card}
    )
    logger.info("wrote %s; held-out loss %.4f nats per token", out, final)


class WrongInput(click.ClickException):
    """A wrong input, with the exit code that the other commands have."""

    exit_code = 2


@click.command(help="Train a preset, or a config of any family, on the Python standard library.")
@click.option("--preset", default="demo", show_default=True)
@click.option(
    "--config", "config_path", type=click.Path(exists=True, path_type=Path),
    help="a config.json, or a directory with one, in place of a preset",
)  # fmt: skip
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
    preset: str, config_path: Path | None, steps: int, seed: int, threads: int, root: Path | None,
    save_every: int, work: Path, out: Path,
) -> None:  # fmt: skip
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(threads)
    schedule = Schedule(steps=steps, seed=seed)
    try:
        if config_path is None:
            name, config = preset, find_preset(preset)
        else:
            name, config = out.name, read_training_config(config_path)
        train(name, config, schedule, root or corpus.standard_library(), work, out, save_every)
    except PocketMoEError as error:
        raise WrongInput(str(error)) from error
