"""The reference module: parameters, attention, cache, and every switch of its config."""

from typing import Any

import numpy as np
import pytest
import torch

from pocketmoe.model.families import find_family
from pocketmoe.model.module import (
    Decoder,
    DecoderLayer,
    GatedFFN,
    KeyValueCache,
    Route,
    causal_attention,
    load_balancing_loss,
    rope_table,
    rotate,
    run_experts,
)
from pocketmoe.model.parameters import expert_shapes, layer_shapes, parameter_shapes
from pocketmoe.model.presets import PRESETS, find_preset
from pocketmoe.model.spec import ModelSpec, spec_from_json
from pocketmoe.model.train import initialize

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
    assert spec.count_parameters().total == total


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
    count = make_spec("80b-a10b").count_parameters()
    assert count.total == pytest.approx(80e9, rel=0.02)
    assert count.active == pytest.approx(10e9, rel=0.05)
    spec = make_spec("80b-a10b")
    shapes = parameter_shapes(spec)
    assert count.total == sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_spec_survives_json(preset: str) -> None:
    spec = make_spec(preset)
    assert spec_from_json(spec.to_json()) == spec


def numpy_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int | None) -> np.ndarray:
    """Attention as its definition says it, token by token and head by head, in float64."""
    queries, heads, head_dim = q.shape
    keys, kv_heads, _ = k.shape
    out = np.zeros((queries, heads, head_dim))
    for row in range(queries):
        position = keys - queries + row
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = k[first : position + 1, group] @ q[row, head] / np.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            out[row, head] = (weights / weights.sum()) @ v[first : position + 1, group]
    return out


@pytest.mark.parametrize("window", [None, 1, 2, 7, 19, 20, 50])
@pytest.mark.parametrize(("queries", "keys"), [(20, 20), (1, 20), (6, 20), (1, 1)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_attention_is_its_definition(
    window: int | None, queries: int, keys: int, heads: int, kv_heads: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(queries, heads, 8, generator=generator)
    k = torch.randn(keys, kv_heads, 8, generator=generator)
    v = torch.randn(keys, kv_heads, 8, generator=generator)
    expected = numpy_attention(*(x.double().numpy() for x in (q, k, v)), window)
    out = causal_attention(0, window, q, k, v).numpy()
    assert np.abs(out - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_rotation_is_a_complex_product() -> None:
    spec = make_spec()
    half = spec.head_dim // 2
    x = torch.randn(5, 3, spec.head_dim, generator=torch.Generator().manual_seed(0)).double()
    positions = torch.tensor([0, 1, 7, 100, 511])
    rates = spec.rope_theta ** (-np.arange(half) / half)
    turn = np.exp(1j * positions.numpy()[:, None, None] * rates)
    turned = (x[..., :half].numpy() + 1j * x[..., half:].numpy()) * turn
    out = rotate(x.float(), rope_table(spec, positions)).numpy()
    assert np.allclose(out, np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-4)


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


@torch.no_grad()
def test_experts_are_summed_token_by_token() -> None:
    torch.manual_seed(0)
    experts = torch.nn.ModuleList(GatedFFN(8, 6) for _ in range(5))
    tokens = torch.randn(12, 8)
    chosen = torch.stack([torch.randperm(4)[:2] for _ in range(12)])  # expert 4 gets none
    weights = torch.rand(12, 2)
    expected = torch.stack(
        [
            sum(w * experts[e](token) for e, w in zip(ids.tolist(), row, strict=True))
            for token, ids, row in zip(tokens, chosen, weights, strict=True)
        ]
    )
    out = run_experts(experts, tokens, Route(torch.empty(0), weights, chosen))
    assert torch.allclose(out, expected, atol=1e-6)


def make_route(experts: torch.Tensor, probabilities: torch.Tensor) -> Route:
    return Route(probabilities, torch.empty(experts.shape), experts)


def test_an_even_load_loses_1() -> None:
    experts = torch.tensor([[0, 1], [2, 3]] * 8)
    even = make_route(experts, torch.full((16, 4), 0.25))
    assert load_balancing_loss([even, even]).item() == pytest.approx(1.0)


def test_one_expert_for_all_loses_their_number() -> None:
    all_on_one = torch.zeros(16, 1, dtype=torch.int64)
    probabilities = torch.tensor([[1.0, 0, 0, 0]]).expand(16, 4)
    assert load_balancing_loss([make_route(all_on_one, probabilities)]).item() == pytest.approx(4.0)


def test_balancing_reaches_the_routers_alone_through_probabilities() -> None:
    decoder = make_decoder()
    routes: list[Route] = []
    decoder(torch.arange(32)[None], routes=routes)
    assert len(routes) == len(decoder.spec.moe_layers)
    for route in routes:
        assert torch.allclose(route.weights.sum(dim=-1), torch.ones(32))
        assert torch.allclose(route.probabilities.sum(dim=-1), torch.ones(32))
    load_balancing_loss(routes).backward()
    last = decoder.layers[decoder.spec.moe_layers[-1]]
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
