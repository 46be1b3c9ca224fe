"""Every routing rule against its definition in float64, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketmoe.errors import ConfigError
from pocketmoe.model.module import GatedFFN
from pocketmoe.model.rope import RopeSpec
from pocketmoe.model.routing import Route, choose_experts, load_balancing_loss, run_experts
from pocketmoe.model.spec import LayerSpec, ModelSpec, RouterSpec

pytestmark = pytest.mark.usefixtures("one_thread")

RULES = {
    "softmax": RouterSpec(16, 3),
    "normalized": RouterSpec(16, 3, normalize=True),
    "scaled": RouterSpec(16, 3, normalize=True, scale=2.5),
    "sigmoid": RouterSpec(16, 3, scoring="sigmoid", normalize=True, least_sum=1e-20),
    "corrected": RouterSpec(16, 3, scoring="sigmoid", normalize=True, correction=True),
    "softmax corrected": RouterSpec(16, 3, normalize=True, correction=True, least_sum=0.3),
    "groups by the best": RouterSpec(16, 4, num_groups=4, top_groups=2, scale=16.0),
    "groups by two": RouterSpec(
        16, 4, scoring="sigmoid", normalize=True, correction=True, num_groups=4, top_groups=2,
        group_score="top2",
    ),
    "one group of all": RouterSpec(16, 16, scoring="sigmoid"),
    "sparsemixer": RouterSpec(16, 2, scoring="sparsemixer", jitter=0.2),
}  # fmt: skip


def defined_route(
    logits: np.ndarray, rule: RouterSpec, correction: np.ndarray | None
) -> dict[int, float]:
    """Expert → weight of one token, in float64."""
    if rule.scoring == "sparsemixer":
        return sparsemixer(logits, rule.jitter)
    if rule.scoring == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    choice = scores if correction is None else scores + correction
    groups = np.split(np.arange(rule.num_experts), rule.num_groups)
    best = 2 if rule.group_score == "top2" else 1
    ranked = sorted(groups, key=lambda group: -np.sort(choice[group])[-best:].sum())
    open_to = np.concatenate(ranked[: rule.top_groups])
    chosen = sorted(open_to.tolist(), key=lambda expert: -choice[expert])[: rule.top_k]
    weights = scores[chosen]
    if rule.normalize:
        weights = weights / max(weights.sum(), rule.least_sum)
    return dict(zip(chosen, weights * rule.scale, strict=True))


def sparsemixer(logits: np.ndarray, jitter: float) -> dict[int, float]:
    weights: dict[int, float] = {}
    for _ in range(2):
        left = [expert for expert in range(len(logits)) if expert not in weights]
        top = max(left, key=lambda expert: logits[expert])
        largest = logits[top]
        near = [
            expert
            for expert in left
            if (largest - logits[expert]) / max(abs(logits[expert]), largest) <= 2 * jitter
        ]
        weights[top] = np.exp(largest) / np.exp(logits[near]).sum()
    return weights


@pytest.mark.parametrize("name", RULES)
def test_a_route_is_its_definition(name: str) -> None:
    rule = RULES[name]
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, rule.num_experts, generator=generator)
    correction = None
    if rule.correction:
        correction = 0.3 * torch.randn(rule.num_experts, generator=generator)
    route = choose_experts(logits, rule, correction)
    numbers = None if correction is None else correction.double().numpy()
    for token, experts, weights in zip(
        logits.double().numpy(), route.experts.tolist(), route.weights.tolist(), strict=True
    ):
        expected = defined_route(token, rule, numbers)
        assert dict(zip(experts, weights, strict=True)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (RouterSpec(4, 5), "experts per token (5)"),
        (RouterSpec(4, 0), "experts per token (0)"),
        (RouterSpec(6, 2, num_groups=4), "4 groups"),
        (RouterSpec(8, 2, num_groups=2, top_groups=3), "3 of them"),
        (RouterSpec(8, 5, num_groups=2, top_groups=1), "1 groups of 4"),
        (RouterSpec(4, 1, num_groups=4, group_score="top2"), "at least 2"),
        (RouterSpec(4, 3, scoring="sparsemixer"), "must be 2"),
        (RouterSpec(4, 1, scoring="always"), "one expert"),
    ],
)
def test_rules_that_do_not_work_out_are_refused(rule: RouterSpec, named: str) -> None:
    layers = (LayerSpec(None, 32), LayerSpec(None, 32, rule))
    with pytest.raises(ConfigError, match="layer 1") as caught:
        ModelSpec("reference", 8, 64, 4, 2, 16, 64, RopeSpec(1e4, 16), 1e-5, True, layers)
    assert named in str(caught.value)


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
