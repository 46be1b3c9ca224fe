"""Writing a checkpoint directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..errors import ConfigError
from .checkpoint import SINGLE_FILE
from .families import find_family
from .families.names import Place


def write_checkpoint(
    path: Path,
    config: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    texts: Mapping[str, str],
) -> None:
    """Writes config.json, model.safetensors and `texts` (file name → content) into a directory.

    Raises:
        ConfigError: the family does not hold each parameter in a tensor of its own.
    """
    family = find_family(config)
    for place in (family.locate(name).place for name in parameters):
        if place != Place(place.name):
            raise ConfigError(f"checkpoints of family {family.model_type} can only be read")
    path.mkdir(parents=True, exist_ok=True)
    weights = path / (SINGLE_FILE + ".tmp")
    tensors = {family.locate(name).name: tensor.contiguous() for name, tensor in parameters.items()}
    weights.write_bytes(save(tensors, metadata={"format": "pt"}))
    os.replace(weights, path / SINGLE_FILE)
    for name, text in {"config.json": json.dumps(dict(config), indent=2) + "\n", **texts}.items():
        temporary = path / (name + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path / name)
