"""Small random models, as transformers makes and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from pocketmoe.bench.lib.byte_tokenizer import byte_tokenizer


def make_model(config: dict[str, Any], path: Path) -> transformers.PreTrainedModel:
    """A random model, saved with a tokenizer; norms, biases and sinks are random too."""
    values = {key: value for key, value in config.items() if key != "model_type"}
    made = transformers.AutoConfig.for_model(config["model_type"], **values)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 or "correction_bias" in name:
            low, high = (0.5, 1.5) if "norm" in name and name.endswith("weight") else (-0.3, 0.3)
            torch.nn.init.uniform_(tensor, low, high)
    model.save_pretrained(path)
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return model.eval()
