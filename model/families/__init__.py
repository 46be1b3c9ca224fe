"""One file per model family: its config, its tensor names. This table is the list of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ..spec import ModelSpec
from . import (
    deepseek_v2,
    deepseek_v3,
    ernie4_5_moe,
    glm4_moe,
    gpt_oss,
    granitemoe,
    llama,
    mistral,
    mixtral,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_moe,
    reference,
)
from .names import Location, Place

_NUMBERED = re.compile(r"layers\.(\d+)\.(experts\.(\d+)\.)?")


@dataclass(frozen=True)
class Family:
    """How checkpoints of one `model_type` are read.

    tensors maps parameter names of `model.parameters`, with `{layer}` and `{expert}` for numbers,
    to their places in the checkpoint.
    predictors: given the config, prefixes of the tensors of layers that predict tokens further
    ahead (multi-token prediction), which are not used.
    tiny: a config.json of a model that is made in a moment; variants: named changes to it that
    switch its features the other way. Both are for tests.
    """

    model_type: str
    read_config: Callable[[Mapping[str, Any]], ModelSpec]
    tensors: Mapping[str, Place]
    predictors: Callable[[Mapping[str, Any]], tuple[str, ...]]
    tiny: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]

    def locate(self, parameter: str) -> Location:
        """Where the checkpoint holds a parameter."""
        match = _NUMBERED.match(parameter)
        if match is None:
            place = self.tensors[parameter]
            return Location(place, place.name, None)
        layer, _, expert = match.groups()
        prefix = "layers.{layer}." + ("experts.{expert}." if expert is not None else "")
        place = self.tensors[prefix + parameter[match.end() :]]
        index = int(expert) if place.stacked else None
        return Location(place, place.name.format(layer=layer, expert=expert), index)


def _no_predictors(config: Mapping[str, Any]) -> tuple[str, ...]:
    return ()


FAMILIES = {
    module.MODEL_TYPE: Family(
        module.MODEL_TYPE,
        module.read_config,
        {
            name: Place(found) if isinstance(found, str) else found
            for name, found in module.TENSORS.items()
        },
        getattr(module, "predictors", _no_predictors),
        module.TINY,
        module.VARIANTS,
    )
    for module in (
        reference,
        mixtral,
        qwen2_moe,
        qwen3_moe,
        olmoe,
        deepseek_v2,
        deepseek_v3,
        phimoe,
        granitemoe,
        gpt_oss,
        ernie4_5_moe,
        glm4_moe,
        llama,
        mistral,
    )
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
