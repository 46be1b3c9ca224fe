"""The choice of a token's experts, in PyTorch: every rule of RouterSpec, each once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .spec import RouterSpec


@dataclass(frozen=True)
class Route:
    """What a router decided for N tokens.

    probabilities: `[N, num_experts]` scores of the logits; weights and experts: `[N, top_k]`.
    """

    probabilities: Tensor
    weights: Tensor
    experts: Tensor


def choose_experts(logits: Tensor, router: RouterSpec, correction: Tensor | None = None) -> Route:
    """Scores in float32, the top k of them, weighted; logits `[N, num_experts]`."""
    logits = logits.float()
    if router.scoring == "sparsemixer":
        return _sparsemixer(logits, router)
    sigmoid = router.scoring == "sigmoid"
    scores = torch.sigmoid(logits) if sigmoid else torch.softmax(logits, dim=-1)
    choice = scores if correction is None else scores + correction
    if router.num_groups > router.top_groups:
        choice = _in_best_groups(choice, router)
    top, experts = torch.topk(choice, router.top_k, dim=-1)
    weights = top if choice is scores else torch.gather(scores, -1, experts)
    if router.normalize:
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / (total.clamp(min=router.least_sum) if router.least_sum else total)
    if router.scale != 1.0:
        weights = weights * router.scale
    return Route(scores, weights, experts)


def everyone(tokens: Tensor) -> Route:
    """The one expert, with weight 1, for tokens `[N, hidden]`."""
    ones = torch.ones_like(tokens[:, :1], dtype=torch.float32)
    return Route(ones, ones, torch.zeros_like(ones, dtype=torch.int64))


def _in_best_groups(choice: Tensor, router: RouterSpec) -> Tensor:
    """`choice` with -inf for experts outside the best groups (DeepSeek-V2 and V3)."""
    size = router.num_experts // router.num_groups
    grouped = choice.unflatten(-1, (router.num_groups, size))
    if router.group_score == "top2":
        group_scores = torch.topk(grouped, 2, dim=-1).values.sum(dim=-1)
    else:
        group_scores = grouped.amax(dim=-1)
    best = torch.topk(group_scores, router.top_groups, dim=-1).indices
    kept = torch.zeros_like(group_scores).scatter(-1, best, 1.0)
    return torch.where(kept.unsqueeze(-1) > 0, grouped, float("-inf")).flatten(-2)


def _sparsemixer(logits: Tensor, router: RouterSpec) -> Route:
    """At inference: the largest logit, twice (arXiv:2409.12136)."""
    weights, experts = [], []
    left = logits
    for _ in range(router.top_k):
        largest, expert = left.max(dim=-1, keepdim=True)
        distance = (largest - logits) / torch.maximum(logits.abs(), largest)
        near = torch.where(distance > 2 * router.jitter, float("-inf"), left)
        weights.append(torch.softmax(near, dim=-1).gather(-1, expert))
        experts.append(expert)
        left = left.scatter(-1, expert, float("-inf"))
    scores = torch.softmax(logits, dim=-1)
    return Route(scores, torch.cat(weights, dim=-1), torch.cat(experts, dim=-1))


def run_experts(experts: nn.ModuleList, tokens: Tensor, route: Route) -> Tensor:
    """Weighted sum of each token's experts; tokens `[N, hidden]`, grouped by expert."""
    top_k = route.experts.shape[-1]
    order = torch.argsort(route.experts.flatten(), stable=True)
    counts = torch.bincount(route.experts.flatten(), minlength=len(experts)).tolist()
    rows = order // top_k
    parts = tokens[rows].split(counts)
    outs = [expert(part) for expert, part in zip(experts, parts, strict=True) if len(part)]
    weighted = torch.cat(outs) * route.weights.flatten()[order, None]
    return torch.zeros_like(tokens).index_add(0, rows, weighted.to(tokens.dtype))


def load_balancing_loss(routes: list[Route]) -> Tensor:
    """Mean over layers of E · Σ_e f_e · P_e: share of slots times mean probability.

    It is 1 where the load is even (Switch Transformer, arXiv:2101.03961, eq. 4–6, for top k).
    """
    losses = []
    for route in routes:
        num_experts = route.probabilities.shape[-1]
        share = torch.bincount(route.experts.flatten(), minlength=num_experts).float()
        share = share / route.experts.numel()
        losses.append(num_experts * (share * route.probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()
