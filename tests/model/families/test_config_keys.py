"""No value of a config passes unread: changing it changes what is computed, or is refused."""

import copy
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import transformers

from pocketmoe.errors import ConfigError
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.families.common_keys import IRRELEVANT
from pocketmoe.model.families.rope_reader import ALL_KINDS
from pocketmoe.model.spec import ModelSpec

Config = dict[str, Any]

# Keys of transformers' config classes that change no number at inference, and why.
HARMLESS = {
    "mixtral": {"router_jitter_noise": "noise while training"},
    "phimoe": {"input_jitter_noise": "noise while training"},
    "llama": {"pretraining_tp": "cuts the same products into parts"},
    "deepseek_v2": {"pretraining_tp": "read by nothing"},
    "deepseek_v3": {"pretraining_tp": "read by nothing"},
}
# Keys of which some values say the same: layers up to one that comes after the last.
SATURATED = {("ernie4_5_moe", "moe_layer_end_index"), ("qwen2_moe", "max_window_layers")}

FROM_TRANSFORMERS = [family for family in FAMILIES if family != "reference"]


def tiny(family: str, **changes: Any) -> Config:
    return copy.deepcopy({**FAMILIES[family].tiny, **changes})


def read(config: Config) -> tuple[ModelSpec, tuple[str, ...]]:
    family = FAMILIES[config["model_type"]]
    return family.read_config(config), family.predictors(config)


def refusal(config: Config) -> str:
    """The one line that the family refuses a config with."""
    with pytest.raises(ConfigError) as caught:
        read(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outcome(config: Config) -> Any:
    """What a config says, or the line that it is refused with."""
    try:
        return read(config)
    except ConfigError as error:
        return str(error)


def other_values(value: Any) -> Iterator[Any]:
    """Values that differ from one, of its type."""
    if value is None:
        yield from (3, 0.5, True, "other", [1])
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value + 2, 2 * value + 4, value - 1)
    elif isinstance(value, float):
        yield from (value / 2 + 0.25, 2 * value + 1.0)
    elif isinstance(value, str):
        yield "other"
    elif isinstance(value, list):
        yield from (value[1:], [*value, 1]) if value else ([1],)


def effective_values(config: Config) -> Config:
    """Every key of transformers' config class with the value that it takes for a config."""
    values = copy.deepcopy(config)
    theirs = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    written = json.loads(theirs.to_json_string(use_diff=False))
    return {
        **{field.name: getattr(theirs, field.name) for field in fields(theirs)},
        **written,
    }


def ignored_values(config: Config) -> dict[str, list[Any]]:
    """For each key, the values that read_config takes without a difference."""
    family, expected = config["model_type"], read(config)
    ignored = {}
    for key, value in effective_values(config).items():
        if key in IRRELEVANT or key in HARMLESS.get(family, {}) or isinstance(value, dict):
            continue
        ignored[key] = []
        for other in other_values(value):
            if outcome({**config, key: other}) == expected:
                ignored[key].append(other)
    return ignored


@pytest.mark.parametrize("family", FROM_TRANSFORMERS)
def test_every_key_of_the_config_class_counts(family: str) -> None:
    """Some depend on others, so each has to count in one of the family's configs at least."""
    variants = FAMILIES[family].variants
    every = [ignored_values(tiny(family, **changes)) for changes in ({}, *variants.values())]
    for key, ignored in every[0].items():
        least = min((others.get(key, ignored) for others in every), key=len)
        allowed = 3 if (family, key) in SATURATED else 0
        assert len(least) <= allowed, f"{key} = {least[0]!r} changes nothing"


@pytest.mark.parametrize("family", FROM_TRANSFORMERS)
def test_keys_that_transformers_does_not_read_are_listed(family: str) -> None:
    for key in HARMLESS.get(family, {}):
        assert key in effective_values(tiny(family))
        assert read(tiny(family, **{key: 3})) == read(tiny(family))


# What transformers 4 wrote of PretrainedConfig where the whole of it was asked for.
WHOLE_DUMP = """{
    "return_dict": true, "output_hidden_states": false, "output_attentions": false,
    "torchscript": false, "torch_dtype": null, "use_bfloat16": false, "tf_legacy_loss": false,
    "pruned_heads": {}, "is_encoder_decoder": false, "is_decoder": false,
    "cross_attention_hidden_size": null, "add_cross_attention": false,
    "tie_encoder_decoder": false, "max_length": 20, "min_length": 0, "do_sample": false,
    "early_stopping": false, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0,
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": null, "num_return_sequences": 1, "chunk_size_feed_forward": 0,
    "output_scores": false, "return_dict_in_generate": false, "forced_bos_token_id": null,
    "forced_eos_token_id": null, "remove_invalid_values": false,
    "exponential_decay_length_penalty": null, "suppress_tokens": null,
    "begin_suppress_tokens": null, "finetuning_task": null,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "tokenizer_class": "LlamaTokenizer", "prefix": null, "pad_token_id": 0, "sep_token_id": null,
    "decoder_start_token_id": null, "task_specific_params": {}, "problem_type": null,
    "_name_or_path": "", "_commit_hash": "0123abcd", "attn_implementation": null,
    "_attn_implementation": "sdpa", "transformers_version": "4.39.0.dev0", "unsloth_fixed": true,
    "transformers.js_config": {"use_external_data_format": true}
}"""


@pytest.mark.parametrize("family", FAMILIES)
def test_what_any_config_may_carry_changes_nothing(family: str) -> None:
    assert read(tiny(family, **json.loads(WHOLE_DUMP))) == read(tiny(family))


def scaling(kind: str, pairs: int, family: str) -> Config:
    """All keys of a kind of rotary scaling, for heads with so many rotated pairs."""
    keys: dict[str, Config] = {
        "default": {},
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0},
        "yarn": {
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.2,
            "mscale_all_dim": 0.7,
            "truncate": True,
        },
        "llama3": {
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "longrope": {
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "short_factor": [1.0 + i for i in range(pairs)],
            "long_factor": [2.0 + i for i in range(pairs)],
            "attention_factor": 1.5,
        },
    }
    parameters = {"rope_type": kind, "rope_theta": 5000.0, **keys[kind]}
    if (family, kind) == ("phimoe", "longrope"):
        del parameters["attention_factor"]
        parameters |= {"short_mscale": 1.1, "long_mscale": 1.2}
    return parameters


KINDS = {"phimoe": ("default", "longrope")}


def without_rope(family: str) -> Config:
    rope = ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor")
    return {key: value for key, value in tiny(family).items() if key not in rope}


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_rotary_scaling_counts(family: str, kind: str) -> None:
    base = without_rope(family)
    parameters = scaling(kind, read(tiny(family))[0].rope.dim // 2, family)
    config = {**base, "rope_parameters": parameters}
    if kind not in KINDS.get(family, ALL_KINDS):
        assert f"rope_parameters.rope_type = '{kind}'" in refusal(config)
        return
    expected = read(config)
    assert expected[0].rope.kind == kind
    for key in parameters:
        for other in other_values(parameters[key]):
            found = outcome({**base, "rope_parameters": {**parameters, key: other}})
            assert found != expected, f"{key} = {other!r} changes nothing"
            assert not isinstance(found, str) or f"rope_parameters.{key} = {other!r}" in found
    for key in set(parameters) - {"rope_type", "rope_theta"}:
        changed = {**base, "rope_parameters": {**parameters, key: "much"}}
        assert f"rope_parameters.{key} = 'much'" in refusal(changed)
    strange = {**base, "rope_parameters": {**parameters, "mrope_section": [8, 8]}}
    assert "rope_parameters.mrope_section = [8, 8]" in refusal(strange)
    older = {("type" if key == "rope_type" else key): parameters[key] for key in parameters}
    assert read({**base, "rope_scaling": older}) == expected


# A key that is null, where that is not the same as leaving it out.
@pytest.mark.parametrize(
    ("family", "key", "null", "absent"),
    [
        ("mistral", "sliding_window", [None] * 3, [4096] * 3),
        ("gpt_oss", "sliding_window", [None] * 4, [None] * 4),
        ("deepseek_v2", "q_lora_rank", None, 1536),
        ("deepseek_v3", "n_shared_experts", [0, 0, 0], [0, 32, 32]),
        ("llama", "eos_token_id", (), (2,)),
        ("deepseek_v2", "eos_token_id", (), (2,)),
    ],
)
def test_null_and_absent(family: str, key: str, null: Any, absent: Any) -> None:
    def value(config: Config) -> Any:
        spec = read(config)[0]
        if key == "sliding_window":
            return [layer.window for layer in spec.layers]
        if key == "n_shared_experts":
            return [layer.shared_intermediate_size for layer in spec.layers]
        if key == "q_lora_rank":
            return spec.mla.q_lora_rank if spec.mla else 0
        return spec.eos_token_ids

    config = tiny(family)
    if family == "gpt_oss":
        config["layer_types"] = ["full_attention"] * 4
    assert value({**config, key: None}) == null
    assert value({name: config[name] for name in config if name != key}) == absent
