"""The predicted time of a token, against simulations of the layer loop and sums done by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pocketmoe.analysis.planning.limits import (
    MachineSpeed,
    assumed_speed,
    cached_bytes,
    estimate_prompt,
    estimate_speed,
    expected_layer_seconds,
    layer_seconds,
    touched_pages,
)
from pocketmoe.bundle.footprint import Footprint, LayerFootprint
from pocketmoe.bundle.pages import PageFormat
from pocketmoe.model.families import FAMILIES

SPEED = MachineSpeed(
    memory_bandwidth=20e9,
    storage_bandwidth=1.2e9,
    expert_bandwidth=15e9,
    backbone_bandwidth=12e9,
    layer_seconds=3e-4,
    expert_rate=60e9,
    backbone_rate=50e9,
)


def footprint(layers: int = 6, experts: int = 32, top_k: int = 4) -> Footprint:
    family = FAMILIES["mixtral"]
    page = PageFormat("int4", 64, 1024, 768)
    return Footprint(
        spec=family.read_config({**family.tiny, "sliding_window": None}),
        segments=layers + 1,
        backbone_bytes=100 << 20,
        experts=tuple(LayerFootprint(index, (page,), (experts,), top_k) for index in range(layers)),
    )


def simulated_layer(
    hits: int, missed: int, compute: float, read: float, early: float = 0.0
) -> float:
    """Event by event: pages come one after another, and whatever is there is computed."""
    arrivals = [0.0] * hits + [max(0.0, read * (i + 1) - early) for i in range(missed)]
    clock = 0.0
    for arrival in arrivals:
        clock = max(clock, arrival) + compute
    return clock


@pytest.mark.parametrize(("compute", "read"), [(1.0, 10.0), (1.0, 1.5), (3.0, 1.0), (1.0, 1.0)])
def test_a_layer_takes_what_its_events_take(compute: float, read: float) -> None:
    for top_k in range(1, 9):
        for missed in range(top_k + 1):
            for early in (0.0, 0.4, 1.3, 2.9, 50.0):
                expected = simulated_layer(top_k - missed, missed, compute, read, early)
                found = layer_seconds(top_k, missed, compute=compute, read=read, prefetched=early)
                assert found == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.4, 0.9, 1.0])
def test_the_expectation_is_that_of_many_simulated_layers(rate: float) -> None:
    random = np.random.default_rng(0)
    missed = (random.random((40_000, 8)) < rate).sum(axis=1)
    times = [simulated_layer(8 - m, m, 0.2, 2.6) for m in range(9)]
    simulated = float(np.mean([times[m] for m in missed]))
    assert expected_layer_seconds(8, rate, compute=0.2, read=2.6) == pytest.approx(
        simulated, rel=0.02
    )


def test_random_misses_take_longer_than_their_average() -> None:
    """The maximum of expectations would promise too much: half of the layers wait, half do not."""
    average = layer_seconds(2, 1, compute=1.0, read=1.9)
    assert expected_layer_seconds(2, 0.5, compute=1.0, read=1.9) > average


@pytest.mark.parametrize("hit_rate", [0.02, 0.3, 0.7, 0.97])
def test_a_token_takes_what_a_simulated_run_takes(hit_rate: float) -> None:
    """Uniform routes through a cache that holds a share of each layer's pages."""
    model = footprint()
    estimate = estimate_speed(model, SPEED, hit_rate=hit_rate)
    random = np.random.default_rng(1)
    compute = model.page_bytes / SPEED.expert_bandwidth
    read = model.page_bytes / 1.2e9
    total = 0.0
    tokens = 2000
    for _ in range(tokens):
        total += model.backbone_bytes / SPEED.backbone_bandwidth
        for layer in model.experts:
            chosen = random.permutation(layer.num_experts)[: layer.top_k]
            cached = random.random(layer.num_experts) < hit_rate
            hits = int(cached[chosen].sum())
            total += SPEED.layer_seconds
            total += simulated_layer(hits, layer.top_k - hits, compute, read)
    measured = total / tokens + estimate.attention_seconds
    assert estimate.seconds == pytest.approx(measured, rel=0.02)


def test_the_limit_is_the_slower_of_its_terms() -> None:
    model = footprint()
    pages = 6 * 4 * model.page_bytes
    estimate = estimate_speed(model, SPEED, hit_rate=0.75)
    assert estimate.limit_memory_seconds == pytest.approx((model.backbone_bytes + pages) / 20e9)
    assert estimate.limit_storage_seconds == pytest.approx(pages / 4 / 1.2e9)
    assert estimate.missed_bytes == pytest.approx(pages / 4)
    slower = max(estimate.limit_memory_seconds, estimate.limit_storage_seconds)
    assert estimate.limit_tokens_per_second == pytest.approx(1 / slower)
    assert estimate.tokens_per_second < estimate.limit_tokens_per_second


def test_nothing_waits_where_everything_hits() -> None:
    model = footprint()
    dry = dataclasses.replace(SPEED, storage_bandwidth=None)
    estimate = estimate_speed(model, dry, hit_rate=1.0)
    assert (estimate.wait_seconds, estimate.limit_storage_seconds) == (0.0, 0.0)
    assert estimate.seconds == pytest.approx(
        model.backbone_bytes / 12e9
        + model.token_page_bytes / 15e9
        + estimate.attention_seconds
        + 6 * 3e-4
    )
    with pytest.raises(ValueError, match="storage"):
        estimate_speed(model, dry, hit_rate=0.99)
    with pytest.raises(ValueError, match="storage"):
        estimate_prompt(model, dry, hit_rate=0.5, tokens=8)


def test_more_hits_and_less_text_are_never_slower() -> None:
    model = footprint()
    rates = np.linspace(0, 1, 21)
    times = [estimate_speed(model, SPEED, hit_rate=float(rate)).seconds for rate in rates]
    assert times == sorted(times, reverse=True)
    early, late = (
        estimate_speed(model, SPEED, hit_rate=1.0, position=position) for position in (0, 500)
    )
    assert late.seconds - early.seconds == pytest.approx(
        (cached_bytes(model, 500) - cached_bytes(model, 0)) / 20e9
    )


def test_a_window_bounds_what_attention_reads() -> None:
    family = FAMILIES["mixtral"]
    windowed = family.read_config({**family.tiny, "sliding_window": 16})
    model = dataclasses.replace(footprint(), spec=windowed)
    one = windowed.cache_elements * 4 * windowed.num_hidden_layers
    assert cached_bytes(model, 3) == 4 * one
    assert cached_bytes(model, 10_000) == cached_bytes(model, 20_000)


def test_pages_that_a_chunk_touches() -> None:
    layer = footprint().experts[0]
    random = np.random.default_rng(2)
    found = [
        len({int(e) for _ in range(20) for e in random.permutation(32)[:4]}) for _ in range(500)
    ]
    assert touched_pages(layer, 20) == pytest.approx(float(np.mean(found)), rel=0.01)
    assert touched_pages(layer, 1) == pytest.approx(4)


def test_a_prompt_waits_for_the_disk_or_computes() -> None:
    model = footprint()
    pages = sum(touched_pages(layer, 128) for layer in model.experts)
    cold = estimate_prompt(model, SPEED, hit_rate=0.0, tokens=128)
    warm = estimate_prompt(model, SPEED, hit_rate=1.0, tokens=128)
    backbone = 128 * model.backbone_bytes / 50e9
    computing = 128 * model.token_page_bytes / 60e9
    assert warm == pytest.approx(backbone + computing + 6 * 3e-4)
    reading = pages * model.page_bytes / 1.2e9
    assert cold == pytest.approx(
        backbone + reading + computing / (pages / 6) / 1 + 6 * 3e-4, rel=0.05
    )
    slow = dataclasses.replace(SPEED, storage_bandwidth=1e6)
    assert estimate_prompt(model, slow, hit_rate=0.0, tokens=128) > pages * model.page_bytes / 1e6


def test_what_was_not_measured_is_a_share_of_the_memory_bandwidth() -> None:
    slow, fast = assumed_speed(1e10, 1e9), assumed_speed(2e10, 1e9)
    assert fast.expert_bandwidth == 2 * slow.expert_bandwidth < fast.memory_bandwidth
    assert fast.backbone_rate == 2 * slow.backbone_rate
    assert fast.layer_seconds == slow.layer_seconds > 0
