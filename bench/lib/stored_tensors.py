"""The tensors of a published checkpoint, and random numbers to fill them with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any, BinaryIO, Literal

import numpy as np
import torch

from pocketmoe.errors import ConfigError
from pocketmoe.model.checkpoint.headers import DTYPE_BYTES
from pocketmoe.model.families import find_family
from pocketmoe.model.parameters import Shape, parameter_shapes
from pocketmoe.model.spec import ModelSpec

STD = 0.02
NUMBERS = 16_000_057  # of a block; prime, so that no row length divides it
_FP8_STD = 112  # of E4M3 numbers before their scale: 4 times it is the largest number, 448
_LAYER = re.compile(r"layers\.(\d+)\.")

Fill = Literal["weights", "ones", "scales"]


@dataclass(frozen=True)
class PlannedTensor:
    """dtype: as safetensors writes it. scales: of a quantized tensor. std: of plain weights."""

    name: str
    dtype: str
    shape: Shape
    fill: Fill = "weights"
    std: float = STD

    @property
    def nbytes(self) -> int:
        return DTYPE_BYTES[self.dtype] * prod(self.shape)


def stored_tensors(config: dict[str, Any]) -> list[PlannedTensor]:
    """Every tensor of the checkpoint, those of its prediction layers included.

    Raises:
        ConfigError: its family or a value is not supported.
    """
    family, method = find_family(config), quantization(config)
    used = config["num_hidden_layers"]
    predictors = range(used, used + config.get("num_nextn_predict_layers", 0))
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    spec = family.read_config({**plain, "num_hidden_layers": predictors.stop})
    tensors: dict[str, PlannedTensor] = {}
    for parameter, shape in parameter_shapes(spec).items():
        location = family.locate(parameter)
        if location.name in tensors:
            continue
        match = _LAYER.match(parameter)
        router = spec.layers[int(match[1])].router if match else None
        stored = PlannedTensor(
            location.name,
            "F32" if parameter.endswith("router_correction") else "BF16",
            location.place.stored_shape(shape, router.num_experts if router else 0),
            "ones" if parameter.endswith("norm.weight") else "weights",
            weight_std(spec, parameter),
        )
        for tensor in _encode(stored, parameter, method):
            tensors[tensor.name] = tensor
    for layer in predictors:
        for tensor in _predictor(f"model.layers.{layer}", spec.vocab_size, spec.hidden_size):
            tensors[tensor.name] = tensor
    return list(tensors.values())


def weight_std(spec: ModelSpec, parameter: str) -> float:
    """STD, but for what would make all tokens alike, so that they go to the same experts: embedding
    rows enter the model with 1 (a tied head needs them small), and what attention adds, which
    neighbouring tokens have in common, is smaller by the square root of twice the layers, as where
    training begins."""
    if parameter == "embed.weight" and not spec.tie_word_embeddings:
        return 1 / spec.embedding_multiplier
    if parameter.endswith("attention.o_proj.weight"):
        return STD / sqrt(2 * spec.num_hidden_layers)
    return STD


def quantization(config: dict[str, Any]) -> str | None:
    """How the checkpoint is encoded.

    Raises:
        ConfigError: in a way that is not written here.
    """
    method = config.get("quantization_config", {}).get("quant_method")
    if method not in (None, "fp8", "mxfp4"):
        raise ConfigError(f"quant_method = {method!r} is not one of fp8 and mxfp4")
    return method


def _encode(tensor: PlannedTensor, parameter: str, method: str | None) -> Iterator[PlannedTensor]:
    """The tensors that hold one of 2 dimensions, or 3 where experts are stacked.

    fp8 (DeepSeek-V3's README_WEIGHTS.md): `[out, in]` in E4M3, and a factor for each 128 × 128.
    mxfp4 (gpt-oss): experts `[experts, in, out]` as two values per byte `[experts, out, in / 32,
    16]`, and an exponent for each 32. All else is plain.
    """
    linear = parameter.endswith(("_proj.weight", ".gate.weight", ".up.weight", ".down.weight"))
    if method == "fp8" and linear:
        rows, columns = tensor.shape
        yield replace(tensor, dtype="F8_E4M3")
        factors = (-(-rows // 128), -(-columns // 128))
        yield PlannedTensor(tensor.name + "_scale_inv", "F32", factors, "scales")
    elif method == "mxfp4" and len(tensor.shape) == 3:
        experts, columns, rows = tensor.shape
        blocks = (experts, rows, columns // 32)
        yield PlannedTensor(tensor.name + "_blocks", "U8", (*blocks, 16))
        yield PlannedTensor(tensor.name + "_scales", "U8", blocks, "scales")
    else:
        yield tensor


def _predictor(prefix: str, vocab_size: int, hidden_size: int) -> Iterator[PlannedTensor]:
    """What a prediction layer of DeepSeek-V3 and GLM-4.5 has beside a decoder layer's tensors."""
    for name in ("enorm", "hnorm", "shared_head.norm"):
        yield PlannedTensor(f"{prefix}.{name}.weight", "BF16", (hidden_size,), "ones")
    for name in ("embed_tokens", "shared_head.head"):
        yield PlannedTensor(f"{prefix}.{name}.weight", "BF16", (vocab_size, hidden_size))
    yield PlannedTensor(f"{prefix}.eh_proj.weight", "BF16", (hidden_size, 2 * hidden_size))


class RandomWeights:
    """An endless supply of numbers of each kind: one block, read from another place each time.

    Weights are normal with the standard deviation that their tensor names, in FP8 with STD, and
    every other tensor has the other sign; those in MXFP4 are any bytes, with exponents for about
    STD. No E4M3 number is NaN.
    """

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)
        normal = torch.from_numpy(self._random.standard_normal(NUMBERS, np.float32))
        ones = torch.ones(NUMBERS >> 4, dtype=torch.bfloat16)
        factors = self._random.uniform(0.8, 1.2, NUMBERS >> 8).astype(np.float32)
        few = normal[: NUMBERS >> 8]
        e4m3 = (normal * _FP8_STD).clamp(-448, 448)
        self._normal = normal
        self._plain: dict[float, list[memoryview]] = {}  # BF16, by standard deviation
        self._blocks: dict[tuple[str, Fill], list[memoryview]] = {
            ("BF16", "ones"): [_view(ones)],
            ("F32", "weights"): [_view(sign * STD * few) for sign in (1, -1)],
            ("F8_E4M3", "weights"): [
                _view((sign * e4m3).to(torch.float8_e4m3fn)) for sign in (1, -1)
            ],
            ("F32", "scales"): [(factors * np.float32(STD / _FP8_STD)).data.cast("B")],
            ("U8", "weights"): [memoryview(self._random.bytes(NUMBERS))],
            # E2M1 numbers of random bytes have a standard deviation of 2.9; 2^-8 and 2^-7.
            ("U8", "scales"): [self._random.integers(119, 121, NUMBERS, np.uint8).data],
        }

    def write(self, file: BinaryIO, tensor: PlannedTensor) -> None:
        plain = (tensor.dtype, tensor.fill) == ("BF16", "weights")
        blocks = (
            self._normal_blocks(tensor.std) if plain else self._blocks[tensor.dtype, tensor.fill]
        )
        block = blocks[int(self._random.integers(len(blocks)))]
        size = DTYPE_BYTES[tensor.dtype]
        start = size * int(self._random.integers(len(block) // size))
        left = tensor.nbytes
        while left:
            left -= file.write(block[start : start + left])
            start = 0

    def _normal_blocks(self, std: float) -> list[memoryview]:
        if std not in self._plain:
            self._plain[std] = [_view((sign * std * self._normal).bfloat16()) for sign in (1, -1)]
        return self._plain[std]


def _view(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data
