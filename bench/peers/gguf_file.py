"""Writes a checkpoint of an OLMoE as a GGUF file for llama.cpp, every matrix in Q4_0 or F32.

    python bench/peers/gguf_file.py build/olmoe-1b-7b build/compare/olmoe-1b-7b-q4_0.gguf
    python bench/peers/gguf_file.py --f32 build/peer/checkpoint build/peer/f32.gguf

Needs numpy and gguf alone. Norms and routers stay in float32, as llama.cpp's converter has them.
With --f32 the vocabulary is in the file, as llama.cpp's own tools tokenize; else there is none, and
who runs the file gives it token ids. Tensors go through memory one at a time, and large ones in
blocks of rows.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_ROWS = 4096  # of a matrix, in memory as float32 at one time
NORMAL, CONTROL = 1, 3  # kinds of tokens
Q4_0_VALUES, Q4_0_BYTES = 32, 18  # of a block: one fp16 scale and 16 bytes of pairs

OUTSIDE_LAYERS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
OF_A_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
}
OF_EXPERTS = {
    "ffn_gate_exps.weight": "gate_proj.weight",
    "ffn_up_exps.weight": "up_proj.weight",
    "ffn_down_exps.weight": "down_proj.weight",
}


class ConversionError(ValueError):
    """The checkpoint is not one that can be written; one line that says why."""


@dataclass(frozen=True)
class GgufTensor:
    """sources: names in the checkpoint; more than one are stacked as `[experts, out, in]`."""

    name: str
    sources: tuple[str, ...]

    @property
    def quantized(self) -> bool:
        return not ("norm" in self.name or "gate_inp" in self.name)


@dataclass(frozen=True)
class SourceTensor:
    """Where a checkpoint holds a tensor; offset: in bytes, from the file's start."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def gguf_tensors(layers: int, experts: int) -> list[GgufTensor]:
    """All tensors of the file, in its order."""
    tensors = [GgufTensor(name, (source,)) for name, source in OUTSIDE_LAYERS.items()]
    for layer in range(layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        for name, source in OF_A_LAYER.items():
            tensors.append(GgufTensor(f"{ours}.{name}", (f"{theirs}.{source}",)))
        for name, source in OF_EXPERTS.items():
            sources = (f"{theirs}.mlp.experts.{expert}.{source}" for expert in range(experts))
            tensors.append(GgufTensor(f"{ours}.{name}", tuple(sources)))
    return tensors


def read_headers(checkpoint: Path) -> dict[str, SourceTensor]:
    """Every tensor of the checkpoint's safetensors files."""
    stored: dict[str, SourceTensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start = 8 + length + entry["data_offsets"][0]
                stored[name] = SourceTensor(path, entry["dtype"], tuple(entry["shape"]), start)
    return stored


def read_rows(stored: SourceTensor) -> Iterator[np.ndarray]:
    """Blocks of at most BLOCK_ROWS rows, float32 `[rows, columns]`; a vector is one block.

    Raises:
        CheckpointError: the file is short, or its dtype is not BF16, F16 or F32.
    """
    dtypes = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
    if stored.dtype not in dtypes:
        raise ConversionError(f"{stored.file}: dtype {stored.dtype} is none of {', '.join(dtypes)}")
    columns = stored.shape[-1]
    rows = int(np.prod(stored.shape[:-1]))
    with stored.file.open("rb") as file:
        file.seek(stored.offset)
        for start in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - start)
            values = np.fromfile(file, dtypes[stored.dtype], count * columns)
            if len(values) < count * columns:
                raise ConversionError(f"{stored.file} is shorter than its header says")
            if stored.dtype == "BF16":
                values = (values.astype(np.uint32) << 16).view(np.float32)
            block = values.astype(np.float32, copy=False)
            yield block.reshape(count, columns) if len(stored.shape) > 1 else block


def read_config(checkpoint: Path) -> dict[str, Any]:
    """Raises CheckpointError where it is no OLMoE, or one that the file cannot say."""
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    needed = {
        "model_type": "olmoe", "norm_topk_prob": False, "clip_qkv": None, "rope_scaling": None,
        "tie_word_embeddings": False, "attention_bias": False,
    }  # fmt: skip
    for key, value in needed.items():
        if config.get(key, value) != value:
            raise ConversionError(
                f"{checkpoint}: {key} is {config[key]!r}, and only {value!r} is written here; "
                "make the checkpoint with bench/make_checkpoint.py --shape olmoe-1b-7b"
            )
    return config


def add_metadata(writer: Any, config: dict[str, Any], file_type: int) -> None:
    """What llama.cpp reads of an olmoe model, but for the vocabulary's tokens."""
    heads = config["num_attention_heads"]
    writer.add_name("olmoe")
    writer.add_file_type(file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])


def add_vocabulary(writer: Any, tokenizer: Path, size: int) -> None:
    """The tokens and merges of a byte-level BPE that splits words as GPT-2's does.

    Raises CheckpointError where the tokenizer is another one.
    """
    data = json.loads(tokenizer.read_text(encoding="utf-8"))
    model, split = data["model"], data["pre_tokenizer"] or {}
    alike = model["type"] == "BPE" and split.get("type") == "ByteLevel" and not data["normalizer"]
    if not alike or split["add_prefix_space"] or not split.get("use_regex", True):
        raise ConversionError(f"{tokenizer} is no byte-level BPE as GPT-2's, which is written here")
    special = {item["content"]: item["id"] for item in data["added_tokens"]}
    ids = {number: token for token, number in (model["vocab"] | special).items()}
    tokens = [ids.get(number, f"[unused{number}]") for number in range(size)]
    merges = [item if isinstance(item, str) else " ".join(item) for item in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if special:
        writer.add_eos_token_id(min(special.values()))


def write_gguf(checkpoint: Path, out: Path, *, f32: bool = False) -> int:
    """Writes the file by way of a temporary one beside it; returns its bytes.

    f32: nothing is quantized, and the vocabulary is in it.

    Raises:
        CheckpointError: the checkpoint lacks a tensor, or is not what is written here.
        ImportError: gguf is not installed.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    config, stored = read_config(checkpoint), read_headers(checkpoint)
    tensors = gguf_tensors(config["num_hidden_layers"], config["num_experts"])
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    writer = GGUFWriter(temporary, "olmoe")
    add_metadata(writer, config, LlamaFileType.ALL_F32 if f32 else LlamaFileType.MOSTLY_Q4_0)
    if f32:
        add_vocabulary(writer, checkpoint / "tokenizer.json", config["vocab_size"])
    else:
        writer.add_tokenizer_model("none")
    for tensor in tensors:
        missing = [name for name in tensor.sources if name not in stored]
        if missing:
            raise ConversionError(f"{checkpoint} has no tensor {missing[0]}")
        shape = stored[tensor.sources[0]].shape
        if len(tensor.sources) > 1:
            shape = (len(tensor.sources), *shape)
        values = int(np.prod(shape))
        quantized = tensor.quantized and not f32
        if quantized and shape[-1] % Q4_0_VALUES:
            raise ConversionError(f"{checkpoint}: {Q4_0_VALUES} does not divide {tensor.name}")
        kind = GGMLQuantizationType.Q4_0 if quantized else GGMLQuantizationType.F32
        nbytes = values // Q4_0_VALUES * Q4_0_BYTES if quantized else 4 * values
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        blocks = [
            quantize(block, GGMLQuantizationType.Q4_0) if tensor.quantized and not f32 else block
            for name in tensor.sources
            for block in read_rows(stored[name])
        ]
        writer.write_tensor_data(np.concatenate(blocks))
    writer.close()
    os.replace(temporary, out)
    return out.stat().st_size


def main() -> None:
    paths = [argument for argument in sys.argv[1:] if argument != "--f32"]
    if len(paths) != 2:
        sys.exit("usage: python gguf_file.py [--f32] CHECKPOINT OUT.gguf")
    try:
        size = write_gguf(Path(paths[0]), Path(paths[1]), f32="--f32" in sys.argv)
    except (ConversionError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{paths[1]}: {size} bytes")


if __name__ == "__main__":
    main()
