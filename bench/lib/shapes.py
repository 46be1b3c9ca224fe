"""The config.json of published models, and the same with another number of layers.

As published, but for the keys of transformers' auto classes. Phi-3.5's lists of rope factors are
replaced by as many numbers of the same range.
"""

from __future__ import annotations

from typing import Any

_SILU_UNTIED: dict[str, Any] = {"hidden_act": "silu", "tie_word_embeddings": False}
_BF16: dict[str, Any] = {"torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02}

_DEEPSEEK: dict[str, Any] = {
    **_SILU_UNTIED, **_BF16, "attention_bias": False, "attention_dropout": 0.0,
    "moe_layer_freq": 1, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "aux_loss_alpha": 0.001, "seq_aux": True, "pretraining_tp": 1,
}  # fmt: skip
_DEEPSEEK_ROPE = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
    "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip

_GPT_OSS: dict[str, Any] = {
    **_SILU_UNTIED, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss",
    "hidden_size": 2880, "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64,
    "num_key_value_heads": 8, "attention_bias": True, "attention_dropout": 0.0,
    "sliding_window": 128, "num_experts_per_tok": 4, "experts_per_token": 4, "swiglu_limit": 7.0,
    "vocab_size": 201088, "max_position_embeddings": 131072, "initial_context_length": 4096,
    "rope_theta": 150000, "rms_norm_eps": 1e-5, "initializer_range": 0.02, "use_cache": True,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    },
    "eos_token_id": 200002, "pad_token_id": 199999, "output_router_logits": False,
    "router_aux_loss_coef": 0.9,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
            "lm_head",
        ],
    },
}  # fmt: skip
_GPT_OSS_LAYERS = ["sliding_attention", "full_attention"]

SHAPES: dict[str, dict[str, Any]] = {
    # allenai/OLMoE-1B-7B-0924
    "olmoe-1b-7b": {
        **_SILU_UNTIED, **_BF16, "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe",
        "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "norm_topk_prob": False, "clip_qkv": None,
        "vocab_size": 50304, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False,
        "attention_dropout": 0.0, "output_router_logits": False, "router_aux_loss_coef": 0.01,
        "eos_token_id": 50279, "pad_token_id": 1,
    },
    # mistralai/Mixtral-8x7B-v0.1
    "mixtral-8x7b": {
        **_SILU_UNTIED, **_BF16, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "sliding_window": None, "attention_dropout": 0.0,
        "vocab_size": 32000, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0, "output_router_logits": False, "router_aux_loss_coef": 0.02,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    # Qwen/Qwen3-30B-A3B
    "qwen3-30b-a3b": {
        **_SILU_UNTIED, **_BF16, "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 48,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_scaling": None, "attention_bias": False,
        "attention_dropout": 0.0, "output_router_logits": False, "router_aux_loss_coef": 0.001,
        "bos_token_id": 151643, "eos_token_id": 151645,
    },
    # Qwen/Qwen1.5-MoE-A2.7B
    "qwen1.5-moe-a2.7b": {
        **_SILU_UNTIED, **_BF16, "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False,
        "decoder_sparse_step": 1, "use_sliding_window": False, "sliding_window": 32768,
        "max_window_layers": 21, "vocab_size": 151936, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "attention_dropout": 0.0,
        "output_router_logits": False, "router_aux_loss_coef": 0.001,
        "bos_token_id": 151643, "eos_token_id": 151643,
    },
    # deepseek-ai/DeepSeek-V2-Lite
    "deepseek-v2-lite": {
        **_DEEPSEEK, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 27, "first_k_dense_replace": 1, "num_attention_heads": 16,
        "num_key_value_heads": 16, "q_lora_rank": None, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1,
        "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False,
        "routed_scaling_factor": 1.0, "vocab_size": 102400,
        "rope_scaling": {**_DEEPSEEK_ROPE, "mscale": 0.707, "mscale_all_dim": 0.707},
        "bos_token_id": 100000, "eos_token_id": 100001,
    },
    # deepseek-ai/DeepSeek-V3
    "deepseek-v3": {
        **_DEEPSEEK, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "first_k_dense_replace": 3, "num_nextn_predict_layers": 1,
        "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
        "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "ep_size": 1, "vocab_size": 129280,
        "rope_scaling": {**_DEEPSEEK_ROPE, "mscale": 1.0, "mscale_all_dim": 1.0},
        "bos_token_id": 0, "eos_token_id": 1,
        "quantization_config": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        },
    },
    # microsoft/Phi-3.5-MoE-instruct
    "phi-3.5-moe": {
        **_SILU_UNTIED, **_BF16, "architectures": ["PhiMoEForCausalLM"], "model_type": "phimoe",
        "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "attention_bias": True,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "lm_head_bias": True,
        "num_local_experts": 16, "num_experts_per_tok": 2, "input_jitter_noise": 0.01,
        "router_jitter_noise": 0.01, "router_aux_loss_coef": 0.0, "output_router_logits": False,
        "sliding_window": 131072, "vocab_size": 32064, "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope", "original_max_position_embeddings": 4096,
            "short_factor": [1.0 + i / 32 for i in range(64)],
            "long_factor": [1.0 + i for i in range(64)],
            "short_mscale": 1.243163121016122, "long_mscale": 1.243163121016122,
        },
        "bos_token_id": 1, "eos_token_id": 32000,
    },
    # ibm-granite/granite-3.1-3b-a800m-base
    "granite-3.1-3b-a800m": {
        **_BF16, "hidden_act": "silu", "tie_word_embeddings": True,
        "architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe",
        "hidden_size": 1536, "intermediate_size": 512, "num_hidden_layers": 32,
        "num_attention_heads": 24, "num_key_value_heads": 8, "attention_bias": False,
        "attention_dropout": 0.1, "num_local_experts": 40, "num_experts_per_tok": 8,
        "attention_multiplier": 0.015625, "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22, "logits_scaling": 6.0, "vocab_size": 49155,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 10000000.0,
        "rope_scaling": None, "output_router_logits": False, "router_aux_loss_coef": 0.0,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    },
    # openai/gpt-oss-20b
    "gpt-oss-20b": {
        **_GPT_OSS, "num_hidden_layers": 24, "num_local_experts": 32,
        "layer_types": _GPT_OSS_LAYERS * 12,
    },
    # openai/gpt-oss-120b
    "gpt-oss-120b": {
        **_GPT_OSS, "num_hidden_layers": 36, "num_local_experts": 128,
        "layer_types": _GPT_OSS_LAYERS * 18,
    },
    # baidu/ERNIE-4.5-21B-A3B-PT
    "ernie-4.5-21b-a3b": {
        **_BF16, "hidden_act": "silu", "tie_word_embeddings": True,
        "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe",
        "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28,
        "num_attention_heads": 20, "num_key_value_heads": 4, "use_bias": False,
        "moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_intermediate_size": 1536,
        "moe_k": 6, "moe_layer_start_index": 1, "moe_layer_end_index": 27,
        "moe_layer_interval": 1, "moe_capacity": [64, 64, 64], "moe_gate": "topk",
        "moe_use_aux_free": True, "vocab_size": 103424, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    },
    # zai-org/GLM-4.5-Air
    "glm-4.5-air": {
        **_SILU_UNTIED, **_BF16, "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe", "hidden_size": 4096, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 46, "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1, "num_attention_heads": 96, "num_key_value_heads": 8,
        "head_dim": 128, "attention_bias": True, "attention_dropout": 0.0, "use_qk_norm": False,
        "partial_rotary_factor": 0.5, "n_routed_experts": 128, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 1.0, "vocab_size": 151552, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000, "rope_scaling": None,
        "eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329,
    },
    # meta-llama/Llama-2-7b-hf
    "llama-2-7b": {
        **_SILU_UNTIED, **_BF16, "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_scaling": None,
        "pretraining_tp": 1, "bos_token_id": 1, "eos_token_id": 2,
    },
    # meta-llama/Llama-3.1-8B
    "llama-3.1-8b": {
        **_SILU_UNTIED, **_BF16, "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "attention_bias": False,
        "attention_dropout": 0.0, "mlp_bias": False, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
        "pretraining_tp": 1, "bos_token_id": 128000, "eos_token_id": 128001,
    },
    # mistralai/Mistral-7B-v0.1
    "mistral-7b": {
        **_SILU_UNTIED, **_BF16, "architectures": ["MistralForCausalLM"], "model_type": "mistral",
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096,
        "vocab_size": 32000, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip

# Of the first layers, how many are dense.
_DENSE_KEYS = ("first_k_dense_replace", "moe_layer_start_index")


def with_layers(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The config with `layers` layers, the last of them MoE; prediction layers are left out."""
    changed = {**config, "num_hidden_layers": layers}
    for key in _DENSE_KEYS:
        if key in config:
            changed[key] = min(config[key], layers - 1)
    if "moe_layer_end_index" in config:
        changed["moe_layer_end_index"] = layers - 1
    if "layer_types" in config:
        types = config["layer_types"]
        changed["layer_types"] = [types[index % len(types)] for index in range(layers)]
    if "num_nextn_predict_layers" in config:
        changed["num_nextn_predict_layers"] = 0
    return changed
