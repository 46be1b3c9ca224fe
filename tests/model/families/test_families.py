"""Each family computes what transformers computes, from the files that transformers writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open

from pocketmoe.errors import ConfigError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.families import FAMILIES, find_family
from pocketmoe.model.module import Decoder, KeyValueCache
from pocketmoe.model.parameters import parameter_shapes
from pocketmoe.tests.support.slow import slow

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, DECODED = 40, 32
TOLERANCE = 1e-4
# The reference family is this project's own; its computation is in test_module.py.
THEIRS = tuple(family for family in FAMILIES if family != "reference")


@dataclass(frozen=True)
class Case:
    """A family's smallest config, or a variant of it."""

    family: str
    variant: str = "default"

    def __str__(self) -> str:
        return f"{self.family} {self.variant}"

    @property
    def config(self) -> dict[str, Any]:
        family = FAMILIES[self.family]
        changes = {} if self.variant == "default" else family.variants[self.variant]
        return {**family.tiny, **changes}


CASES = tuple(
    Case(family, variant)
    for family in THEIRS
    for variant in ("default", *FAMILIES[family].variants)
)


@torch.no_grad()
def save_random(config: dict[str, Any], path: Path, **options: Any) -> transformers.PreTrainedModel:
    """A model of transformers, saved by it: uneven norms, no bias, sink or correction zero."""
    torch.manual_seed(0)
    values = {key: value for key, value in config.items() if key != "model_type"}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(config["model_type"], **values),
        attn_implementation="eager",
        experts_implementation="eager",
    )
    for name, tensor in model.state_dict().items():
        if "bias" in name or "sinks" in name:
            tensor.uniform_(-0.3, 0.3)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    model.save_pretrained(path, **options)
    return model.eval()


@torch.no_grad()
def load_decoder(path: Path) -> Decoder:
    """The module in float32 with a checkpoint's weights."""
    checkpoint = Checkpoint(path)
    decoder = Decoder(checkpoint.spec)
    with checkpoint.tensors() as reader:
        parameters = dict(decoder.named_parameters())
        assert set(parameters) == set(parameter_shapes(checkpoint.spec))
        for name, parameter in parameters.items():
            parameter.copy_(reader.read(name))
    return decoder.eval()


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def make_prompt(vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, vocab_size, (1, PROMPT), generator=generator)


@dataclass(frozen=True)
class Pair:
    """The same weights here and there."""

    case: Case
    path: Path
    ours: Decoder
    theirs: transformers.PreTrainedModel


@pytest.fixture(
    scope="module",
    params=[case if case.variant == "default" else slow(case) for case in CASES],
    ids=str,
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    case: Case = request.param
    path = tmp_path_factory.mktemp("checkpoint")
    theirs = save_random(case.config, path)
    return Pair(case, path, load_decoder(path), theirs)


@torch.no_grad()
def test_logits_are_those_of_transformers(pair: Pair) -> None:
    ours, theirs = pair.ours, pair.theirs
    tokens = make_prompt(ours.spec.vocab_size)
    cache, their_cache = KeyValueCache(), transformers.DynamicCache(config=theirs.config)
    worst, alone = 0.0, set()
    for _ in range(1 + DECODED):
        expected = theirs(tokens, past_key_values=their_cache, use_cache=True).logits
        logits = ours(tokens, cache)
        worst = max(worst, relative_difference(logits, expected))
        tokens = expected[:, -1:].argmax(dim=-1)
        assert logits[0, -1].argmax() == tokens[0, 0]
        alone.add(int(tokens))
    print(f"{pair.case}: relative difference {worst:.1e}")
    assert cache.length == PROMPT + DECODED
    windows = [layer.window for layer in ours.spec.layers if layer.window is not None]
    assert 4 * max(windows, default=0) <= PROMPT + DECODED
    assert len(alone) > 4, "the model repeats itself: decoding proves little"
    assert worst <= TOLERANCE


@torch.no_grad()
def test_a_prompt_in_chunks_is_the_whole_prompt(pair: Pair) -> None:
    if pair.ours.spec.rope.kind == "dynamic":
        pytest.skip("its rotation depends on the length at each chunk")
    tokens, cache = make_prompt(pair.ours.spec.vocab_size), KeyValueCache()
    chunks = [pair.ours(chunk, cache) for chunk in tokens.split(7, dim=-1)]
    assert relative_difference(torch.cat(chunks, dim=1), pair.ours(tokens)) <= TOLERANCE


def test_every_tensor_is_a_parameter(pair: Pair) -> None:
    family = FAMILIES[pair.case.family]
    known = {family.locate(name).name for name in parameter_shapes(pair.ours.spec)}
    saved = set()
    for file in pair.path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            saved |= set(handle.keys())
    assert saved == known


@torch.no_grad()
@pytest.mark.parametrize("family", THEIRS)
def test_half_precision_and_shards_load(family: str, tmp_path: Path) -> None:
    config = {**Case(family).config, "dtype": "bfloat16"}
    theirs = save_random(config, tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tokens = make_prompt(config["vocab_size"])
    expected = theirs.float()(tokens).logits
    assert relative_difference(load_decoder(tmp_path)(tokens), expected) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_variants_switch_something(family: str) -> None:
    read, tiny = FAMILIES[family].read_config, FAMILIES[family].tiny
    variants = FAMILIES[family].variants
    specs = [read(tiny), *(read({**tiny, **changes}) for changes in variants.values())]
    assert len(set(specs)) == len(specs) >= 3
    assert {spec.family for spec in specs} == {family}
    assert {spec.tie_word_embeddings for spec in specs} == {False, True}


@pytest.mark.parametrize(
    ("model_type", "hint"), [("mixtrall", "mixtral"), ("gpt-oss", "gpt_oss"), ("lama", "llama")]
)
def test_a_family_with_a_near_name(model_type: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {hint}"):
        find_family({"model_type": model_type})


def test_a_config_without_a_family() -> None:
    with pytest.raises(ConfigError, match="model_type = None"):
        find_family({})
