"""Bits where they matter: how each expert is stored, so that their average is kept.

A multiple-choice knapsack: one candidate for each expert, the sum of their measured errors as small
as can be, the weights' bits on average at most what was asked for. Solved as an integer program,
but for few experts of many: what cannot be in any optimum is found by the Lagrangian bound first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from ...bundle.manifest import AverageBits
from ...bundle.pages import PRECISIONS, PageFormat
from ...calibration.candidates import Candidate, candidates_named
from ...calibration.record import CalibrationRecord
from ...errors import InputError
from ...model.spec import ModelSpec
from ...targets import Target

_TOLERANCE = 1e-9  # relative, of sums in float64


@dataclass(frozen=True)
class BitsPlan:
    """formats: of each expert of each paged layer. error: the sum of the measured errors."""

    formats: Mapping[int, tuple[PageFormat, ...]]
    average: AverageBits
    error: float

    @property
    def precision(self) -> str:
        """All that experts are stored in, as "int4+int8"."""
        used = {item.precision for layer in self.formats.values() for item in layer}
        return "+".join(name for name in PRECISIONS if name in used)


def plan_bits(
    record: CalibrationRecord, spec: ModelSpec, target: Target, asked: float, where: Path
) -> BitsPlan:
    """Chooses for each expert; for a GPU, whose graphs are made for a layer's pages, by layer.

    asked: bits of each expert weight, on average, scales included. where: the record's path.

    Raises:
        InputError: the record has no errors, or so few or so many bits are impossible.
    """
    if not record.candidates:
        raise InputError(f"{where} does not say what bits are worth; calibrate again for --bits")
    try:
        candidates = candidates_named(record.candidates)
    except KeyError as error:
        raise InputError(
            f"{where} has experts stored as {error}, which this pocketmoe does not know; calibrate "
            "again"
        ) from None
    allowed = [n for n, item in enumerate(candidates) if item.precision in target.precisions]
    if not allowed:
        raise InputError(
            f"--bits has nothing to choose from for target {target.name}, which has "
            f"{', '.join(target.precisions)}; leave it out"
        )
    candidates = tuple(candidates[n] for n in allowed)
    bits = np.array([item.bits for item in candidates])
    if not bits.min() <= asked <= bits.max():
        raise InputError(
            f"--bits {asked:g} cannot be met: experts of this model on {target.name} take from "
            f"{bits.min():g} to {bits.max():g} bits per weight; choose a value in between"
        )
    tied = target.kind == "gpu"
    errors, sizes = [], []
    for item in record.layers:
        found = item.errors[:, allowed].astype(np.float64)
        size = 3.0 * spec.hidden_size * spec.layers[item.layer].intermediate_size
        errors.append(found.sum(axis=0, keepdims=True) if tied else found)
        sizes.append(np.full(len(errors[-1]), size * (len(found) if tied else 1)))
    all_errors, all_sizes = np.concatenate(errors), np.concatenate(sizes)
    chosen = choose_candidates(all_errors, all_sizes, bits, asked)
    reached = float(all_sizes @ bits[chosen] / all_sizes.sum())
    formats, start = {}, 0
    for item, part in zip(record.layers, errors, strict=True):
        own = chosen[start : start + len(part)]
        start += len(part)
        formats[item.layer] = tuple(
            _page_format(candidates[n], spec, item.layer)
            for n in np.broadcast_to(own, len(item.errors))
        )
    least = float(all_errors[np.arange(len(chosen)), chosen].sum())
    return BitsPlan(formats, AverageBits(asked, reached), least)


def _page_format(item: Candidate, spec: ModelSpec, layer: int) -> PageFormat:
    return PageFormat(
        item.precision, item.block_size, spec.hidden_size, spec.layers[layer].intermediate_size,
        bias=spec.expert_bias, activation=spec.activation,
    )  # fmt: skip


def choose_candidates(
    errors: np.ndarray, sizes: np.ndarray, bits: np.ndarray, most: float
) -> np.ndarray:
    """An index into `bits` for each of G: the sum of their errors is the smallest that is possible
    with Σ size · bits at most `most` · Σ size.

    errors: `[G, C]`; sizes: `[G]`; bits: `[C]`. The least bits of all must fit.
    """
    finite = np.isfinite(errors)
    worst = float(errors[finite].max(initial=0.0)) or 1.0
    errors = np.where(finite, errors, 1e6 * worst * len(errors)) / worst
    costs = sizes[:, None] / sizes.mean() * bits
    room = most * len(sizes) * (1 + _TOLERANCE)
    price = _find_price(errors, costs, room)
    priced = errors + price * costs
    least = priced.min(axis=1, keepdims=True)
    chosen = _fill(errors, costs, room, _cheapest(priced, costs))
    best = errors[np.arange(len(chosen)), chosen].sum()
    gap = best - (least.sum() - price * room)
    if gap <= _TOLERANCE * best:
        return chosen
    # With any of the others, even the bound is worse than what was found.
    open_ = priced - least <= gap * (1 + _TOLERANCE)
    open_[np.arange(len(chosen)), chosen] = True
    found = _solve(errors, costs, room, open_, gap)
    if found is None:
        return chosen
    better = errors[np.arange(len(found)), found].sum() < best
    return found if better else chosen


def _cheapest(priced: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The best at a price; of several as good, the one of the fewest bits."""
    ties = priced <= priced.min(axis=1, keepdims=True)
    return np.where(ties, costs, np.inf).argmin(axis=1)


def _find_price(errors: np.ndarray, costs: np.ndarray, room: float) -> float:
    """What a bit costs, in errors, at the least for which everyone's own best choice fits."""

    def fits(price: float) -> bool:
        picked = _cheapest(errors + price * costs, costs)
        return bool(costs[np.arange(len(picked)), picked].sum() <= room)

    if fits(0.0):
        return 0.0
    high = 1e-12
    while not fits(high):
        high *= 16
    low = high / 16 if high > 1e-12 else 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _fill(errors: np.ndarray, costs: np.ndarray, room: float, chosen: np.ndarray) -> np.ndarray:
    """Spends what is left on the steps that gain most for their bits."""
    chosen = chosen.copy()
    every = np.arange(len(chosen))
    left = room - costs[every, chosen].sum()
    gains = errors[every, chosen][:, None] - errors
    steps = costs - costs[every, chosen][:, None]
    worth = np.where((gains > 0) & (steps > 0), gains / np.where(steps > 0, steps, 1), -np.inf)
    for flat in np.argsort(-worth, axis=None, kind="stable"):
        group, candidate = divmod(int(flat), costs.shape[1])
        if worth[group, candidate] == -np.inf:
            break
        step = costs[group, candidate] - costs[group, chosen[group]]
        gain = errors[group, chosen[group]] - errors[group, candidate]
        if gain > 0 and step <= left:
            chosen[group], left = candidate, left - step
    return chosen


def _solve(
    errors: np.ndarray, costs: np.ndarray, room: float, open_: np.ndarray, gap: float
) -> np.ndarray | None:
    """The integer program over the candidates that are open; None where it has no answer."""
    chosen = open_.argmax(axis=1)
    undecided = np.flatnonzero(open_.sum(axis=1) > 1)
    decided = np.flatnonzero(open_.sum(axis=1) == 1)
    left = room - costs[decided, chosen[decided]].sum()
    groups, candidates = np.nonzero(open_[undecided])
    rows = undecided[groups]
    count = len(rows)
    one_each = coo_array((np.ones(count), (groups, np.arange(count))))
    # In units of what is to be gained, as the solver has absolute tolerances.
    objective = (errors[rows, candidates] - errors[rows].min(axis=1)) * (1e3 / gap)
    result = milp(
        objective,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs[rows, candidates][None, :], -np.inf, left),
        ],
        options={"mip_rel_gap": 0.0, "time_limit": 60.0},
    )
    if result.x is None:
        return None
    taken = np.flatnonzero(result.x > 0.5)
    if len(taken) != len(undecided):
        return None
    chosen[rows[taken]] = candidates[taken]
    used = costs[np.arange(len(chosen)), chosen].sum()
    return chosen if used <= room * (1 + _TOLERANCE) else None
