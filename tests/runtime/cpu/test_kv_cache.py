"""Attention through the cache is attention over everything, windows and chunks or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketmoe.model.rope import RopeSpec
from pocketmoe.model.spec import LayerSpec, MlaSpec, ModelSpec
from pocketmoe.runtime.cache_shape import SLACK, capacity, kind_of, kv_bytes
from pocketmoe.runtime.cpu.kv_cache import KvCache
from pocketmoe.runtime.cpu.ort import Binding, load_session, set_up

onnx = pytest.importorskip("onnx")

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
CONTEXT = 400


def spec_of(*windows: int | None, mla: MlaSpec | None = None) -> ModelSpec:
    layers = tuple(LayerSpec(window=window, intermediate_size=8) for window in windows)
    rope = RopeSpec(1e4, HEAD_DIM)
    return ModelSpec(
        "reference", 8, 64, HEADS, KV_HEADS, HEAD_DIM, CONTEXT, rope, 1e-5, True, layers, mla
    )


def attention_graph(window: int | None, kv_heads: int, head_dim: int) -> bytes:
    """GroupQueryAttention alone."""
    helper, kind = onnx.helper, onnx.TensorProto
    node = helper.make_node(
        "GroupQueryAttention",
        ["q", "k", "v", "past_key", "past_value", "seqlens_k", "total_length"],
        ["y", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=kv_heads,
        do_rotary=0,
        scale=HEAD_DIM**-0.5,
        local_window_size=-1 if window is None else window,
    )

    def value(name: str, *shape: int | str, of: int = kind.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, of, shape)

    cache = (1, kv_heads, "C", head_dim)
    inputs = [
        value("q", 1, "T", HEADS * head_dim),
        value("k", 1, "T", kv_heads * head_dim),
        value("v", 1, "T", kv_heads * head_dim),
        value("past_key", *cache),
        value("past_value", *cache),
        value("seqlens_k", 1, of=kind.INT32),
        value("total_length", 1, of=kind.INT32),
    ]
    outputs = [
        value("y", 1, "T", HEADS * head_dim),
        value("present_key", *cache),
        value("present_value", *cache),
    ]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()


def full_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int | None) -> np.ndarray:
    """q `[T, heads, d]`, k and v `[T, kv_heads, d]` → `[T, heads · d]`, in float64."""
    k, v = (np.repeat(x, HEADS // k.shape[1], axis=1).astype(np.float64) for x in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(HEAD_DIM)
    distance = np.arange(len(q))[:, None] - np.arange(len(q))[None, :]
    seen = (distance >= 0) & (distance < (window or len(q)))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, v).reshape(len(q), -1)


def run_through(
    cache: KvCache, layer: int, window: int | None, chunks: list[int]
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    set_up(2)
    _, kv_heads, _, head_dim = cache.keys[layer].shape
    graph = attention_graph(window, kv_heads, head_dim)
    binding = Binding(load_session(graph, Path("attention")))
    span = cache.spans[kind_of(window)]
    for name, array in (("key", cache.keys[layer]), ("value", cache.values[layer])):
        binding.input(f"past_{name}", array)
        binding.output(f"present_{name}", array)
    binding.input("seqlens_k", span.seqlens_k)
    binding.input("total_length", span.total_length)

    def run(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        out = np.empty((len(q), HEADS * head_dim), np.float32)
        start = 0
        for tokens in chunks:
            cache.begin(tokens)
            part = slice(start, start + tokens)
            held = {
                name: np.ascontiguousarray(x[part].reshape(1, tokens, -1))
                for name, x in (("q", q), ("k", k), ("v", v))
            }
            for name, x in held.items():
                binding.input(name, x)
            binding.output("y", out[None, part])
            binding.run()
            cache.commit(tokens)
            start += tokens
        return out

    return run


def random_inputs(tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [(tokens, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    q, k, v = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("window", [None, 1, 2, 16, 100])
@pytest.mark.parametrize("chunk", [1, 7, 90])
def test_chunked_attention_is_full_attention(window: int | None, chunk: int) -> None:
    cache = KvCache(spec_of(None, window), CONTEXT, chunk)
    chunks = [*[chunk] * (300 // chunk - 1), *[1] * 20]
    q, k, v = random_inputs(sum(chunks))
    out = run_through(cache, 1, window, chunks)(q, k, v)
    np.testing.assert_allclose(out, full_attention(q, k, v, window), atol=2e-6)
    assert cache.position == sum(chunks)
    if window is not None:
        assert cache.keys[1].shape[2] == window - 1 + max(chunk, SLACK)


@pytest.mark.parametrize("window", [None, 1, 16])
@pytest.mark.parametrize("latent", [576, 96, 40])
def test_a_latent_is_key_and_value_in_one_buffer(window: int | None, latent: int) -> None:
    chunks = [90, 7, 90, *[1] * 100]
    cache = KvCache(spec_of(window, mla=MlaSpec(None, latent - 8, 8, 8, 8)), CONTEXT, 90)
    assert cache.keys[0] is cache.values[0]
    random = np.random.default_rng(0)
    q = random.standard_normal((sum(chunks), HEADS, latent)).astype(np.float32)
    q *= (HEAD_DIM / latent) ** 0.5
    k = random.standard_normal((sum(chunks), 1, latent)).astype(np.float32)
    out = run_through(cache, 0, window, chunks)(q, k, k)
    np.testing.assert_allclose(out, full_attention(q, k, k, window), atol=3e-6)
    last = window or sum(chunks)
    span = next(iter(cache.spans.values()))
    stored = cache.keys[0][0, 0, : cache.position - span.origin]
    np.testing.assert_array_equal(stored[-last:], k[-last:, 0])


def test_reset_and_an_abandoned_chunk_leave_no_trace() -> None:
    window, chunks = 16, [30] * 8
    cache = KvCache(spec_of(window), CONTEXT, 30)
    q, k, v = random_inputs(sum(chunks))
    run = run_through(cache, 0, window, chunks)
    first = run(q, k, v)
    cache.reset()
    assert cache.position == 0
    commit, calls = cache.commit, []

    def begin_twice(tokens: int) -> None:
        commit(tokens)
        calls.append(tokens)
        if sum(calls) < sum(chunks):
            cache.begin(tokens)  # a chunk that fails before its commit

    cache.commit = begin_twice  # type: ignore[method-assign]
    np.testing.assert_array_equal(run(q, k, v), first)


def test_windows_bound_the_memory() -> None:
    long = 16_384
    assert capacity(128, long, 256) == 127 + 256
    assert capacity(128, 100, 256) == 100
    assert capacity(None, long, 256) == long
    spec = spec_of(128, None, 128)
    per_position = 2 * KV_HEADS * HEAD_DIM * 4
    assert kv_bytes(spec, long, 256) == (long + 2 * 383) * per_position
    cache = KvCache(spec, long, 256)
    assert sum(x.nbytes for x in (*cache.keys, *cache.values)) == kv_bytes(spec, long, 256)


def test_a_latent_is_counted_once() -> None:
    mla = MlaSpec(None, 512, 128, 64, 128)
    assert kv_bytes(spec_of(None, None, mla=mla), 1000, 128) == 2 * 1000 * 576 * 4


def test_layers_of_one_window_share_a_span() -> None:
    assert set(KvCache(spec_of(8, None, 8, 4), CONTEXT, 16).spans) == {"w8", "full", "w4"}


def test_a_context_of_16384_is_bounded_by_the_windows() -> None:
    from pocketmoe.model.families import find_family
    from pocketmoe.model.train.presets import find_preset
    from pocketmoe.runtime.cache_shape import kv_bytes

    config = find_preset("80b-a10b")
    spec = find_family(config).read_config(config)
    everywhere = find_family(config).read_config({**config, "sliding_window": None})
    windowed, full = kv_bytes(spec, 16_384, 128), kv_bytes(everywhere, 16_384, 128)
    # 30 of 40 layers keep 2,175 positions of 16,384.
    assert full == 40 * 16_384 * 2 * 8 * 128 * 4
    assert windowed == (10 * 16_384 + 30 * (2047 + 128)) * 2 * 8 * 128 * 4
