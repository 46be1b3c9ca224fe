"""A value that a family cannot express is refused by name and value, in one line."""

import copy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketmoe.errors import ConfigError
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.parameters import parameter_shapes
from pocketmoe.tests.support.examples import examples

Config = dict[str, Any]


def tiny(family: str, **changes: Any) -> Config:
    return copy.deepcopy({**FAMILIES[family].tiny, **changes})


def refusal(config: Config) -> str:
    """The one line that the family refuses a config with."""
    with pytest.raises(ConfigError) as caught:
        FAMILIES[config["model_type"]].read_config(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without_rope(family: str) -> Config:
    rope = ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor")
    return {key: value for key, value in tiny(family).items() if key not in rope}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"type": "su"}}, "rope_scaling.type = 'su'"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "rope_type = 'proportional'"),
        ({"rope_scaling": {"rope_type": 1}}, "rope_type = 1"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type = ['yarn']"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "rope_scaling.factor = 2.0"),
        ({"rope_scaling": "linear"}, "rope_scaling = 'linear'"),
        ({"rope_parameters": [1]}, "rope_parameters = [1]"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 2.0}},
            "rope_scaling = {'type': 'linear', 'factor': 2.0}",
        ),
        ({"rope_theta": "big"}, "rope_theta = 'big'"),
        ({"rope_theta": 0}, "rope_theta = 0"),
        ({"rope_theta": float("inf")}, "rope_theta = inf"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5"),
        ({"partial_rotary_factor": "half"}, "partial_rotary_factor = 'half'"),
    ],
    ids=str,
)
def test_rotary_embeddings_that_no_family_has(family: str, changes: Config, named: str) -> None:
    assert named in refusal({**without_rope(family), **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_part_of_a_head_is_rotated_by_glm_alone(family: str) -> None:
    config = {**without_rope(family), "partial_rotary_factor": 0.75}
    if family == "glm4_moe":
        assert FAMILIES[family].read_config(config).rope.dim == 24
        odd = {**config, "partial_rotary_factor": 0.35}
        assert "even number of up to head_dim (32) elements, not 11" in refusal(odd)
    else:
        assert "partial_rotary_factor = 0.75" in refusal(config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("hidden_act", "gelu", None),
        ("hidden_size", "64", None),
        ("hidden_size", 64.0, None),
        ("hidden_size", None, "hidden_size = None"),
        ("hidden_size", 0, "hidden_size must be greater than 0, not 0"),
        ("vocab_size", True, None),
        ("vocab_size", 2**53 + 1, None),
        ("max_position_embeddings", 10**400, "max_position_embeddings = 1000000000"),
        ("rms_norm_eps", 10**400, "rms_norm_eps = 1000000000"),
        ("vocab_size", -1, "vocab_size must be greater than 0, not -1"),
        ("num_hidden_layers", 0, "num_hidden_layers must be at least 1"),
        ("num_attention_heads", 0, "heads"),
        ("num_key_value_heads", 3, "num_key_value_heads"),
        ("max_position_embeddings", 0, "max_position_embeddings"),
        ("max_position_embeddings", "long", None),
        ("rms_norm_eps", "small", None),
        ("rms_norm_eps", 0, "rms_norm_eps must be greater than 0"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps = nan"),
        ("tie_word_embeddings", 1, None),
        ("tie_word_embeddings", "false", None),
        ("eos_token_id", "</s>", None),
        ("eos_token_id", [2, None], None),
        ("use_parallel_residual", True, None),
        ("alibi", True, None),
        ("num_experts_per_tok_scale", 2.0, None),
        ("text_config", {"hidden_size": 64}, None),
        ("is_encoder_decoder", True, None),
        ("add_cross_attention", True, None),
        ("cross_attention_hidden_size", 64, None),
        ("tie_encoder_decoder", True, None),
        ("pruned_heads", {"0": [1]}, None),
        ("per_layer_config", {"0": {"head_dim": 8}}, None),
    ],
    ids=str,
)
def test_what_no_family_expresses(family: str, key: str, value: Any, named: str | None) -> None:
    config = tiny(family, **{key: value})
    if key == "num_hidden_layers":
        for by_layer in ("layer_types", "dense_layers"):
            config.pop(by_layer, None)
    assert (named or f"{key} = {value!r}") in refusal(config)


def test_all_unknown_keys_are_named_in_one_line() -> None:
    changes = {"logit_softcap": 30.0, "alibi": True, "vision_config": {"sizes": list(range(99))}}
    line = refusal(tiny("llama", **changes))
    assert "alibi = True, logit_softcap = 30.0, vision_config = {'sizes': [0, 1" in line
    assert "are not understood for llama" in line
    assert len(line) < 300
    assert "alibi = True is not understood" in refusal(tiny("llama", alibi=True))


@dataclass(frozen=True)
class Refused:
    """Changes to a family's smallest config, and what the error says."""

    family: str
    changes: Config
    named: str = ""

    def __str__(self) -> str:
        return " ".join([self.family, *(f"{key}={value}" for key, value in self.changes.items())])

    def expected(self) -> str:
        key, value = next(iter(self.changes.items()))
        return self.named or f"{key} = {value!r}"


def too_many_experts(family: str, key: str, experts: int) -> Refused:
    return Refused(
        family, {key: experts + 1}, f"experts per token ({experts + 1}) must be between 1"
    )


CASES = (
    too_many_experts("reference", "num_experts_per_tok", 8),
    Refused("reference", {"full_attention_every": 0}),
    Refused("reference", {"dense_layers": [9]}),
    Refused("reference", {"attention_gate": "yes"}),
    Refused("reference", {"attention_bias": True}),
    Refused("reference", {"router_bias": True}),
    Refused("reference", {"sliding_window": -8}, "sliding window must be at least 1"),
    too_many_experts("mixtral", "num_experts_per_tok", 6),
    Refused("mixtral", {"num_experts_per_tok": 0}, "experts per token (0) must be between 1"),
    Refused("mixtral", {"sliding_window": 0}, "sliding window must be at least 1"),
    Refused("mixtral", {"sliding_window": "8"}),
    Refused("mixtral", {"clip_qkv": 8.0}),
    Refused("mixtral", {"attention_bias": True}),
    Refused("mixtral", {"norm_topk_prob": False}),
    Refused("mixtral", {"layer_types": ["sliding_attention"] * 3}),
    too_many_experts("qwen2_moe", "num_experts_per_tok", 8),
    Refused("qwen2_moe", {"attention_bias": True}),
    Refused("qwen2_moe", {"decoder_sparse_step": 0}),
    Refused("qwen2_moe", {"mlp_only_layers": ["0"]}),
    Refused("qwen2_moe", {"use_sliding_window": 1}),
    Refused("qwen2_moe", {"sliding_window": None, "use_sliding_window": True}),
    Refused("qwen2_moe", {"layer_types": ["chunked_attention"] * 3}),
    Refused("qwen2_moe", {"layer_types": ["full_attention"]}),
    Refused("qwen2_moe", {"layer_types": ["sliding_attention"] * 3}),
    Refused("qwen2_moe", {"scoring_func": "sigmoid"}),
    too_many_experts("qwen3_moe", "num_experts_per_tok", 8),
    Refused("qwen3_moe", {"decoder_sparse_step": 0}),
    Refused("qwen3_moe", {"mlp_only_layers": ["0"]}),
    Refused("qwen3_moe", {"max_window_layers": 2, "use_sliding_window": True}),
    Refused("qwen3_moe", {"shared_expert_intermediate_size": 8}),
    Refused("qwen3_moe", {"qkv_bias": True}),
    Refused("qwen3_moe", {"use_qk_norm": False}),
    Refused("qwen3_moe", {"attention_bias": "no"}),
    Refused("qwen3_moe", {"head_dim": 15}, "even number of up to head_dim (15) elements, not 15"),
    too_many_experts("olmoe", "num_experts_per_tok", 8),
    Refused("olmoe", {"clip_qkv": "8"}),
    Refused("olmoe", {"clip_qkv": -1.0}),
    Refused("olmoe", {"sliding_window": 8}),
    Refused("olmoe", {"attention_bias": 1}),
    Refused("phimoe", {"num_experts_per_tok": 3}, "must be 2 for this router, not 3"),
    Refused("phimoe", {"lm_head_bias": "yes"}),
    Refused(
        "phimoe",
        {
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "short_mscale": 1.1,
                "long_mscale": 1.2,
                "attention_factor": 1.5,
            }
        },
        "rope_scaling.attention_factor = 1.5",
    ),
    Refused("phimoe", {"router_jitter_noise": "some"}),
    Refused("phimoe", {"sliding_window": 0}, "sliding window must be at least 1"),
    Refused("phimoe", {"norm_topk_prob": True}),
    too_many_experts("granitemoe", "num_experts_per_tok", 8),
    Refused("granitemoe", {"logits_scaling": 0}, "logits_scaling must be greater than 0"),
    Refused("granitemoe", {"attention_multiplier": "big"}),
    Refused("granitemoe", {"shared_intermediate_size": 64}),
    Refused("granitemoe", {"position_embedding_type": "nope"}),
    too_many_experts("gpt_oss", "num_experts_per_tok", 8),
    Refused("gpt_oss", {"experts_per_token": 4}),
    Refused("gpt_oss", {"initial_context_length": 4096}),
    Refused("gpt_oss", {"layer_types": ["chunked_attention"] * 4}),
    Refused("gpt_oss", {"layer_types": ["full_attention"]}),
    Refused("gpt_oss", {"sliding_window": None}),
    Refused("gpt_oss", {"swiglu_limit": 0}),
    Refused("gpt_oss", {"swiglu_alpha": "1.702"}),
    Refused("gpt_oss", {"attention_bias": 1}),
    Refused("gpt_oss", {"norm_topk_prob": True}),
    Refused("llama", {"mlp_bias": 1}),
    Refused("llama", {"qkv_bias": True}),
    Refused("llama", {"sliding_window": 8}),
    Refused("llama", {"num_experts": 8}),
    Refused("mistral", {"sliding_window": 0}, "sliding window must be at least 1"),
    Refused("mistral", {"layer_types": ["sliding_attention"] * 3}),
    Refused("mistral", {"attention_bias": True}),
    Refused("mistral", {"head_dim": 15}, "even number of up to head_dim (15) elements, not 15"),
    *(
        Refused(family, changes, named)
        for family, changes, named in (
            ("deepseek_v2", {"norm_topk_prob": True}, ""),
            ("deepseek_v2", {"scoring_func": "sigmoid"}, ""),
            ("deepseek_v2", {"topk_method": "noaux_tc"}, ""),
            ("deepseek_v2", {"n_group": 4}, ""),
            ("deepseek_v2", {"topk_group": 2}, ""),
            ("deepseek_v2", {"mlp_bias": "no"}, ""),
            ("deepseek_v2", {"rope_interleave": False}, ""),
            ("deepseek_v3", {"scoring_func": "softmax"}, ""),
            ("deepseek_v3", {"topk_method": "greedy"}, ""),
            ("deepseek_v3", {"n_group": 3}, "16 experts in 3 groups, 2 of them chosen"),
            ("deepseek_v3", {"topk_group": 5}, "16 experts in 4 groups, 5 of them chosen"),
            ("deepseek_v3", {"n_group": 16}, "experts per token (4) are more than 2 groups of 1"),
            ("deepseek_v3", {"n_group": 16, "topk_group": 8}, "at least 2 experts, not 1"),
            ("deepseek_v3", {"mlp_bias": True}, ""),
            ("deepseek_v3", {"rope_interleave": 1}, ""),
            ("deepseek_v3", {"num_nextn_predict_layers": -1}, ""),
            ("deepseek_v3", {"num_mtp_layers": 2}, ""),
            ("deepseek_v3", {"index_topk": 2048}, ""),
            ("glm4_moe", {"scoring_func": "softmax"}, ""),
            ("glm4_moe", {"n_group": 3}, "8 experts in 3 groups"),
            ("glm4_moe", {"use_qk_norm": 1}, ""),
            ("glm4_moe", {"num_mtp_layers": "1"}, ""),
            ("glm4_moe", {"sliding_window": 8}, ""),
        )
    ),
    *(
        Refused(family, changes, named)
        for family in ("deepseek_v2", "deepseek_v3")
        for changes, named in (
            ({"head_dim": 48}, ""),
            ({"qk_head_dim": 64}, ""),
            ({"num_key_value_heads": 1}, ""),
            ({"q_lora_rank": 0}, "ranks and head sizes of latent attention must be at least 1"),
            ({"kv_lora_rank": 0}, "ranks and head sizes of latent attention must be at least 1"),
            ({"v_head_dim": "32"}, ""),
            ({"qk_rope_head_dim": 15}, "not 15"),
            ({"attention_bias": "yes"}, ""),
        )
    ),
    *(
        Refused(family, changes, named)
        for family, experts in (("deepseek_v2", 8), ("deepseek_v3", 16), ("glm4_moe", 8))
        for changes, named in (
            ({"num_experts_per_tok": experts + 1}, f"experts per token ({experts + 1})"),
            ({"n_shared_experts": -1}, ""),
            ({"n_shared_experts": 1.5}, ""),
            ({"first_k_dense_replace": -1}, ""),
            ({"moe_layer_freq": 2}, ""),
            ({"routed_scaling_factor": "2.5"}, ""),
        )
    ),
    too_many_experts("ernie4_5_moe", "moe_k", 8),
    Refused("ernie4_5_moe", {"moe_gate": "expert_choice"}),
    Refused("ernie4_5_moe", {"moe_gate_act": "sigmoid"}),
    Refused("ernie4_5_moe", {"moe_use_aux_free": False}),
    Refused("ernie4_5_moe", {"use_rmsnorm": False}),
    Refused("ernie4_5_moe", {"moe_num_experts": [8, 8]}),
    Refused("ernie4_5_moe", {"moe_num_shared_experts": -1}),
    Refused("ernie4_5_moe", {"moe_layer_interval": 0}),
    Refused("ernie4_5_moe", {"moe_layer_start_index": -1}),
    Refused("ernie4_5_moe", {"moe_layer_end_index": -2}),
    Refused("ernie4_5_moe", {"moe_norm_min": "small"}),
    Refused("ernie4_5_moe", {"use_bias": 1}),
    Refused("ernie4_5_moe", {"sliding_window": 8}),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_family_cannot_express_is_named(case: Refused) -> None:
    assert case.expected() in refusal(tiny(case.family, **case.changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_refusals_of_its_own(family: str) -> None:
    assert sum(case.family == family for case in CASES) >= 4


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("deepseek_v3", "norm_topk_prob", None),
        ("deepseek_v3", "rope_interleave", None),
        ("deepseek_v3", "num_experts_per_tok", None),
        ("ernie4_5_moe", "moe_k", None),
        ("granitemoe", "attention_multiplier", 0),
        ("granitemoe", "attention_multiplier", -0.1),
        ("phimoe", "router_jitter_noise", -0.1),
        ("deepseek_v3", "routed_scaling_factor", 1e308),
        ("gpt_oss", "swiglu_limit", 1e308),
        ("llama", "num_hidden_layers", 10**30),
        ("llama", "num_hidden_layers", 200_000_000),
        ("mistral", "sliding_window", 10**30),
        ("gpt_oss", "num_local_experts", 10**12),
        ("deepseek_v3", "num_nextn_predict_layers", 10**12),
        ("llama", "eos_token_id", -5),
        ("llama", "eos_token_id", 2**31),
        ("llama", "rms_norm_eps", 2.0),
        ("llama", "rms_norm_eps", 1e-30),
        ("llama", "rope_theta", None),
        ("llama", "hidden_act", None),
        ("mistral", "num_key_value_heads", 0),
        ("gpt_oss", "head_dim", 0),
        ("gpt_oss", "num_local_experts", 65_536),
        ("gpt_oss", "rope_scaling", {**FAMILIES["gpt_oss"].tiny["rope_scaling"], "truncate": None}),
        ("granitemoe", "logits_scaling", 1e-30),
        ("granitemoe", "num_experts_per_tok", None),
        ("glm4_moe", "partial_rotary_factor", None),
        ("glm4_moe", "num_key_value_heads", None),
        ("ernie4_5_moe", "num_key_value_heads", None),
        ("ernie4_5_moe", "moe_norm_min", -0.1),
        ("deepseek_v2", "topk_method", None),
        ("deepseek_v3", "n_shared_experts", 2**31 - 1),
        ("deepseek_v3", "num_nextn_predict_layers", None),
    ],
)
def test_what_would_compute_nonsense_or_never_end(family: str, key: str, value: Any) -> None:
    assert len(refusal(tiny(family, **{key: value}))) < 300


ODD_VALUES = (
    None, True, -1, 0, 1, 2**31, 10**12, 10**30, 0.5, -0.1, 1e-30, 1e308, "", "x", [], {}, [1],
)  # fmt: skip
PLACES = [
    (family, *place)
    for family, known in FAMILIES.items()
    for place in (
        *((key,) for key in [*known.tiny, "partial_rotary_factor"] if key != "model_type"),
        *(("rope_scaling", key) for key in known.tiny.get("rope_scaling") or ()),
    )
]


@settings(max_examples=examples(1500), deadline=timedelta(seconds=20))
@given(place=st.sampled_from(PLACES), value=st.sampled_from(ODD_VALUES))
def test_any_value_is_read_or_refused_at_once(place: tuple[str, ...], value: Any) -> None:
    family, *path = place
    config = tiny(family)
    holder = config[path[0]] if len(path) == 2 else config
    holder[path[-1]] = value
    try:
        spec = FAMILIES[family].read_config(config)
        FAMILIES[family].predictors(config)
    except ConfigError:
        assert len(refusal(config)) < 400
        return
    assert len(parameter_shapes(spec)) < 10_000
