"""The reference module: parameters, attention, cache, and every switch of its config."""

from typing import Any

import numpy as np
import pytest
import torch

from pocketmoe.model.attention import KeyValueCache
from pocketmoe.model.families import find_family
from pocketmoe.model.module import Decoder, DecoderLayer
from pocketmoe.model.parameters import (
    count_parameters,
    expert_shapes,
    layer_shapes,
    parameter_shapes,
)
from pocketmoe.model.routing import Route, load_balancing_loss
from pocketmoe.model.spec import ModelSpec, spec_from_json
from pocketmoe.model.train.presets import PRESETS, find_preset
from pocketmoe.model.train.training import initialize

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5


def make_spec(preset: str = "tiny", **changes: Any) -> ModelSpec:
    config = {**find_preset(preset), **changes}
    return find_family(config).read_config(config)


def make_decoder(**changes: Any) -> Decoder:
    """The tiny preset with changes, wide random weights and uneven norms."""
    decoder = Decoder(make_spec(**changes))
    initialize(decoder, {"initializer_range": 0.2}, seed=0)
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return decoder.eval()


def module_shapes(module: torch.nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(p.shape) for name, p in module.named_parameters()}


@pytest.mark.parametrize("preset", ["tiny", "demo"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_shapes_are_the_modules(preset: str, tied: bool) -> None:
    spec = make_spec(preset, tie_word_embeddings=tied)
    with torch.device("meta"):
        decoder = Decoder(spec)
    assert parameter_shapes(spec) == module_shapes(decoder)
    total = sum(p.numel() for p in decoder.parameters())
    assert count_parameters(spec).total == total


def test_layer_shapes_of_the_large_preset() -> None:
    spec = make_spec("80b-a10b")
    for layer in (0, 1, 2, 3, 39):
        with torch.device("meta"):
            shapes = module_shapes(DecoderLayer(spec, layer), f"layers.{layer}.")
        router = spec.layers[layer].router
        experts: dict[str, tuple[int, ...]] = {}
        for expert in range(router.num_experts if router else 0):
            experts |= expert_shapes(spec, layer, expert)
        assert layer_shapes(spec, layer) | experts == shapes


def test_the_large_preset_is_as_large_as_its_name() -> None:
    count = count_parameters(make_spec("80b-a10b"))
    assert count.total == pytest.approx(80e9, rel=0.02)
    assert count.active == pytest.approx(10e9, rel=0.05)
    spec = make_spec("80b-a10b")
    shapes = parameter_shapes(spec)
    assert count.total == sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_spec_survives_json(preset: str) -> None:
    spec = make_spec(preset)
    assert spec_from_json(spec.to_json()) == spec


@torch.no_grad()
@pytest.mark.parametrize("chunks", [(40,), (1,) * 40, (13, 1, 1, 25), (17, 23)], ids=str)
def test_decoding_in_chunks_equals_one_pass(chunks: tuple[int, ...]) -> None:
    decoder = make_decoder()
    assert {layer.window for layer in decoder.spec.layers} == {16, None}
    tokens = torch.randint(0, 384, (1, 40), generator=torch.Generator().manual_seed(1))
    expected = decoder(tokens)
    cache = KeyValueCache()
    logits = torch.cat([decoder(part, cache) for part in tokens.split(chunks, dim=1)], dim=1)
    assert cache.length == 40
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_sequences_of_a_batch_do_not_touch() -> None:
    decoder = make_decoder()
    tokens = torch.randint(0, 384, (3, 24), generator=torch.Generator().manual_seed(1))
    alone = torch.cat([decoder(row[None]) for row in tokens])
    together = decoder(tokens)
    assert (together - alone).abs().max() <= TOLERANCE * alone.abs().max()


@torch.no_grad()
def test_a_windowed_layer_forgets() -> None:
    decoder = make_decoder(full_attention_every=100, sliding_window=4, num_hidden_layers=2)
    tokens = torch.randint(0, 384, (1, 20), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 384
    differs = (decoder(tokens) - decoder(changed)).abs().amax(dim=-1)[0] > 1e-3
    # Each of the two layers reaches back 3 tokens.
    assert differs.tolist() == [True] * 7 + [False] * 13


def test_balancing_reaches_the_routers_alone_through_probabilities() -> None:
    decoder = make_decoder()
    routes: list[Route] = []
    decoder(torch.arange(32)[None], routes=routes)
    assert len(routes) == len(decoder.spec.paged_layers)
    for route in routes:
        assert torch.allclose(route.weights.sum(dim=-1), torch.ones(32))
        assert torch.allclose(route.probabilities.sum(dim=-1), torch.ones(32))
    load_balancing_loss(routes).backward()
    last = decoder.layers[decoder.spec.paged_layers[-1]]
    assert last.router.weight.grad.abs().sum() > 0


def names(decoder: Decoder) -> str:
    return " ".join(module_shapes(decoder))


@torch.no_grad()
@pytest.mark.parametrize(
    ("switch", "parameter"),
    [
        ({"attention_gate": False}, "gate_proj"),
        ({"post_norm": False}, "post_norm"),
        ({"qk_norm": False}, "q_norm"),
        ({"shared_intermediate_size": 0}, "shared"),
        ({"dense_layers": []}, ".ffn."),
    ],
    ids=str,
)
def test_a_switch_takes_its_parameters_away(switch: dict[str, Any], parameter: str) -> None:
    on, off = make_decoder(), make_decoder(**switch)
    assert parameter in names(on)
    assert parameter not in names(off)
    assert parameter_shapes(off.spec) == module_shapes(off)
    tokens = torch.arange(24)[None]
    # Even with every shared weight the same, the result is another.
    off.load_state_dict(
        {n: p for n, p in on.state_dict().items() if n in off.state_dict()}, strict=False
    )
    assert not torch.allclose(on(tokens), off(tokens))


@torch.no_grad()
@pytest.mark.parametrize(
    "switch",
    [
        {"sliding_window": None},
        {"full_attention_every": 1},
        {"norm_topk_prob": False},
        {"num_experts_per_tok": 1},
        {"rope_theta": 100.0},
    ],
    ids=str,
)
def test_a_switch_without_parameters_changes_the_result(switch: dict[str, Any]) -> None:
    on, off = make_decoder(), make_decoder(**switch)
    off.load_state_dict(on.state_dict())
    tokens = torch.arange(24)[None]
    assert not torch.allclose(on(tokens), off(tokens))


@torch.no_grad()
def test_the_attention_gate_is_a_sigmoid() -> None:
    gated, plain = make_decoder(), make_decoder(attention_gate=False)
    plain.load_state_dict({n: p for n, p in gated.state_dict().items() if "gate_proj" not in n})
    for ours, other in zip(gated.layers, plain.layers, strict=True):
        ours.attention.gate_proj.weight.zero_()  # sigmoid(0) = 1/2
        other.attention.o_proj.weight /= 2
    tokens = torch.arange(24)[None]
    expected = plain(tokens)
    assert (gated(tokens) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_dense_layers_route_nothing() -> None:
    routes: list[Route] = []
    make_decoder(dense_layers=[0, 1, 2])(torch.arange(8)[None], routes=routes)
    assert len(routes) == 1


def test_initialisation_shrinks_with_depth() -> None:
    spec = make_spec()
    decoder = Decoder(spec)
    initialize(decoder, find_preset("tiny"), seed=0)
    depth = (2 * spec.num_hidden_layers) ** -0.5
    for layer in decoder.layers:
        assert torch.all(layer.ffn_post_norm.weight == torch.tensor(depth))
        assert torch.all(layer.ffn_norm.weight == 1)
    plain = Decoder(make_spec(post_norm=False))
    initialize(plain, find_preset("tiny"), seed=0)
    attention = plain.layers[0].attention
    assert attention.o_proj.weight.std().item() == pytest.approx(0.02 * depth, rel=0.1)
    assert attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
