"""Masks, caches and the places of terms on a device, against plain Python."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketmoe.bundle.gpu_graphs import MASKED
from pocketmoe.runtime.gpu.experts import plan_terms
from pocketmoe.runtime.gpu.kv import (
    DeviceKv,
    bound_past,
    device_kv_bytes,
    fill_mask,
    most_bound,
)
from pocketmoe.runtime.gpu.scope import Scope
from pocketmoe.runtime.routing import route
from pocketmoe.tests.compiler.test_segments import BASE, MLA, PLAIN, WINDOW
from pocketmoe.tests.support.examples import examples
from pocketmoe.tests.support.gpu.host_device import HostDevice


@given(
    past=st.integers(0, 300),
    tokens=st.integers(1, 9),
    window=st.none() | st.integers(1, 200),
)
def test_a_mask_shows_what_attention_may_see(past: int, tokens: int, window: int | None) -> None:
    first, bound = bound_past(past, window)
    assert first % 64 == 0
    assert bound % 64 == 0
    assert bound >= 64
    assert first <= past <= first + bound
    assert bound <= most_bound(window, 300)
    mask = np.full((tokens, bound + tokens), 7, np.float32)
    fill_mask(mask, past - first, window)
    for token in range(tokens):
        seen = {first + j for j in range(bound) if mask[token, j] == 0}
        seen |= {past + j for j in range(tokens) if mask[token, bound + j] == 0}
        own = past + token
        least = 0 if window is None else own - window + 1
        assert seen == set(range(max(0, least), own + 1))
    assert set(np.unique(mask)) <= {0.0, np.float32(MASKED)}


class _Cache:
    """A DeviceKv whose every position holds its number."""

    def __init__(self, window: int | None, batch: int, chunk: int):
        spec = replace(BASE, layers=(replace(WINDOW, window=window), PLAIN, DENSE_MLA_FREE))
        self.whole = HostDevice()
        self.device = Scope(self.whole)
        self.stream = self.device.stream()
        self.chunk = chunk
        self.kv = DeviceKv(self.device, self.stream, spec, 512, chunk, batch)
        self.memory = self.device.allocate(chunk * 64)
        self.host = self.device.allocate_host(chunk * 64)
        self.window = window

    def feed(self, tokens: int) -> None:
        self.kv.begin(tokens)
        for layer in range(3):
            for number, start in enumerate(range(0, tokens, self.chunk)):
                count = min(self.chunk, tokens - start)
                self.check(layer, number, start, count)
                past = self.kv.past(layer, number)
                for address, row in self.kv.bases(layer):
                    values = np.arange(count, dtype=np.float16) + self.kv.position + start
                    rows = self.host.view(np.float16, (count, row // 2))
                    rows[:] = values[:, None]
                    self.stream.upload(self.memory.address, self.host.address, rows.nbytes)
                    self.stream.copy(address + past.at * row, self.memory.address, rows.nbytes)
                    self.stream.synchronize()
        self.kv.commit(tokens)

    def check(self, layer: int, number: int, start: int, count: int) -> None:
        """What the mask shows of what is bound are the positions of the text in a row."""
        self.stream.synchronize()
        past = self.kv.past(layer, number)
        mask = read(past.mask, np.float32, (count, past.bound + count))
        window = self.window if layer == 0 else None
        before = self.kv.position + start
        for address, row in self.kv.bases(layer):
            keys = read(address + past.first * row, np.float16, (past.bound, row // 2))
            assert np.isfinite(keys).all()
            for token in range(count):
                seen = keys[mask[token, : past.bound] == 0, 0].tolist()
                least = 0 if window is None else max(0, before + token - window + 1)
                assert seen == list(range(least, before))

    def close(self) -> None:
        self.stream.synchronize()
        self.device.close()
        self.whole.close()


DENSE_MLA_FREE = replace(PLAIN, router=None)


def read(address: int, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, nbytes), dtype).reshape(shape)


@settings(max_examples=examples(15), deadline=None)
@given(
    window=st.integers(1, 90),
    calls=st.lists(st.sampled_from([1, 1, 3, 17, 32, 48]), min_size=1, max_size=14),
)
def test_a_cache_shows_each_layer_its_past(window: int, calls: list[int]) -> None:
    cache = _Cache(window, batch=48, chunk=16)
    for _ in range(2):
        for tokens in calls:
            cache.feed(tokens)
        cache.kv.reset()
    cache.close()


def test_a_full_cache_is_refused_and_latents_have_one_plane() -> None:
    device = HostDevice()
    stream = device.stream()
    spec = replace(BASE, layers=(PLAIN,), mla=MLA, head_dim=48, num_key_value_heads=4)
    kv = DeviceKv(device, stream, spec, 64, 16, 16)
    assert kv.planes == 1
    assert kv.shapes == ((1, MLA.latent_dim),)
    taken = device.memory()[1] - device.memory()[0]
    assert taken <= device_kv_bytes(spec, 64, 16, 16) <= 1.5 * taken
    kv.begin(16)
    kv.commit(60)
    with pytest.raises(ValueError, match="64 positions are full"):
        kv.begin(16)
    stream.synchronize()


@given(data=st.data(), tokens=st.integers(2, 20), top_k=st.integers(1, 4), step=st.integers(1, 3))
def test_places_name_a_tokens_terms_in_the_order_of_experts(
    data: st.DataObject, tokens: int, top_k: int, step: int
) -> None:
    experts = np.array(
        [
            data.draw(st.permutations(range(6)).map(lambda order: order[:top_k]))
            for _ in range(tokens)
        ],
        np.int64,
    )
    dropped = np.array(data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)))
    experts[dropped, -1] = -1 if top_k > 1 else experts[dropped, -1]
    weights = np.random.default_rng(0).random((tokens, top_k), np.float32)
    routing = route(weights, experts)
    plan = plan_terms(routing, tokens, top_k, step)
    terms: dict[int, tuple[int, int, float]] = {}
    for expert, start, count, first in zip(
        routing.experts, plan.starts, plan.counts, plan.firsts, strict=True
    ):
        assert start % 64 == 0
        assert first % step == 0
        for index in range(count):
            row = int(plan.rows[start + index])
            terms[first + index] = (row, expert, float(plan.weights[start + index]))
    for token in range(tokens):
        found = [terms[place] for place in plan.places[token].tolist() if place in terms]
        kept = sorted(int(e) for e in experts[token] if e >= 0)
        assert [item[:2] for item in found] == [(token, e) for e in kept]
        at = {int(e): float(w) for e, w in zip(experts[token], weights[token], strict=True)}
        assert [item[2] for item in found] == [at[e] for e in kept]
        missing = [place for place in plan.places[token].tolist() if place not in terms]
        assert len(missing) == top_k - len(kept)
        assert all(place == plan.terms - 1 for place in missing)
    assert plan.has_gaps == bool((experts < 0).any())
    assert plan.terms <= tokens * top_k + step * len(routing.experts)
