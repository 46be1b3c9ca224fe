"""Each family computes what transformers computes, and refuses by name what it cannot express."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pocketmoe.errors import ConfigError
from pocketmoe.model.checkpoint import Checkpoint
from pocketmoe.model.families import FAMILIES, find_family
from pocketmoe.model.module import Decoder, KeyValueCache
from pocketmoe.model.parameters import parameter_shapes
from pocketmoe.model.presets import find_preset

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, DECODED = 24, 32
TOLERANCE = 1e-4

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
CONFIGS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "mixtral": (
        transformers.MixtralConfig,
        transformers.MixtralForCausalLM,
        {**COMMON, "num_local_experts": 6},
    ),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig,
        transformers.Qwen3MoeForCausalLM,
        {**COMMON, "num_experts": 6, "moe_intermediate_size": 24, "head_dim": 16},
    ),
    "olmoe": (
        transformers.OlmoeConfig,
        transformers.OlmoeForCausalLM,
        {**COMMON, "num_experts": 6, "num_key_value_heads": 4},
    ),
}


@dataclass(frozen=True)
class Case:
    """A family, and what differs from its smallest config."""

    family: str
    changes: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.family, *(f"{key}={value}" for key, value in self.changes.items())])

    def save(self, path: Path, **options: Any) -> transformers.PreTrainedModel:
        """A random model with uneven norms, saved by transformers."""
        make_config, make_model, values = CONFIGS[self.family]
        torch.manual_seed(0)
        model = make_model(make_config(**{**values, **self.changes}))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        model.save_pretrained(path, **options)
        return model.eval()


CASES = (
    Case("mixtral", {}),
    Case("mixtral", {"sliding_window": 8}),
    Case("mixtral", {"tie_word_embeddings": True}),
    Case("mixtral", {"head_dim": 12, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    Case("mixtral", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    Case("qwen3_moe", {"norm_topk_prob": True}),
    Case("qwen3_moe", {"norm_topk_prob": False}),
    Case("qwen3_moe", {"mlp_only_layers": [0, 2]}),
    Case("qwen3_moe", {"decoder_sparse_step": 2}),
    Case("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8}),
    Case("qwen3_moe", {"sliding_window": 8}),
    Case("qwen3_moe", {"tie_word_embeddings": True}),
    Case("olmoe", {}),
    Case("olmoe", {"clip_qkv": 0.5}),
    Case("olmoe", {"norm_topk_prob": True}),
    Case("olmoe", {"num_key_value_heads": 2}),
    Case("olmoe", {"tie_word_embeddings": True}),
)


def load_decoder(path: Path) -> Decoder:
    """The reference module in float32 with a checkpoint's weights."""
    checkpoint = Checkpoint(path)
    decoder = Decoder(checkpoint.spec)
    with checkpoint.tensors() as reader, torch.no_grad():
        parameters = dict(decoder.named_parameters())
        assert set(parameters) == set(parameter_shapes(checkpoint.spec))
        for name, parameter in parameters.items():
            parameter.copy_(reader.read(name))
    return decoder.eval()


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_logits_are_those_of_transformers(case: Case, tmp_path: Path) -> None:
    theirs = case.save(tmp_path)
    ours = load_decoder(tmp_path)
    tokens = torch.randint(0, 96, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    cache, their_cache = KeyValueCache(), transformers.DynamicCache(config=theirs.config)
    worst, alone = 0.0, set()
    for _ in range(1 + DECODED):
        expected = theirs(tokens, past_key_values=their_cache, use_cache=True).logits
        logits = ours(tokens, cache)
        worst = max(worst, relative_difference(logits, expected))
        tokens = expected[:, -1:].argmax(dim=-1)
        assert logits[0, -1].argmax() == tokens[0, 0]
        alone.add(int(tokens))
    print(f"{case}: relative difference {worst:.1e}")
    assert cache.length == PROMPT + DECODED
    assert len(alone) > 4, "the model repeats itself: decoding proves little"
    assert worst <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_half_precision_and_shards_load(family: str, tmp_path: Path) -> None:
    theirs = Case(family, {"dtype": "bfloat16"}).save(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tokens = torch.arange(12)[None]
    expected = theirs.float()(tokens).logits
    assert relative_difference(load_decoder(tmp_path)(tokens), expected) <= TOLERANCE


# One value changed at a time; the error names the key.
REFUSED: tuple[tuple[str, str, Any, str], ...] = (
    *(
        (family, key, value, named)
        for family in CONFIGS
        for key, value, named in (
            ("hidden_act", "gelu", "hidden_act = 'gelu'"),
            ("hidden_size", "32", "hidden_size = '32'"),
            ("hidden_size", None, "hidden_size is missing"),
            ("num_hidden_layers", 0, "num_hidden_layers"),
            ("num_attention_heads", 0, "num_attention_heads"),
            ("num_key_value_heads", 3, "num_key_value_heads (3)"),
            ("num_experts_per_tok", 7, "experts per token (7)"),
            ("tie_word_embeddings", 1, "tie_word_embeddings = 1"),
            ("rms_norm_eps", "small", "rms_norm_eps = 'small'"),
            ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}, "rope_type = 'yarn'"),
            ("rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
            ("rope_parameters", {"rope_theta": "big"}, "rope_theta = 'big'"),
            ("rope_parameters", "linear", "rope_parameters = 'linear'"),
            ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_type = 'linear'"),
            ("eos_token_id", "</s>", "eos_token_id = '</s>'"),
            ("quantization_config", {"bits": 4}, "quantization_config"),
            ("use_parallel_residual", True, "use_parallel_residual = True"),
        )
    ),
    ("mixtral", "attention_bias", True, "attention_bias = True"),
    ("mixtral", "sliding_window", 0, "sliding window"),
    ("mixtral", "clip_qkv", 8.0, "clip_qkv = 8.0"),
    ("qwen3_moe", "attention_bias", True, "attention_bias = True"),
    ("qwen3_moe", "decoder_sparse_step", 0, "decoder_sparse_step = 0"),
    ("qwen3_moe", "mlp_only_layers", ["0"], "mlp_only_layers = ['0']"),
    ("qwen3_moe", "use_sliding_window", 1, "use_sliding_window = 1"),
    ("qwen3_moe", "max_window_layers", 2, "max_window_layers = 2"),
    ("qwen3_moe", "shared_expert_intermediate_size", 8, "shared_expert_intermediate_size = 8"),
    ("qwen3_moe", "head_dim", 15, "head_dim must be even"),
    ("olmoe", "attention_bias", True, "attention_bias = True"),
    ("olmoe", "clip_qkv", "8", "clip_qkv = '8'"),
    ("olmoe", "sliding_window", 8, "sliding_window = 8"),
    ("reference", "hidden_act", "gelu", "hidden_act = 'gelu'"),
    ("reference", "full_attention_every", 0, "full_attention_every = 0"),
    ("reference", "dense_layers", [9], "dense_layers = [9]"),
    ("reference", "attention_gate", "yes", "attention_gate = 'yes'"),
    ("reference", "attention_bias", True, "attention_bias = True"),
    ("reference", "router_bias", True, "router_bias = True"),
)


def plain_config(family: str) -> dict[str, Any]:
    """What config.json holds for the family's smallest model."""
    if family == "reference":
        return find_preset("tiny")
    make_config, _, values = CONFIGS[family]
    return json.loads(make_config(**values).to_json_string(use_diff=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_config_is_read(family: str) -> None:
    assert FAMILIES[family].read_config(plain_config(family)).family == family


@pytest.mark.parametrize(
    ("family", "key", "value", "named"),
    REFUSED,
    ids=[f"{family} {key}={value}" for family, key, value, _ in REFUSED],
)
def test_what_a_family_cannot_express_is_named(
    family: str, key: str, value: Any, named: str
) -> None:
    config = {**plain_config(family), key: value}
    if key == "max_window_layers":
        config |= {"use_sliding_window": True, "sliding_window": 8}
    with pytest.raises(ConfigError) as caught:
        find_family(config).read_config(config)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_window_in_use_needs_its_length() -> None:
    config = {**plain_config("qwen3_moe"), "use_sliding_window": True}
    del config["sliding_window"]
    with pytest.raises(ConfigError, match="sliding_window = None"):
        find_family(config).read_config(config)


@pytest.mark.parametrize(("model_type", "hint"), [("mixtrall", "mixtral"), ("olmo", "olmoe")])
def test_a_family_with_a_near_name(model_type: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {hint}"):
        find_family({"model_type": model_type})


def test_a_config_without_a_family() -> None:
    with pytest.raises(ConfigError, match="model_type = None"):
        find_family({})
