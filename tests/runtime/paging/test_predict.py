"""What is guessed of the next layer: its router's own choice, and when guesses are acted on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import pocketmoe
from pocketmoe.bundle.footprint import predicted_layers
from pocketmoe.compiler.predictors import write_predictors
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.module import Decoder
from pocketmoe.runtime.paging.predict import WORTHWHILE, Predictor
from pocketmoe.runtime.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = np.random.default_rng(0).integers(1, 384, 200).tolist()
# Its groups are not looked at: see test_groups_are_not_looked_at.
ONE_GROUP = {"n_group": 1, "topk_group": 1}
CASES = {
    "olmoe": {}, "qwen3_moe": {}, "phimoe": {}, "deepseek_v3": ONE_GROUP, "ernie4_5_moe": {},
    "gpt_oss": {},
}  # fmt: skip


@torch.no_grad()
def make_decoder(family: str, changes: dict[str, int]) -> Decoder:
    """At random: uneven norms, no bias or correction zero, at least four layers."""
    config = {**FAMILIES[family].tiny, **changes}
    spec = FAMILIES[family].read_config(config)
    last = spec.layers[-1]
    assert last.is_moe
    decoder = Decoder(dataclasses.replace(spec, layers=(*spec.layers, last, last)))
    torch.manual_seed(0)
    for name, parameter in decoder.named_parameters():
        if name.endswith("correction"):
            parameter.uniform_(-0.2, 0.2)  # some decide, as in a trained model
        elif "bias" in name:
            parameter.uniform_(-0.5, 0.5)
        elif parameter.ndim == 1:
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.normal_(0, 0.2)
    return decoder


def make_predictor(decoder: Decoder, root: Path) -> Predictor:
    parameters = dict(decoder.named_parameters())

    def read(name: str) -> Iterator[np.ndarray]:
        yield from np.array_split(parameters[name].detach().numpy(), 2)

    (root / "backbone").mkdir()
    write_predictors(root, decoder.spec, read)
    return Predictor(root, decoder.spec)


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_it_is_the_choice_of_the_router(family: str, tmp_path: Path) -> None:
    decoder = make_decoder(family, CASES[family])
    spec, predictor = decoder.spec, make_predictor(decoder, tmp_path)
    layers = predicted_layers(spec)
    assert len(layers) >= 2
    hidden = 3 * torch.randn(100, spec.hidden_size) + 0.5
    others = 0
    for layer in layers:
        before = spec.paged_layers[spec.paged_layers.index(layer) - 1]
        module, router = decoder.layers[layer], spec.layers[layer].router
        assert router is not None
        chosen = module.route(module.ffn_norm(hidden)).experts.tolist()
        for row, experts in zip(hidden.numpy(), chosen, strict=True):
            guess = predictor.guess(before, row[None], router.top_k)
            assert guess is not None
            assert guess[0] == layer
            assert set(guess[1]) == set(experts)
        others += len({frozenset(experts) for experts in chosen})
    assert others > 5 * len(layers)
    assert predictor.guess(spec.paged_layers[-1], hidden[:1].numpy(), 2) is None


@torch.no_grad()
def test_of_several_tokens_the_experts_of_any_come_the_commonest_first(tmp_path: Path) -> None:
    decoder = make_decoder("olmoe", CASES["olmoe"])
    predictor, layer = make_predictor(decoder, tmp_path), decoder.layers[-1]
    router = decoder.spec.layers[-1].router
    assert router is not None
    hidden = torch.randn(5, decoder.spec.hidden_size)
    chosen = Counter(layer.route(layer.ffn_norm(hidden)).experts.flatten().tolist())
    guess = predictor.guess(decoder.spec.paged_layers[-2], hidden.numpy(), router.top_k)
    assert guess is not None
    assert set(guess[1]) == set(chosen)
    counts = [chosen[expert] for expert in guess[1]]
    assert counts == sorted(counts, reverse=True)


@torch.no_grad()
def test_groups_are_not_looked_at(tmp_path: Path) -> None:
    decoder = make_decoder("deepseek_v3", {})
    predictor, layer = make_predictor(decoder, tmp_path), decoder.layers[-1]
    router = decoder.spec.layers[-1].router
    assert router is not None
    assert router.num_groups > router.top_groups
    hidden = torch.randn(100, decoder.spec.hidden_size)
    right = 0
    chosen = layer.route(layer.ffn_norm(hidden)).experts
    for row, experts in zip(hidden.numpy(), chosen, strict=True):
        guess = predictor.guess(decoder.spec.paged_layers[-2], row[None], router.top_k)
        assert guess is not None
        right += len(set(guess[1]) & set(experts.tolist()))
    assert WORTHWHILE < right / (100 * router.top_k) < 1


def decode_some(session: Session, tokens: list[int]) -> int:
    """Pages that were read early meanwhile."""
    before = session.stats.early_pages
    for token in tokens:
        session.forward([token], last_only=True)
    return session.stats.early_pages - before


def shuffled(session: Session) -> None:
    predictor = session._runner.predictor
    assert predictor is not None
    for weights in predictor._weights.values():
        np.random.default_rng(1).shuffle(weights, axis=1)


@pytest.mark.parametrize("prefetch", ["auto", "on"])
def test_guesses_that_are_mostly_wrong_are_not_acted_on(prefetch: str, tiny_bundle: Path) -> None:
    with pocketmoe.open(tiny_bundle, prefetch=prefetch) as session:
        plan = session.plan
        session.set_memory_budget(plan.fixed + plan.predictor + 9 * plan.page)
        shuffled(session)
        assert decode_some(session, TOKENS[:100]) > 0  # as long as little is known
        accuracy = session.stats.guess_accuracy or 1
        assert accuracy < WORTHWHILE
        late = decode_some(session, TOKENS[100:])
        assert (late == 0) == (prefetch == "auto")
        assert session.stats.guess_accuracy != accuracy  # it goes on learning
