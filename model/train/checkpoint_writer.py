"""Writing a checkpoint directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ...files import write_atomically
from ..checkpoint.checkpoint import SINGLE_FILE
from ..families import Family, find_family
from ..families.names import Location, Rows


def write_checkpoint(
    path: Path,
    config: Mapping[str, Any],
    parameters: Mapping[str, torch.Tensor],
    texts: Mapping[str, str],
) -> None:
    """Writes config.json, model.safetensors and `texts` (file name → content) into a directory."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = stored_tensors(find_family(config), parameters)
    write_atomically(path / SINGLE_FILE, save(tensors, metadata={"format": "pt"}))
    # The config last: without it the directory is no checkpoint.
    for name, text in {**texts, "config.json": json.dumps(dict(config), indent=2) + "\n"}.items():
        write_atomically(path / name, text)


def stored_tensors(
    family: Family, parameters: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The parameters as the family's checkpoints hold them, some of them parts of one tensor."""
    places = {name: family.locate(name) for name in parameters}
    experts: dict[str, int] = {}
    for location in places.values():
        experts[location.name] = max(experts.get(location.name, 0), (location.expert or 0) + 1)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        location = places[name]
        if location.name not in tensors:
            shape = location.place.stored_shape(tuple(parameter.shape), experts[location.name])
            tensors[location.name] = parameter.new_zeros(shape)
        _part(tensors[location.name], location).copy_(parameter)
    return tensors


_ROWS: dict[Rows, Callable[[int], slice]] = {
    "all": lambda rows: slice(None),
    "first": lambda rows: slice(0, rows // 2),
    "second": lambda rows: slice(rows // 2, None),
    "even": lambda rows: slice(0, None, 2),
    "odd": lambda rows: slice(1, None, 2),
}


def _part(tensor: torch.Tensor, location: Location) -> torch.Tensor:
    """A view of what belongs to the parameter, with its shape."""
    place = location.place
    if place.leading:
        tensor = tensor[0]
    if location.expert is not None:
        tensor = tensor[location.expert]
    if place.transposed and tensor.ndim == 2:
        tensor = tensor.T
    return tensor[_ROWS[place.rows](len(tensor))]
