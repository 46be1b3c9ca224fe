"""The interface of an encoding, and the arithmetic that encodings share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ....errors import CheckpointError
from ...families.config import ConfigReader
from ...parameters import Shape
from ..headers import StoredTensor

if TYPE_CHECKING:
    import torch

Headers = Mapping[str, StoredTensor]

SECTION = "quantization_config"
SCALE_DTYPES = ("F32", "F16", "BF16")
# What AutoGPTQ, AutoAWQ, transformers, GPTQModel and AutoRound note about how they came to their
# values, activations, and settings of kernels: nothing that reading the weights depends on. `v2` is
# such an algorithm too (GPTQModel calls it GPTAQ by now); the format "gptq_v2" is another matter.
PACKER_KEYS = """
    act_bits act_data_type act_dynamic act_group_aware act_group_size act_sym amp
    auto_forward_data_parallel autoround_version backend batch_size block_name_to_quantize
    buffered_fwd cache_block_outputs compute_device_filter damp_auto_increment damp_percent dataset
    dense_vram_strategy dense_vram_strategy_devices device disable_exllama do_fuse enable_alg_ext
    enable_minmax_tuning enable_norm_bias_tuning enable_quanted_input enable_torch_compile
    exllama_config fail_safe failsafe fallback fast_loop foem fuse_max_seq_len gc_mode gptaq
    gptaq_alpha gptaq_memory_device gradient_accumulate_steps hessian hessian_chunk_bytes
    hessian_chunk_size hessian_staging_dtype hessian_use_bfloat16_staging hyb_act iters lm_head
    low_cpu_mem_usage low_gpu_mem_usage lr lr_scheduler max_input_length meta minmax_lr
    mock_hessian_inverse mock_quantization model_file_base_name model_name_or_path model_seqlen
    module_name_preceding_first_block modules_in_block_to_quantize modules_to_fuse
    modules_to_not_convert moe moe_vram_strategy moe_vram_strategy_devices momentum mse nblocks
    not_use_best_mse nsamples offload_to_disk offload_to_disk_path pack_impl pad_token_id
    parallel_packing quant_block_list quantizer sampler scale_dtype seed seqlen
    static_attention_dtype static_groups static_kv_dtype supported_types sym to_quant_block_names
    tokenizer true_sequential use_cuda_fp16 use_exllama v2 v2_alpha v2_memory_device vram_strategy
    wait_for_submodule_finalizers
"""

_CHUNK = 1 << 18  # elements that are decoded at a time


@dataclass(frozen=True)
class EncodedPart:
    """A tensor that an encoded matrix is made of, as it has to be."""

    tensor: str
    shape: Shape
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class EncodedMatrix:
    """An encoded matrix. decode makes it of the tensors of its parts: float32 `[out, in]`.

    by_row: the first axis of every part is that of the outputs, so that decode makes any rows of
    the matrix of the same rows of its parts.
    """

    parts: Mapping[str, EncodedPart]
    decode: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
    by_row: bool = False


class Encoding(Protocol):
    """A way to store matrices in fewer bits.

    name: as config.json has it, quant_method. extras: last words of the names of tensors that come
    along and that the weights do not need.
    """

    @property
    def name(self) -> str: ...

    @property
    def extras(self) -> frozenset[str]: ...

    def find(self, weight: str, shape: Shape, headers: Headers) -> EncodedMatrix | None:
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


def check_dynamic(reader: ConfigReader) -> None:
    """Reads `dynamic`, GPTQModel's settings by patterns of module names.

    Raises:
        ConfigError: it does more than leave modules unquantized, which patterns with "-:" do.
    """
    patterns = reader.take("dynamic", {})
    if not isinstance(patterns, dict) or not all(name.startswith("-:") for name in patterns):
        raise reader.refusal("dynamic", "an object whose keys all start with '-:'")


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


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Rows of a matrix, a few at a time; each slice starts at a multiple of 8."""
    step = max(8, _CHUNK // columns // 8 * 8)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def rescale(
    values: Callable[[slice], torch.Tensor],
    shape: Shape,
    scales: torch.Tensor,
    block: Shape,
    zeros: torch.Tensor | int = 0,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """(values − zeros) · scales, both shared by blocks; those at the edges may be cut off.

    values: what is stored of some rows of the matrix, `[rows, in]`. It is asked for a few rows at a
    time, so that beside the result, float32 `[out, in]`, nothing has that size.
    scales, and zeros where they are a tensor: `[ceil(out / block[0]), ceil(in / block[1])]`.
    groups: which of the scales in its row a column has, `[in]`; None where they are in order.
    """
    import torch

    rows, columns = shape
    in_order = torch.arange(columns) // block[1]
    groups = in_order if groups is None else groups.long()
    if not 0 <= int(groups.min()) <= int(groups.max()) < scales.shape[1]:
        raise CheckpointError(
            f"a g_idx names groups from {int(groups.min())} to {int(groups.max())}, and there are "
            f"{scales.shape[1]}; download the checkpoint again"
        )
    is_even = columns % block[1] == 0 and torch.equal(groups, in_order)
    scales = scales.to(torch.float32)
    if not isinstance(zeros, int):
        zeros = zeros.to(torch.float32)
    result = torch.empty(rows, columns)
    for chunk in chunks(rows, columns):
        target = result[chunk]
        target.copy_(values(chunk))
        if is_even:
            target = target.unflatten(1, (-1, block[1]))
        owners = torch.arange(chunk.start, chunk.stop) // block[0]

        def spread(shared: torch.Tensor, owners: torch.Tensor = owners) -> torch.Tensor:
            shared = shared[owners]
            return shared[..., None] if is_even else shared[:, groups]

        target -= zeros if isinstance(zeros, int) else spread(zeros)
        target *= spread(scales)
    return result
