"""Rotary frequencies are those of transformers; their config keys are read, or refused by name."""

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pocketmoe.errors import ConfigError
from pocketmoe.model.attention import rope_table
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.rope import RopeSpec, frequencies
from pocketmoe.model.spec import ModelSpec

LENGTH, ORIGINAL, HEAD_DIM = 4096, 1024, 64
SHORT = [1.0 + 0.05 * pair for pair in range(HEAD_DIM // 2)]
LONG = [1.0 + 1.5 * pair for pair in range(HEAD_DIM // 2)]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": ORIGINAL,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": YARN,
    "yarn betas": {**YARN, "beta_fast": 20, "beta_slow": 2},
    "yarn not truncated": {**YARN, "truncate": False},
    "yarn mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2, "factor": 40},
    "yarn mscale alone": {**YARN, "mscale": 0.7},
    "yarn attention factor": {**YARN, "attention_factor": 1.5, "mscale": 1.0, "mscale_all_dim": 2},
    "yarn without original length": {"rope_type": "yarn", "factor": 4.0},
    "yarn factor below 1": {**YARN, "factor": 0.5},
    "llama3": LLAMA3,
    "llama3 wide": {**LLAMA3, "low_freq_factor": 0.5, "high_freq_factor": 16, "factor": 32.0},
    "longrope": LONGROPE,
    "longrope factor": {**LONGROPE, "factor": 16.0},
    "longrope attention factor": {**LONGROPE, "attention_factor": 1.3},
}


def make_config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    return {**FAMILIES[family].tiny, **sizes, **changes}


def read_rope(config: dict[str, Any]) -> RopeSpec:
    return FAMILIES[config["model_type"]].read_config(config).rope


@pytest.mark.parametrize("old_keys", [True, False], ids=["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("length", [1, ORIGINAL, ORIGINAL + 1, LENGTH, 3 * LENGTH])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_those_of_transformers(scaling: str, length: int, old_keys: bool) -> None:
    rope, theta = SCALINGS[scaling], 50_000.0
    kind = rope["rope_type"]
    if old_keys:
        older = {"type": kind, **{key: rope[key] for key in rope if key != "rope_type"}}
        ours = read_rope(make_config(rope_theta=theta, rope_scaling=older))
    else:
        ours = read_rope(
            make_config(rope_theta=None, rope_parameters={**rope, "rope_theta": theta})
        )
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        rope_parameters={**rope, "rope_theta": theta},
    )
    expected, expected_scale = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
    values, scale = frequencies(ours, length)
    assert ours.kind == kind
    torch.testing.assert_close(torch.tensor(values), expected, rtol=2e-6, atol=0)
    assert scale == pytest.approx(expected_scale, rel=1e-12)


def test_the_published_rotation_of_phimoe() -> None:
    """Beyond the original length its long factors, each side with an attention factor of its own
    (modeling_phimoe.py beside the published weights)."""
    scaling = {**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3}
    rope = read_rope(
        make_config("phimoe", rope_scaling=scaling, original_max_position_embeddings=ORIGINAL)
    )
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        rope_parameters={**LONGROPE, "rope_theta": 10_000.0},
    )
    for length, mscale in ((ORIGINAL, 1.1), (ORIGINAL + 1, 1.3)):
        expected, _ = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=length)
        values, scale = frequencies(rope, length)
        torch.testing.assert_close(torch.tensor(values), expected, rtol=2e-6, atol=0)
        assert scale == mscale
        cos, sin = rope_table(rope, torch.arange(length), length)
        torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, mscale**2))


@pytest.mark.parametrize(
    ("theta", "rope", "expected"),
    [
        (None, None, 10_000.0),
        (500.0, None, 500.0),
        (None, {"rope_theta": 700.0}, 700.0),
        (700.0, {"rope_theta": 700, "rope_type": "default", "type": "default"}, 700.0),
    ],
)
def test_where_the_base_stands(theta: float | None, rope: Any, expected: float) -> None:
    for name in ("rope_scaling", "rope_parameters"):
        config = make_config(**{"rope_theta": theta, name: rope})
        if theta is None and rope is None:
            del config["rope_theta"]
        assert read_rope(config) == RopeSpec(theta=expected, dim=HEAD_DIM)


# What differs from a config that is read, and the key and value that the error names.
REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"rope_theta": "big"}, "rope_theta = 'big'"),
    ({"rope_theta": 0}, "rope_theta = 0"),
    ({"rope_theta": True}, "rope_theta = True"),
    ({"rope_theta": 1e308}, "rope_theta = 1e+308"),
    ({"rope_theta": 5e-324}, "rope_theta = 5e-324"),
    ({"rope_theta": 10**400}, "rope_theta = 1000000000"),
    ({"rope_scaling": {**YARN, "factor": 1e308}}, "rope_scaling.factor = 1e+308"),
    ({"rope_scaling": {**YARN, "beta_fast": 5e-324}}, "rope_scaling.beta_fast = 5e-324"),
    ({"rope_scaling": {**YARN, "mscale": -1.0}}, "rope_scaling.mscale = -1.0"),
    ({"rope_scaling": {**YARN, "mscale_all_dim": 1e308}}, "mscale_all_dim = 1e+308"),
    ({"rope_scaling": {**LONGROPE, "short_factor": [5e-324] * 32}}, "short_factor = [5e-324"),
    ({"rope_theta": float("nan")}, "rope_theta = nan"),
    ({"rope_parameters": {"rope_theta": 7.0}}, "rope_parameters.rope_theta = 7.0"),
    ({"rope_parameters": "linear"}, "rope_parameters = 'linear'"),
    ({"rope_scaling": ["linear"]}, "rope_scaling = ['linear']"),
    ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling.type = 'su'"),
    ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_scaling.rope_type = ['yarn']"),
    ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2}}, "type = 'yarn'"),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [8, 8]}}, "type = 'mrope'"),
    ({"rope_scaling": {"type": "default", "factor": 2.0}}, "rope_scaling.factor = 2.0"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
    ({"rope_scaling": {"type": "linear", "factor": None}}, "rope_scaling.factor = None"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor = '2'"),
    ({"rope_scaling": {"type": "linear", "factor": -1.0}}, "rope_scaling.factor = -1.0"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 8}}, "rope_scaling.alpha = 8"),
    ({"rope_scaling": {**YARN, "factor": None}}, "rope_scaling.factor = None"),
    ({"rope_scaling": {**YARN, "beta_fast": "32"}}, "rope_scaling.beta_fast = '32'"),
    ({"rope_scaling": {**YARN, "truncate": 1}}, "rope_scaling.truncate = 1"),
    ({"rope_scaling": {**YARN, "mscale": [1.0]}}, "rope_scaling.mscale = [1.0]"),
    ({"rope_scaling": {**YARN, "finetuned": True}}, "rope_scaling.finetuned = True"),
    ({"rope_scaling": {**YARN, "original_max_position_embeddings": 1}}, "embeddings = 1"),
    ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta = 1.0"),
    (
        {"rope_scaling": YARN, "original_max_position_embeddings": 512},
        f"rope_scaling.original_max_position_embeddings = {ORIGINAL}",
    ),
    ({"original_max_position_embeddings": 512}, "original_max_position_embeddings = 512"),
    ({"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "low_freq_factor = None"),
    ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor = 1.0"),
    ({"rope_scaling": {**LLAMA3, "mscale": 1.0}}, "rope_scaling.mscale = 1.0"),
    ({"rope_scaling": {**LONGROPE, "short_factor": SHORT[1:]}}, "32 numbers, not 31"),
    ({"rope_scaling": {**LONGROPE, "long_factor": [0.0] * 32}}, "rope_scaling.long_factor = [0.0"),
    ({"rope_scaling": {**LONGROPE, "long_factor": None}}, "rope_scaling.long_factor is missing"),
    ({"rope_scaling": {**LONGROPE, "long_mscale": 1.2}}, "rope_scaling.long_mscale = 1.2"),
    ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "rope_scaling = {'rope_type': 'yarn'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
    ({"model_type": "phimoe", "rope_scaling": YARN}, "rope_scaling.rope_type = 'yarn'"),
    ({"model_type": "phimoe", "rope_scaling": LONGROPE}, "rope_scaling.short_mscale is missing"),
    ({"model_type": "glm4_moe", "partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5"),
)


@pytest.mark.parametrize(("changes", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_what_is_not_expressed_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_rope(make_config(changes.get("model_type", "llama"), **changes))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


ACCEPTED = st.floats(1e-6, 1e12) | st.sampled_from([1, 2, 1e-6, 1e12, 2**53])
NUMBERS = ACCEPTED | st.floats() | st.integers() | st.sampled_from([1e308, 5e-324, 10**400])
FACTORS = st.lists(st.floats(1e-6, 1e12), min_size=32, max_size=32) | st.just([5e-324] * 32)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)
PHIMOE = {**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.3}
# A family and a config that it reads for each set of keys.
BASES = {
    **{name: ("llama", rope) for name, rope in SCALINGS.items()},
    "partial": ("glm4_moe", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    "phimoe": ("phimoe", PHIMOE),
    "latent": ("deepseek_v3", {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}),
}
EVERY_KEY = sorted({key for _, rope in BASES.values() for key in rope} | {"rope_theta", "type"})
OUTSIDE = (
    "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
    "max_position_embeddings",
)  # fmt: skip


def outcome(config: dict[str, Any]) -> ModelSpec | str:
    """What a config says, or what it is refused with."""
    try:
        return FAMILIES[config["model_type"]].read_config(config)
    except ConfigError as error:
        return str(error)


def check_finite(base: str, inside: dict[str, Any], outside: dict[str, Any]) -> None:
    """A config is refused, or all that comes of it is finite."""
    family, rope = BASES[base]
    config = make_config(family, **{"rope_parameters": {**rope, **inside}, **outside})
    spec = outcome({**config, "rope_scaling": None})
    if isinstance(spec, str):
        assert "\n" not in spec
        return
    assert 0 < spec.max_context < math.inf
    for length in (1, spec.rope.original_length, spec.rope.original_length + 1, 10**9):
        values, scale = frequencies(spec.rope, length)
        assert len(values) == spec.rope.dim // 2
        assert all(0 < value < math.inf for value in values)
        assert 0 < scale < math.inf
    assert 0 < spec.softmax_scale < math.inf


@st.composite
def numbers_of_a_kind(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Other numbers for keys that a config has: most of these are read."""
    base = draw(st.sampled_from(sorted(BASES)))
    rope = {"rope_theta": 1e4, **BASES[base][1]}
    keys = [key for key, value in rope.items() if isinstance(value, (int, float))]
    values = {
        key: draw(ACCEPTED if key != "truncate" else st.booleans())
        for key in draw(st.lists(st.sampled_from(keys), unique=True))
    }
    lengths = st.integers(2, 2**53)
    values |= {key: draw(lengths) for key in values if key == "original_max_position_embeddings"}
    return base, values


@given(numbers_of_a_kind())
def test_any_number_within_the_range(case: tuple[str, dict[str, Any]]) -> None:
    base, inside = case
    check_finite(base, inside, {})


@given(
    base=st.sampled_from(sorted(BASES)),
    inside=st.dictionaries(st.sampled_from(EVERY_KEY), NUMBERS | FACTORS | VALUES, max_size=4),
    outside=st.dictionaries(st.sampled_from(OUTSIDE), NUMBERS | VALUES, max_size=2),
)
@example(base="yarn", inside={"mscale": 1e12, "mscale_all_dim": 1e-6, "factor": 1e12}, outside={})
@example(base="dynamic", inside={"factor": 1e12, "rope_theta": 1e12}, outside={})
@example(base="latent", inside={"mscale_all_dim": 1e12, "factor": 1e12}, outside={})
@example(base="longrope", inside={"original_max_position_embeddings": 10**400}, outside={})
def test_any_value_of_any_key(base: str, inside: dict[str, Any], outside: dict[str, Any]) -> None:
    check_finite(base, inside, outside)
