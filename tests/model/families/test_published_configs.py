"""config.json files as published are read, to the numbers of parameters of their model cards.

Those that bench/lib/shapes.py has, and here others with keys or encodings of their own.
"""

from typing import Any

import pytest

from pocketmoe.bench.lib.shapes import SHAPES
from pocketmoe.model.checkpoint.encodings import find_encoding
from pocketmoe.model.families import find_family
from pocketmoe.model.parameters import count_parameters
from pocketmoe.model.spec import ModelSpec

Config = dict[str, Any]

_ROPE = SHAPES["deepseek-v3"]["rope_scaling"]

OTHERS: dict[str, Config] = {
    # deepseek-ai/DeepSeek-R1
    "deepseek-r1": {
        **SHAPES["deepseek-v3"],
        "auto_map": {
            "AutoConfig": "configuration_deepseek.DeepseekV3Config",
            "AutoModel": "modeling_deepseek.DeepseekV3Model",
            "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
        },
        "transformers_version": "4.46.3",
    },
    # deepseek-ai/DeepSeek-V2
    "deepseek-v2": {
        **SHAPES["deepseek-v2-lite"], "hidden_size": 5120, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "num_hidden_layers": 60, "num_attention_heads": 128,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "n_routed_experts": 160, "n_group": 8,
        "topk_group": 3, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
        "rope_scaling": {**_ROPE, "mscale": 0.707, "mscale_all_dim": 0.707}, "ep_size": 1,
        "transformers_version": "4.39.3",
    },
    # moonshotai/Moonlight-16B-A3B
    "moonlight-16b-a3b": {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False,
        "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 163584,
        "eos_token_id": 163585, "ep_size": 1, "first_k_dense_replace": 1, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 11264,
        "kv_lora_rank": 512, "max_position_embeddings": 8192, "model_type": "deepseek_v3",
        "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "norm_topk_prob": True, "num_attention_heads": 16,
        "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
        "num_nextn_predict_layers": 0, "pretraining_tp": 1, "q_lora_rank": None,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0, "routed_scaling_factor": 2.446, "scoring_func": "sigmoid",
        "seq_aux": True, "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16", "transformers_version": "4.46.3", "use_cache": True,
        "v_head_dim": 128, "vocab_size": 163840,
    },
    # zai-org/GLM-4.5
    "glm-4.5": {
        **SHAPES["glm-4.5-air"], "hidden_size": 5120, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "num_hidden_layers": 92, "first_k_dense_replace": 3,
        "n_routed_experts": 160, "routed_scaling_factor": 2.5, "use_qk_norm": True,
    },
    # Qwen/Qwen3-Coder-30B-A3B-Instruct
    "qwen3-coder-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_dropout": 0.0,
        "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5472,
        "max_position_embeddings": 262144, "max_window_layers": 28, "mlp_only_layers": [],
        "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False,
        "qkv_bias": False, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000000,
        "router_aux_loss_coef": 0.0, "shared_expert_intermediate_size": 0,
        "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.52.3", "use_cache": True, "use_qk_norm": True,
        "use_sliding_window": False, "vocab_size": 151936,
    },
    # mistralai/Mistral-7B-v0.3
    "mistral-7b-v0.3": {
        **SHAPES["mistral-7b"], "sliding_window": None, "rope_theta": 1000000.0,
        "vocab_size": 32768, "attention_dropout": 0.0,
    },
    # Llama 2 as it was first converted, without keys that came later.
    "llama-2-7b first": {
        **{key: value for key, value in SHAPES["llama-2-7b"].items() if key != "rope_scaling"},
        "_name_or_path": "meta-llama/Llama-2-7b-hf", "max_position_embeddings": 2048,
        "max_sequence_length": 2048, "pad_token_id": 0, "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0",
    },
}  # fmt: skip

CONFIGS = {**SHAPES, **OTHERS}

# Billions of parameters by model cards, all and of one token; bytes that a token's keys and values
# take in float32, as the compressed latent and expanded to all heads.
PUBLISHED: dict[str, tuple[float, float, int, int]] = {
    "olmoe-1b-7b": (6.92, 1.3, 262_144, 262_144),
    "mixtral-8x7b": (46.7, 12.9, 262_144, 262_144),
    "qwen3-30b-a3b": (30.5, 3.3, 196_608, 196_608),
    "qwen3-coder-30b-a3b": (30.5, 3.3, 196_608, 196_608),
    "qwen1.5-moe-a2.7b": (14.3, 2.7, 393_216, 393_216),
    "deepseek-v2-lite": (15.7, 2.4, 62_208, 552_960),
    "deepseek-v2": (236.0, 21.0, 138_240, 9_830_400),
    "deepseek-v3": (671.0, 37.0, 140_544, 9_994_240),
    "deepseek-r1": (671.0, 37.0, 140_544, 9_994_240),
    "moonlight-16b-a3b": (16.0, 2.6, 62_208, 552_960),
    "phi-3.5-moe": (41.9, 6.6, 262_144, 262_144),
    "granite-3.1-3b-a800m": (3.3, 0.8, 131_072, 131_072),
    "gpt-oss-20b": (20.91, 3.61, 98_304, 98_304),
    "gpt-oss-120b": (116.83, 5.13, 147_456, 147_456),
    "ernie-4.5-21b-a3b": (21.0, 3.0, 114_688, 114_688),
    "glm-4.5-air": (106.0, 12.0, 376_832, 376_832),
    "glm-4.5": (355.0, 32.0, 753_664, 753_664),
    "llama-2-7b": (6.74, 6.74, 1_048_576, 1_048_576),
    "llama-2-7b first": (6.74, 6.74, 1_048_576, 1_048_576),
    "llama-3.1-8b": (8.03, 8.03, 262_144, 262_144),
    "mistral-7b": (7.24, 7.24, 262_144, 262_144),
    "mistral-7b-v0.3": (7.25, 7.25, 262_144, 262_144),
}


def read(config: Config) -> ModelSpec:
    return find_family(config).read_config(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_read(name: str) -> None:
    spec = read(CONFIGS[name])
    total, active, cached, expanded = PUBLISHED[name]
    count = count_parameters(spec)
    assert count.total / 1e9 == pytest.approx(total, rel=0.05)
    assert count.active / 1e9 == pytest.approx(active, rel=0.125)
    assert spec.num_hidden_layers * spec.cache_elements * 4 == cached
    assert spec.num_hidden_layers * spec.expanded_elements * 4 == expanded


@pytest.mark.parametrize(
    ("name", "window"), [("mistral-7b", 4096), ("mistral-7b-v0.3", None), ("llama-2-7b", None)]
)
def test_the_window_of_every_layer(name: str, window: int | None) -> None:
    assert {layer.window for layer in read(CONFIGS[name]).layers} == {window}


def test_moonlight_has_no_groups_and_no_query_latent() -> None:
    spec = read(OTHERS["moonlight-16b-a3b"])
    router = spec.layers[1].router
    assert router is not None
    assert (router.num_groups, router.scale) == (1, 2.446)
    assert spec.mla is not None
    assert spec.mla.q_lora_rank is None


FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm"],
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
GPTQ = {
    "bits": 4,
    "checkpoint_format": "gptq",
    "desc_act": False,
    "group_size": 128,
    "lm_head": False,
    "meta": {
        "damp_auto_increment": 0.0025,
        "damp_percent": 0.01,
        "mse": 0.0,
        "quantizer": ["gptqmodel:2.3.0-dev"],
        "static_groups": False,
        "true_sequential": True,
        "uri": "https://github.com/modelcloud/gptqmodel",
    },
    "pack_dtype": "int32",
    "quant_method": "gptq",
    "sym": True,
}
AWQ = {
    "bits": 4,
    "group_size": 128,
    "modules_to_not_convert": ["gate"],
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}


@pytest.mark.parametrize(
    ("name", "section"),
    [
        pytest.param("qwen3-30b-a3b", FP8, id="Qwen3-30B-A3B-FP8"),
        pytest.param("qwen3-coder-30b-a3b", FP8, id="Qwen3-Coder-30B-A3B-Instruct-FP8"),
        pytest.param("qwen3-30b-a3b", GPTQ, id="Qwen3-30B-A3B-GPTQ-Int4"),
        pytest.param("mixtral-8x7b", AWQ, id="Mixtral-8x7B-Instruct-v0.1-AWQ"),
    ],
)
def test_an_encoding_changes_nothing_of_the_model(name: str, section: Config) -> None:
    config = {**CONFIGS[name], "quantization_config": section}
    assert read(config) == read(CONFIGS[name])
    encoding = find_encoding(config)
    assert encoding is not None
    assert encoding.name == section["quant_method"]


V3, GLM = SHAPES["deepseek-v3"], OTHERS["glm-4.5"]


@pytest.mark.parametrize(
    ("config", "prefixes"),
    [
        (V3, ("model.layers.61.",)),
        ({**V3, "num_nextn_predict_layers": 0}, ()),
        ({**V3, "num_mtp_layers": 1}, ("model.layers.61.",)),
        (GLM, ("model.layers.92.",)),
        ({**GLM, "num_nextn_predict_layers": 2}, ("model.layers.92.", "model.layers.93.")),
        (SHAPES["deepseek-v2-lite"], ()),
        (SHAPES["gpt-oss-20b"], ()),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_prediction_layers(config: Config, prefixes: tuple[str, ...]) -> None:
    assert find_family(config).predictors(config) == prefixes
