"""Parameters are read out of every place in which a checkpoint may hold them."""

import os
from math import prod
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file

from pocketmoe.errors import CheckpointError
from pocketmoe.model.checkpoint.headers import read_header
from pocketmoe.model.checkpoint.tensors import StoredParameter, TensorReader
from pocketmoe.model.families.names import Location, Place, Rows


def store(place: Place, experts: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The tensor of a place, of parameters `[experts, out, ...]` and those they share it with."""
    stored = experts
    if place.rows in ("even", "odd"):
        pair = (experts, others) if place.rows == "even" else (others, experts)
        stored = torch.stack(pair, dim=2).flatten(1, 2)
    elif place.rows != "all":
        pair = (experts, others) if place.rows == "first" else (others, experts)
        stored = torch.cat(pair, dim=1)
    if place.transposed and stored.dim() == 3:
        stored = stored.transpose(1, 2)
    stored = stored if place.stacked else stored[1]
    return stored[None] if place.leading else stored


@pytest.mark.parametrize("rows", get_args(Rows))
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (6,)], ids=["matrix", "vector"])
def test_every_place(
    rows: Rows, stacked: bool, transposed: bool, shape: tuple[int, ...], tmp_path: Path
) -> None:
    place = Place("w", stacked, rows, transposed, leading=not stacked)
    experts, others = torch.randn(2, 3, *shape).to(torch.bfloat16)
    stored = store(place, experts, others)
    assert tuple(stored.shape) == place.stored_shape(shape, 3)
    save_file({"before": torch.zeros(3), "w": stored.contiguous()}, tmp_path / "file")
    location = Location(place, "w", 1 if stacked else None)
    source = StoredParameter(shape, location, {"": read_header(tmp_path / "file")["w"]})
    with TensorReader({"w": source}) as reader:
        assert torch.equal(reader.read("w"), experts[1])
        assert reader.read("w").is_contiguous()
        tiles = list(reader.tiles("w", max_bytes=2 * 4 * prod(shape[1:])))
    assert [len(tile) for tile in tiles] == [2, 2, 2]
    assert all(tile.dtype == torch.float32 for tile in tiles)
    assert torch.equal(torch.cat(tiles), experts[1].float())


def test_one_expert_of_a_stacked_tensor_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"w": torch.randn(64, 2 * 8, 4)}, tmp_path / "file")
    place = Place("w", stacked=True, rows="second")
    source = StoredParameter(
        (8, 4), Location(place, "w", 5), {"": read_header(tmp_path / "file")["w"]}
    )
    counts, preadv = [], os.preadv

    def counting(descriptor: int, buffers: Any, offset: int) -> int:
        counts.append(preadv(descriptor, buffers, offset))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", counting)
    with TensorReader({"w": source}) as reader:
        reader.read("w")
        assert sum(counts) == 8 * 4 * 4
        next(reader.tiles("w", max_bytes=16))
    assert sum(counts) == 8 * 4 * 4 + 16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    weights = torch.randn(6, 4)
    weights[4, 1] = value
    save_file({"w": weights}, tmp_path / "file")
    source = StoredParameter(
        (6, 4), Location(Place("w"), "w", None), {"": read_header(tmp_path / "file")["w"]}
    )
    with TensorReader({"w": source}) as reader, pytest.raises(CheckpointError, match="tensor w "):
        list(reader.tiles("w", max_bytes=32))
