"""A bundle of every family computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketmoe.bench.lib.random_models import make_model
from pocketmoe.bench.quality.families import (
    BUNDLE_LIMIT,
    compile_at,
    configs,
    difference,
    prompt_and_continuation,
    try_bundle,
)
from pocketmoe.model.families import FAMILIES
from pocketmoe.runtime.opening import open_bundle

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# One config each, so that every feature is in a bundle once; bench/quality/families.py compiles
# them all.
CONFIGS = {
    "mixtral": "window",
    "qwen2_moe": "layer types",
    "qwen3_moe": "dense layers",
    "olmoe": "clipped",
    "deepseek_v2": "groups",
    "deepseek_v3": "halves",
    "phimoe": "longrope",
    "granitemoe": "biased",
    "gpt_oss": "default",
    "ernie4_5_moe": "biases",
    "glm4_moe": "yarn",
    "llama": "dynamic",
    "mistral": "default",
}


def test_every_family_has_its_config() -> None:
    assert set(CONFIGS) == set(FAMILIES) - {"reference"}


@pytest.mark.parametrize(("family", "config"), CONFIGS.items())
def test_a_bundle_computes_what_transformers_computes(
    family: str, config: str, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    model = make_model(dict(configs(FAMILIES[family]))[config], checkpoint)
    chunks, expected = prompt_and_continuation(model)
    with open_bundle(compile_at(checkpoint, "fp32")) as session:
        assert difference(session.forward, chunks, expected) <= BUNDLE_LIMIT
    generated, damaged = try_bundle(checkpoint, compile_at(checkpoint, "int4"))
    assert generated > 0
    assert damaged == 0
