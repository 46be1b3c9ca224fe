"""One file per model family: its config, its tensor names. This table is the list of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ..spec import ModelSpec
from . import mixtral, olmoe, qwen3_moe, reference

_NUMBERED = re.compile(r"layers\.(\d+)\.(experts\.(\d+)\.)?")


@dataclass(frozen=True)
class Family:
    """How checkpoints of one `model_type` are read.

    tensors maps parameter names of `model.parameters`, with `{layer}` and `{expert}` for numbers,
    to the names in the checkpoint.
    """

    model_type: str
    read_config: Callable[[Mapping[str, Any]], ModelSpec]
    tensors: Mapping[str, str]

    def tensor_name(self, parameter: str) -> str:
        """The checkpoint's name for a parameter."""
        match = _NUMBERED.match(parameter)
        if match is None:
            return self.tensors[parameter]
        layer, _, expert = match.groups()
        prefix = "layers.{layer}." + ("experts.{expert}." if expert is not None else "")
        return self.tensors[prefix + parameter[match.end() :]].format(layer=layer, expert=expert)


FAMILIES = {
    module.MODEL_TYPE: Family(module.MODEL_TYPE, module.read_config, module.TENSORS)
    for module in (reference, mixtral, qwen3_moe, olmoe)
}


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        ConfigError: model_type is missing or unknown.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"config.json: model_type = {model_type!r} is not a family that pocketmoe knows "
        f"({', '.join(sorted(FAMILIES))}){hint}"
    )
