"""A machine's figures from a bundle's run: the speed of a backbone, a layer's other time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from ...bundle.manifest import Manifest
from ...bundle.weight_index import weights_file
from ...errors import InputError
from ...runtime.memory.budget import AUTO
from ...runtime.opening import open_bundle
from ...runtime.session import Session
from ..planning.limits import MachineSpeed

_TOKENS = (1, 40)  # to warm up, to measure
_TOKEN, _CONTEXT, _CHUNK = 7, 256, 128


@dataclass(frozen=True)
class _Times:
    """Medians in seconds: of the first segment, from a layer's routing to the next one's, and from
    the last layer's routing to the logits. missed: pages that were read meanwhile."""

    first: float
    layer: float
    last: float
    missed: int


def measure_bundle(path: Path, speed: MachineSpeed, *, threads: int, native: bool) -> MachineSpeed:
    """`speed` with what a bundle's own run shows. native: expert_bandwidth was measured.

    One token is run again and again, so that all its pages are in memory. The first segment runs
    before any expert, so the time of a segment and that of a layer's experts can be told apart; and
    the last segment has the head, so that bytes and what does not depend on them can be too.

    Raises:
        InputError: the pages of a token do not fit into memory, or there is one paged layer only.
        BundleError, BudgetError: as in open_bundle.
    """
    with open_bundle(
        path, memory_budget=AUTO, threads=threads, context=_CONTEXT, prefetch="off"
    ) as session:
        manifest = session.manifest
        if len(manifest.experts) < 2:
            raise InputError(f"{path} has fewer than two paged layers; measure by another bundle")
        _run(session, 1, _TOKENS[0])
        token = _run(session, 1, _TOKENS[1])
        if token.missed:
            raise InputError(
                f"the pages of one token of {path} do not fit into the free memory; "
                "measure by a smaller bundle"
            )
        _run(session, min(_CHUNK, session.context), 1)
        prompt = _run(session, min(_CHUNK, session.context), 2)
    return fit_speed(manifest, speed, token, prompt, native=native)


def fit_speed(
    manifest: Manifest, speed: MachineSpeed, token: _Times, prompt: _Times, *, native: bool
) -> MachineSpeed:
    """The figures that explain the times of one token and of a chunk."""
    sizes = [manifest.files[weights_file(segment)].size for segment in manifest.segments]
    scale = manifest.backbone_bytes / sum(sizes)
    first, inner, last = sizes[0] * scale, median(sizes[1:-1]) * scale, sizes[-1] * scale
    # Three times, three unknowns: of a segment's bytes, of what it takes besides, of a layer's
    # experts.
    backbone = first / token.first
    if last > inner and token.last > token.layer:
        backbone = max(backbone, (last - inner) / (token.last - token.layer))
    besides = token.first - first / backbone
    experts = max(token.layer - inner / backbone - besides, token.layer / 100)
    pages = manifest.footprint.token_page_bytes / len(manifest.experts)
    expert_bandwidth = speed.expert_bandwidth if native else pages / experts
    besides += max(0.0, experts - pages / expert_bandwidth)
    chunk_experts = max(prompt.layer - prompt.first * inner / first, prompt.layer / 100)
    expert_rate = _CHUNK * pages / chunk_experts
    return replace(
        speed,
        expert_bandwidth=expert_bandwidth,
        backbone_bandwidth=backbone,
        layer_seconds=max(besides, 1e-6),
        backbone_rate=_CHUNK * first / prompt.first,
        expert_rate=speed.expert_rate if prompt.missed else expert_rate,
    )


def _run(session: Session, tokens: int, times: int) -> _Times:
    marks: list[float] = []

    def observe(index: int, out: dict[str, np.ndarray]) -> None:
        marks.append(time.perf_counter())

    ids = [(_TOKEN + 31 * i) % session.manifest.spec.vocab_size for i in range(tokens)]
    before = session.stats.page_misses
    steps = []
    for _ in range(times):
        session.reset()
        marks.clear()
        marks.append(time.perf_counter())
        session.forward(ids, last_only=True, observe=observe)
        steps.append(np.diff(marks))
    parts = np.median(np.array(steps), axis=0)
    return _Times(
        first=float(parts[0]),
        layer=float(np.median(parts[1:-1])),
        last=float(parts[-1]),
        missed=session.stats.page_misses - before,
    )
