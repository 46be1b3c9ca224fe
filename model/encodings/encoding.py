"""What an encoding is, and the arithmetic that encodings share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..families.config import ConfigReader
from ..headers import StoredTensor
from ..parameters import Shape

if TYPE_CHECKING:
    import torch

Headers = Mapping[str, StoredTensor]

SECTION = "quantization_config"
SCALE_DTYPES = ("F32", "F16", "BF16")
# How GPTQ and AWQ came to their values, and settings of the kernels that others run them with.
PACKER_KEYS = """
    act_group_aware backend batch_size block_name_to_quantize cache_block_outputs
    damp_auto_increment damp_percent dataset disable_exllama do_fuse exllama_config
    fuse_max_seq_len hyb_act lm_head max_input_length meta model_file_base_name model_name_or_path
    model_seqlen module_name_preceding_first_block modules_in_block_to_quantize modules_to_fuse
    modules_to_not_convert mse offload_to_disk pad_token_id quantizer static_groups sym tokenizer
    true_sequential use_cuda_fp16 use_exllama
"""


@dataclass(frozen=True)
class Part:
    """A tensor that an encoded matrix is made of, as it has to be."""

    tensor: str
    shape: Shape
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """An encoded matrix. decode makes it of the tensors of its parts: float32 `[out, in]`."""

    parts: Mapping[str, Part]
    decode: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


class Encoding(Protocol):
    """A way to store matrices in fewer bits.

    name: as config.json has it, quant_method. extras: last words of the names of tensors that come
    along and that the weights do not need.
    """

    @property
    def name(self) -> str: ...

    @property
    def extras(self) -> frozenset[str]: ...

    def find(self, weight: str, shape: Shape, headers: Headers) -> Matrix | None:
        """The matrix `[out, in]` that would be named `weight` if it were plain; None if it is.

        Where experts are stacked, each of its tensors has a leading axis that Part.shape leaves
        out.
        """


def section_reader(config: Mapping[str, Any], irrelevant: str) -> ConfigReader:
    """A reader of quantization_config. irrelevant: keys that change no weight."""
    section = config[SECTION]
    keys = frozenset(irrelevant.split()) | {"quant_method"}
    return ConfigReader(section, keys, section=SECTION, family=str(section["quant_method"]))


def read_group_size(reader: ConfigReader) -> int | None:
    """Inputs that share a scale; None for all of them, which config.json has as -1."""
    size = reader.integer("group_size", 128)
    if size < 1 and size != -1:
        raise reader.refusal("group_size", "at least 1, or -1 for one group")
    return None if size == -1 else size


def module_name(weight: str) -> str:
    """`a.b` of `a.b.weight`: what the tensors of an encoded matrix have in common."""
    return weight.removesuffix(".weight")


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned integers of 4 or 8 bits out of int32 words, lowest bits first.

    words: `[..., n]`. Returns uint8 `[..., n · 32 / bits]`.
    """
    import torch

    values = words.contiguous().view(torch.uint8)
    if bits == 8:
        return values
    return torch.stack((values & 15, values >> 4), dim=-1).flatten(-2)


def rescale(
    values: torch.Tensor,
    scales: torch.Tensor,
    block: Shape,
    zeros: torch.Tensor | int = 0,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """(values − zeros) · scales, both shared by blocks; those at the edges may be cut off.

    values: `[out, in]`. scales, and zeros where they are a tensor:
    `[ceil(out / block[0]), ceil(in / block[1])]`.
    groups: which of the scales in its row a column has, `[in]`; None where they are in order.
    Returns float32 `[out, in]`.
    """
    import torch

    rows, columns = values.shape
    result = values.to(torch.float32, copy=True)
    target = result
    if groups is None:
        groups = torch.arange(columns) // block[1]
        if columns % block[1] == 0:  # broadcast, rather than make a matrix of the scales
            target, groups = result.unflatten(1, (-1, block[1])), None

    def spread(shared: torch.Tensor) -> torch.Tensor:
        shared = shared.to(torch.float32).repeat_interleave(block[0], dim=0)[:rows]
        return shared[..., None] if groups is None else shared[:, groups.long()]

    target -= zeros if isinstance(zeros, int) else spread(zeros)
    target *= spread(scales)
    return result
