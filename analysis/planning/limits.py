"""The limit model, and what a token is predicted to take. Pure functions; times in seconds.

The limit is what the hardware allows: no token is faster than memory gives its weights, nor than
storage gives the pages that were missed.

The prediction follows the runtime. The backbone runs, then each layer's experts: its missing pages
are read while those that are there compute, and each is computed as it arrives. So a layer with k
pages of c seconds to compute and r to read, m of them missed, takes

    max( k · c,  r + m · c,  m · r + c )        (k · c where nothing is missed)

What is prefetched, behind the reads of the layer before and while the backbone runs, is taken off
the reads: at most the backbone's time, and that of the pages that were guessed right.
One cannot see from the hit rate how the misses fall among layers: each page of a token is taken
to miss by itself, and the time is the expectation over that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

from ...bundle.footprint import Footprint, LayerFootprint
from ...runtime.cache_shape import capacity
from ...runtime.paging.predict import EARLY_PAGES

# What stands in for figures that were not measured: shares of the memory bandwidth, and seconds.
# They are what `pocketmoe targets --measure --bundle` found for OLMoE's shape in int4, 2 cores.
EXPERT_SHARE = 0.65
BACKBONE_SHARE = 0.9
LAYER_SECONDS = 4e-4
PROMPT_SHARE = 3.5
# Of guesses what to prefetch; as `bench/speed/prefetch.py` found for the demo model.
RIGHT_GUESSES = 0.86


@dataclass(frozen=True)
class MachineSpeed:
    """What a machine reaches, in bytes per second unless said.

    storage_bandwidth: of reads of whole pages; None where it is not known. expert_bandwidth,
    backbone_bandwidth: at which one token gets through the weights of each. layer_seconds: a paged
    layer takes so much besides. expert_rate, backbone_rate: of a prompt, whose tokens share their
    weights: bytes of weights times tokens, per second.
    """

    memory_bandwidth: float
    storage_bandwidth: float | None
    expert_bandwidth: float
    backbone_bandwidth: float
    layer_seconds: float
    expert_rate: float
    backbone_rate: float


def assumed_speed(memory_bandwidth: float, storage_bandwidth: float | None) -> MachineSpeed:
    """A machine of which the two bandwidths alone are known."""
    return MachineSpeed(
        memory_bandwidth=memory_bandwidth,
        storage_bandwidth=storage_bandwidth,
        expert_bandwidth=EXPERT_SHARE * memory_bandwidth,
        backbone_bandwidth=BACKBONE_SHARE * memory_bandwidth,
        layer_seconds=LAYER_SECONDS,
        expert_rate=PROMPT_SHARE * memory_bandwidth,
        backbone_rate=PROMPT_SHARE * memory_bandwidth,
    )


@dataclass(frozen=True)
class SpeedEstimate:
    """What one token takes while decoding.

    hit_rate: of its pages. position: tokens before it. backbone_seconds, attention_seconds (over
    the cached keys and values), expert_seconds and overhead_seconds are computing; wait_seconds is
    what reading adds to them. limit_memory_seconds, limit_storage_seconds: the limit's two terms.
    missed_bytes: read for it.
    """

    hit_rate: float
    position: int
    missed_bytes: float
    backbone_seconds: float
    attention_seconds: float
    expert_seconds: float
    wait_seconds: float
    overhead_seconds: float
    limit_memory_seconds: float
    limit_storage_seconds: float

    @property
    def seconds(self) -> float:
        computing = self.backbone_seconds + self.attention_seconds + self.expert_seconds
        return computing + self.wait_seconds + self.overhead_seconds

    @property
    def tokens_per_second(self) -> float:
        return 1 / self.seconds

    @property
    def limit_tokens_per_second(self) -> float:
        return 1 / max(self.limit_memory_seconds, self.limit_storage_seconds)


def estimate_speed(
    footprint: Footprint,
    speed: MachineSpeed,
    *,
    hit_rate: float,
    position: int = 0,
    prefetches: bool = False,
) -> SpeedEstimate:
    """What a token takes at a hit rate, after `position` others.

    hit_rate: of pages that need not be read for the token, prefetched or not.

    Raises:
        ValueError: pages are missed, and the storage bandwidth is not known.
    """
    missed = footprint.token_page_bytes * (1 - hit_rate)
    storage = speed.storage_bandwidth
    if missed and storage is None:
        raise ValueError("pages are missed, and the storage bandwidth is not known")
    computing = footprint.token_page_bytes / speed.expert_bandwidth
    backbone = footprint.backbone_bytes / speed.backbone_bandwidth
    attention = cached_bytes(footprint, position) / speed.memory_bandwidth
    segment = (backbone + attention) / max(1, footprint.segments) + speed.layer_seconds
    with_reads = 0.0
    for layer in footprint.experts:
        read = layer.page_bytes / storage if storage else 0.0
        with_reads += expected_layer_seconds(
            layer.top_k,
            1 - hit_rate,
            compute=layer.page_bytes / speed.expert_bandwidth,
            read=read,
            prefetched=min(segment, RIGHT_GUESSES * EARLY_PAGES * read) if prefetches else 0.0,
        )
    return SpeedEstimate(
        hit_rate=hit_rate,
        position=position,
        missed_bytes=missed,
        backbone_seconds=backbone,
        attention_seconds=attention,
        expert_seconds=computing,
        wait_seconds=max(0.0, with_reads - computing),
        overhead_seconds=speed.layer_seconds * len(footprint.experts),
        limit_memory_seconds=footprint.token_bytes / speed.memory_bandwidth,
        limit_storage_seconds=missed / storage if storage else 0.0,
    )


def cached_bytes(footprint: Footprint, position: int) -> int:
    """Keys and values that the attention of one token reads, after `position` others."""
    spec = footprint.spec
    positions = sum(capacity(layer.window, position + 1, 1) for layer in spec.layers)
    return positions * spec.cache_elements * 4


def layer_seconds(
    top_k: int, missed: int, *, compute: float, read: float, prefetched: float = 0.0
) -> float:
    """Of a layer's pages; compute, read: of each, the `missed` ones read one after another;
    prefetched: seconds of reading that were over when the layer began."""
    if not missed:
        return top_k * compute
    # Computing goes on without a gap from the start, from the first page read, or from the last.
    first, last = max(0.0, read - prefetched), max(0.0, missed * read - prefetched)
    return max(top_k * compute, first + missed * compute, last + compute)


def expected_layer_seconds(
    top_k: int, miss_rate: float, *, compute: float, read: float, prefetched: float = 0.0
) -> float:
    """The expectation of `layer_seconds`, each page missed by itself."""
    return sum(
        chance * layer_seconds(top_k, missed, compute=compute, read=read, prefetched=prefetched)
        for missed, chance in enumerate(_binomial(top_k, miss_rate))
    )


def _binomial(count: int, chance: float) -> Iterator[float]:
    for number in range(count + 1):
        yield comb(count, number) * chance**number * (1 - chance) ** (count - number)


def estimate_prompt(
    footprint: Footprint, speed: MachineSpeed, *, hit_rate: float, tokens: int
) -> float:
    """Seconds of one chunk of a prompt. hit_rate: of its pages, each of which it needs once.

    Tokens are taken to choose their experts evenly, which touches most pages.

    Raises:
        ValueError: pages are missed, and the storage bandwidth is not known.
    """
    storage = speed.storage_bandwidth
    if hit_rate < 1 and footprint.experts and storage is None:
        raise ValueError("pages are missed, and the storage bandwidth is not known")
    weights = footprint.backbone_bytes
    seconds = max(tokens * weights / speed.backbone_rate, weights / speed.backbone_bandwidth)
    for layer in footprint.experts:
        pages = touched_pages(layer, tokens)
        computing = layer.page_bytes * max(
            tokens * layer.top_k / speed.expert_rate, pages / speed.expert_bandwidth
        )
        missed = pages * (1 - hit_rate)
        reading = missed * layer.page_bytes / storage if storage else 0.0
        last = computing / pages if missed else 0.0
        seconds += max(computing, reading + last) + speed.layer_seconds
    return seconds


def touched_pages(layer: LayerFootprint, tokens: int) -> float:
    """Expected number of different pages that so many tokens need."""
    share = layer.top_k / layer.num_experts
    return layer.num_experts * (1 - (1 - share) ** tokens)
