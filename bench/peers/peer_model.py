"""The small OLMoE on which bench/quality/quality.py compares llama.cpp's files: trained once.

Its widths are multiples of 256, which llama.cpp's K-quants need. As in OLMoE-1B-7B, nine tenths of
its 41.5 M weights are experts'. The text is the demo model's.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pocketmoe.errors import InputError
from pocketmoe.model.train import corpus
from pocketmoe.model.train.schedule import Schedule
from pocketmoe.model.train.training import train

NAME = "olmoe-peer"
CONFIG: dict[str, Any] = {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "hidden_act": "silu",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "attention_bias": False,
    "clip_qkv": None,
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-5,
    "router_aux_loss_coef": 0.01,
    "bos_token_id": None,
    "eos_token_id": corpus.END_OF_TEXT_ID,
}
SCHEDULE = Schedule(steps=600)
SAVE_EVERY = 50
_IDENTITY = "trained.json"


def peer_checkpoint(cache: Path, root: Path | None = None) -> Path:
    """The checkpoint in `cache`, trained if it is not there; a run that was stopped goes on.

    root: of the text; without it, this Python's standard library.

    Raises:
        InputError: what is there was trained otherwise, so that its held-out text is another.
    """
    root = root or corpus.standard_library()
    out, identity = cache / "checkpoint", cache / _IDENTITY
    wanted = {
        "config": CONFIG,
        "schedule": asdict(SCHEDULE),
        "corpus": corpus.read_corpus(root).sha256,
    }
    if identity.exists() and json.loads(identity.read_text(encoding="utf-8")) != wanted:
        raise InputError(
            f"{cache} holds a model of another text, shape or schedule; choose another --cache "
            "or remove it"
        )
    if not (out / "config.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        identity.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        train(NAME, CONFIG, SCHEDULE, root, cache / "work", out, SAVE_EVERY)
    return out
