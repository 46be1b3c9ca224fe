"""quantization_config of each scheme, and packing as it is done, written from the formats."""

from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]

FP8: Config = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
    "weight_block_size": [128, 128],
}  # fmt: skip
MXFP4: Config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
GPTQ: Config = {
    "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False,
    "checkpoint_format": "gptq_v2", "damp_percent": 0.01,
}  # fmt: skip
AWQ: Config = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
}  # fmt: skip
INT4_WEIGHTS: Config = {
    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32,
}  # fmt: skip


def compressed(weights: Config, format_: str = "pack-quantized", **keys: Any) -> Config:
    group = {"targets": ["Linear"], "weights": {**INT4_WEIGHTS, **weights}}
    return {
        "quant_method": "compressed-tensors", "format": format_, "ignore": ["lm_head"],
        "quantization_status": "compressed", "config_groups": {"group_0": group}, **keys,
    }  # fmt: skip


def pack(values: np.ndarray, bits: int = 4) -> torch.Tensor:
    """Unsigned values `[..., n]` as int32 `[..., n · bits / 32]`, lowest bits first."""
    grouped = values.astype(np.uint32).reshape(*values.shape[:-1], -1, 32 // bits)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = np.bitwise_or.reduce(grouped << shifts, axis=-1)
    return torch.from_numpy(words.view(np.int32).copy())
