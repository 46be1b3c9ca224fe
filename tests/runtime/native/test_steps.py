"""Steps of the native kernels against numpy in float64, for every instruction set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from pocketmoe.runtime.native import library
from pocketmoe.runtime.native.kernels import NativeKernels
from pocketmoe.runtime.native.steps import Caches, Parts, Steps, WeightMatrix

pytestmark = pytest.mark.skipif(not library.available(), reason="no native library")
SETS = library.instruction_sets()
ROWS = (1, 3, 4, 37)


@pytest.fixture(params=SETS)
def kernels(request: pytest.FixtureRequest) -> Iterator[NativeKernels]:
    made = NativeKernels(2, instruction_set=request.param)
    yield made
    made.close()


def execute(
    steps: Steps, last: int = 0, caches: Caches | None = None, **buffers: np.ndarray
) -> None:
    for name, array in buffers.items():
        steps.set_buffer(name, array)
    assert set(buffers) == set(steps.buffers)
    steps.run(Parts([(len(next(iter(buffers.values()))), last, 0, caches)]))


def caches_of(keys: np.ndarray, values: np.ndarray, past: int = 0) -> Caches:
    """Of one layer, of which so many positions are filled."""
    return Caches([(keys, values, np.array([past, 0]))])


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def assert_near(found: np.ndarray, wanted: np.ndarray, bound: float = 2e-6) -> None:
    assert np.abs(found - wanted).max() <= bound * max(1.0, float(np.abs(wanted).max()))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [1, 15, 16, 50, 128])
def test_norms(kernels: NativeKernels, rows: int, size: int) -> None:
    rng = np.random.default_rng(size)
    x, weight, bias = draw(rng, rows, 3 * size) + 2, draw(rng, size), draw(rng, size)
    rms, layer = np.empty_like(x), np.empty_like(x)
    steps = Steps(kernels)
    steps.norm("x", "rms", weight, None, 1e-5, 3)
    steps.norm("x", "layer", weight, bias, 1e-5, 3)
    steps.norm("x", "x", weight, None, 1e-5, 3)
    parts = x.astype(np.float64).reshape(rows, 3, size)
    root = np.sqrt((parts**2).mean(-1, keepdims=True) + 1e-5)
    spread = np.sqrt(parts.var(-1, keepdims=True) + 1e-5)
    execute(steps, x=x, rms=rms, layer=layer)
    assert_near(rms, (parts / root * weight).reshape(x.shape))
    centred = (parts - parts.mean(-1, keepdims=True)) / spread * weight + bias
    assert_near(layer, centred.reshape(x.shape), 1e-3 if size == 1 else 1e-5)
    assert x.tobytes() == rms.tobytes()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("head_dim", "dim"), [(8, 8), (40, 10), (128, 128)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation(
    kernels: NativeKernels, rows: int, head_dim: int, dim: int, interleaved: bool
) -> None:
    rng = np.random.default_rng(dim)
    x = draw(rng, rows, 3 * head_dim)
    cos, sin = draw(rng, rows, dim // 2), draw(rng, rows, dim // 2)
    heads = x.astype(np.float64).reshape(rows, 3, head_dim)
    rotated = heads[..., :dim]
    if interleaved:
        low, high = rotated[..., ::2], rotated[..., 1::2]
    else:
        low, high = rotated[..., : dim // 2], rotated[..., dim // 2 :]
    c, s = cos[:, None], sin[:, None]
    wanted = np.concatenate([low * c - high * s, high * c + low * s, heads[..., dim:]], -1)
    steps = Steps(kernels)
    steps.rotate("x", 3, interleaved=interleaved)
    execute(steps, x=x, cos=cos, sin=sin)
    assert_near(x, wanted.reshape(x.shape))


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int, window: int | None,
    scale: float, sinks: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    """q `[T, heads, D]`, k and v `[positions, kv_heads, D]`, float64."""
    out = np.empty_like(q)
    group = q.shape[1] // k.shape[1]
    for t in range(len(q)):
        stop = first + t + 1
        start = max(0, stop - window) if window else 0
        for head in range(q.shape[1]):
            scores = k[start:stop, head // group] @ q[t, head] * scale
            most = scores.max() if sinks is None else max(scores.max(), sinks[head])
            shares = np.exp(scores - most)
            total = shares.sum() + (0 if sinks is None else np.exp(sinks[head] - most))
            out[t, head] = shares @ v[start:stop, head // group] / total
    return out


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 4, 128), (6, 2, 72), (8, 1, 8), (70, 2, 24), (3, 3, 20)]
)
@pytest.mark.parametrize(
    ("first", "tokens"), [(0, 1), (0, 37), (255, 1), (256, 3), (600, 1), (300, 128)]
)
@pytest.mark.parametrize(("window", "with_sinks"), [(None, False), (9, True), (300, False)])
def test_attention(
    kernels: NativeKernels, heads: int, kv_heads: int, head_dim: int, first: int, tokens: int,
    window: int | None, with_sinks: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(first + tokens)
    capacity = first + tokens + 5
    q = draw(rng, tokens, heads * head_dim)
    k, v = draw(rng, tokens, kv_heads * head_dim), draw(rng, tokens, kv_heads * head_dim)
    caches = [draw(rng, 1, kv_heads, capacity, head_dim) for _ in range(2)]
    for cache in caches:
        cache[:, :, first:] = np.nan  # not to be seen before it is written
    sinks = draw(rng, heads) if with_sinks else None
    scale = 1.7 * head_dim**-0.5
    steps = Steps(kernels)
    steps.attend(
        0, ("q", "k", "v", "to"), heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=scale,
        window=window, sinks=sinks,
    )  # fmt: skip
    to = np.full_like(q, np.nan)
    execute(steps, caches=caches_of(*caches, first), q=q, k=k, v=v, to=to)
    seen = [cache[0, :, : first + tokens].transpose(1, 0, 2) for cache in caches]
    assert seen[0][first:].tobytes() == k.tobytes()
    assert seen[1][first:].tobytes() == v.tobytes()
    wanted = attention(
        q.astype(np.float64).reshape(tokens, heads, head_dim),
        *(part.astype(np.float64) for part in seen),
        first, window, scale, sinks,
    )  # fmt: skip
    assert_near(to, wanted.reshape(to.shape))
    assert np.isnan(caches[0][:, :, first + tokens :]).all()

    # A token alone, and one thread: the same bytes.
    alone = np.empty_like(to[-1:])
    with_one = NativeKernels(1, instruction_set=kernels.instruction_set)
    steps = Steps(with_one)
    steps.attend(
        0, ("q", "k", "v", "to"), heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=scale,
        window=window, sinks=sinks,
    )  # fmt: skip
    before = caches_of(*caches, first + tokens - 1)
    execute(steps, caches=before, q=q[-1:], k=k[-1:], v=v[-1:], to=alone)
    assert alone.tobytes() == to[-1:].tobytes()


def test_a_nan_in_a_query_or_a_key_is_not_lost(kernels: NativeKernels) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (draw(rng, 5, 32) for _ in range(3))
    q[1, 3] = np.nan
    k[3, 20] = np.nan
    keys, values = np.zeros((2, 1, 2, 5, 16), np.float32)
    steps = Steps(kernels)
    steps.attend(
        0, ("q", "k", "v", "to"), heads=2, kv_heads=2, head_dim=16, scale=0.25, window=None,
        sinks=None,
    )  # fmt: skip
    to = np.empty_like(q)
    execute(steps, caches=caches_of(keys, values), q=q, k=k, v=v, to=to)
    lost = np.isnan(to.reshape(5, 2, 16)).all(-1)
    expected = np.zeros((5, 2), bool)
    expected[1, 0] = expected[3:, 1] = True
    assert (lost == expected).all()
    assert np.isfinite(to.reshape(5, 2, 16)[~expected]).all()


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 3, 40])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_nan_in_a_value_reaches_those_alone_that_see_it(
    kernels: NativeKernels, heads: int, window: int | None, wrong: float
) -> None:
    rng = np.random.default_rng(0)
    tokens, head_dim, position = 300, 20, 256 - 2
    q = draw(rng, tokens, heads * head_dim)
    k, v = draw(rng, tokens, head_dim), draw(rng, tokens, head_dim)
    found = []
    for value in (v[position, 7], wrong):
        v[position, 7] = value
        keys, values = np.zeros((2, 1, 1, tokens, head_dim), np.float32)
        steps = Steps(kernels)
        steps.attend(
            0, ("q", "k", "v", "to"), heads=heads, kv_heads=1, head_dim=head_dim, scale=0.25,
            window=window, sinks=None,
        )  # fmt: skip
        to = np.empty_like(q)
        execute(steps, caches=caches_of(keys, values), q=q, k=k, v=v, to=to)
        found.append(to.reshape(tokens, heads, head_dim))
    right, broken = found
    sees = np.zeros_like(right, bool)
    sees[position : position + (window or tokens), :, 7] = True
    assert not np.isfinite(broken[sees]).any()
    assert broken[~sees].tobytes() == right[~sees].tobytes()


def router(**changes: object) -> SimpleNamespace:
    fields = {
        "num_experts": 12, "top_k": 3, "normalize": False, "scoring": "softmax", "num_groups": 1,
        "top_groups": 1, "group_score": "max", "scale": 1.0, "least_sum": 0.0, "jitter": 0.0,
    }  # fmt: skip
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(
    "rule",
    [
        router(),
        router(normalize=True),
        router(scoring="sigmoid", normalize=True, least_sum=1e-20, scale=2.5),
        router(num_groups=4, top_groups=2),
        router(scoring="sigmoid", num_groups=4, top_groups=2, group_score="top2", normalize=True),
        router(scoring="sparsemixer", top_k=2, jitter=0.01),
    ],
    ids=["softmax", "normalized", "sigmoid", "groups", "best two", "sparsemixer"],
)
@pytest.mark.parametrize("corrected", [False, True])
def test_routing_is_that_of_the_module(rows: int, rule: SimpleNamespace, corrected: bool) -> None:
    torch = pytest.importorskip("torch")
    from pocketmoe.model.routing import choose_experts
    from pocketmoe.model.spec import RouterSpec

    if corrected and rule.scoring == "sparsemixer":
        pytest.skip("this router has no correction")
    rng = np.random.default_rng(rows)
    logits = draw(rng, rows, 12)
    correction = draw(rng, 12) / 3 if corrected else None
    spec = RouterSpec(**vars(rule), correction=corrected)
    wanted = choose_experts(
        torch.from_numpy(logits), spec, None if correction is None else torch.from_numpy(correction)
    )
    kernels = NativeKernels(2)
    steps = Steps(kernels)
    steps.route("logits", "weights", "ids", spec, correction)
    weights = np.empty((rows, rule.top_k), np.float32)
    ids = np.empty((rows, rule.top_k), np.int64)
    execute(steps, logits=logits, weights=weights, ids=ids)
    assert (ids == wanted.experts.numpy()).all()
    np.testing.assert_allclose(weights, wanted.weights.numpy(), rtol=2e-6)


def test_of_equal_scores_the_first_is_chosen() -> None:
    steps = Steps(NativeKernels(1))
    steps.route("logits", "weights", "ids", router(), None)
    weights, ids = np.empty((1, 3), np.float32), np.empty((1, 3), np.int64)
    execute(steps, logits=np.zeros((1, 12), np.float32), weights=weights, ids=ids)
    assert ids.tolist() == [[0, 1, 2]]
    assert np.allclose(weights, 1 / 12)


@pytest.mark.parametrize(
    "rule",
    [
        router(top_k=5),
        router(top_k=5, num_groups=4, top_groups=2),
        router(top_k=5, num_groups=4, top_groups=2, scoring="sigmoid", group_score="top2"),
        router(top_k=5, scoring="sigmoid", normalize=True),
        router(top_k=2, scoring="sparsemixer", jitter=0.01),
    ],
    ids=["softmax", "groups", "best two", "sigmoid", "sparsemixer"],
)
@pytest.mark.parametrize("wrong", [[0], [11], [4, 7], range(12)])
def test_no_expert_is_chosen_twice_where_there_are_nans(
    rule: SimpleNamespace, wrong: Sequence[int]
) -> None:
    logits = draw(np.random.default_rng(0), 6, 12)
    logits[1:, wrong] = np.nan
    steps = Steps(NativeKernels(2))
    steps.route("logits", "weights", "ids", rule, None)
    weights = np.empty((6, rule.top_k), np.float32)
    ids = np.empty((6, rule.top_k), np.int64)
    execute(steps, logits=logits, weights=weights, ids=ids)
    assert np.isfinite(weights[0]).all()
    assert all(len(set(row)) == rule.top_k for row in ids.tolist())
    assert (ids >= 0).all()
    assert (ids < 12).all()
    assert np.isnan(weights[1:]).any(axis=1).all()
    if rule.scoring == "sigmoid":  # a NaN stays with its expert, and is larger than any number
        kept = ids[1:, : len(wrong)].tolist()
        assert all(set(row) <= set(wrong) for row in kept)


@pytest.mark.parametrize("rows", ROWS)
def test_products_sums_gates_and_the_last_rows(kernels: NativeKernels, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x, y = draw(rng, rows, 50), draw(rng, rows, 50)
    first, second = draw(rng, 33, 50), draw(rng, 70, 50)
    bias = draw(rng, 70)
    steps = Steps(kernels)
    steps.add("x", "y", "sum", 0.5)
    steps.products(
        "sum",
        [
            ("a", WeightMatrix("fp32", 0, 33, 50, first)),
            ("b", WeightMatrix("fp32", 0, 70, 50, second, None, bias)),
        ],
    )
    steps.clip("a", 0.75)
    steps.gate("b", "by")
    steps.multiply("b", "b", 3.0)
    last = max(1, rows // 2)
    steps.keep_last("b", "kept")
    steps.multiply("kept", "kept", 2.0)
    total, a, b = (
        np.empty_like(x),
        np.empty((rows, 33), np.float32),
        np.empty((rows, 70), np.float32),
    )
    kept, by = np.full((rows, 70), 9, np.float32), draw(rng, rows, 1)
    execute(steps, last, x=x, y=y, sum=total, a=a, b=b, by=by, kept=kept)
    sums = x + 0.5 * y.astype(np.float64)
    assert_near(total, sums)
    assert_near(a, np.clip(sums @ first.T, -0.75, 0.75))
    assert_near(b, (sums @ second.T + bias) * 3 / (1 + np.exp(-by.astype(np.float64))), 4e-6)
    assert kept[:last].tobytes() == (2 * b[rows - last :]).tobytes()
    assert (kept[last:] == 9).all()


def test_sizes_that_do_not_fit_are_refused() -> None:
    steps = Steps(NativeKernels(1))
    steps.products("x", [("y", WeightMatrix("fp32", 0, 3, 5, np.zeros((3, 5), np.float32)))])
    with pytest.raises(ValueError, match="refused"):
        execute(steps, x=np.zeros((1, 5), np.float32), y=np.zeros((1, 4), np.float32))


@pytest.mark.parametrize(("kv_heads", "past"), [(2, -1), (2, -3), (2, 3), (0, 2), (-2, 2)])
def test_an_attention_before_the_first_position_or_without_heads_is_refused(
    kv_heads: int, past: int
) -> None:
    steps = Steps(NativeKernels(1))
    steps.attend(
        0, ("q", "k", "v", "to"), heads=2, kv_heads=kv_heads, head_dim=4, scale=1.0, window=None,
        sinks=None,
    )  # fmt: skip
    keys, values = np.zeros((2, 1, 2, 5, 4), np.float32)
    rows = {name: np.zeros((3, 8), np.float32) for name in ("q", "k", "v", "to")}
    with pytest.raises(ValueError, match="refused"):
        execute(steps, caches=caches_of(keys, values, past), **rows)
    with pytest.raises(ValueError, match="refused"):
        execute(steps, **rows)


@pytest.mark.parametrize("window", [None, 7, 300])
def test_parts_attend_to_their_own_caches_with_the_bytes_that_each_has_alone(
    kernels: NativeKernels, window: int | None
) -> None:
    """Where the places in the cache are others too, as after a window was moved."""
    rng = np.random.default_rng(0)
    heads, kv_heads, head_dim = 6, 2, 24
    sinks = draw(rng, heads)
    steps = Steps(kernels)
    steps.attend(
        1, ("q", "k", "v", "to"), heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=0.3,
        window=window, sinks=sinks,
    )  # fmt: skip
    steps.keep_last("to", "kept")
    sizes = [(600, 1, 1), (0, 5, 2), (311, 40, 40), (700, 1, 0), (255, 2, 1)]
    inputs = [
        {
            "q": draw(rng, tokens, heads * head_dim),
            "k": draw(rng, tokens, kv_heads * head_dim),
            "v": draw(rng, tokens, kv_heads * head_dim),
        }
        for _, tokens, _ in sizes
    ]
    seen = [draw(rng, 2, 1, kv_heads, past + 50, head_dim) for past, _, _ in sizes]

    def cache(index: int, dropped: int) -> Caches:
        past = sizes[index][0]
        keys, values = np.ascontiguousarray(seen[index][:, :, :, dropped:])
        place = np.array([past - dropped, dropped])
        return Caches([(keys[:, :, :1], values, place), (keys, values, place)])

    def run(which: list[int], dropped: int) -> list[np.ndarray]:
        rows = {name: np.concatenate([inputs[i][name] for i in which]) for name in "qkv"}
        for name, array in rows.items():
            steps.set_buffer(name, array)
        to = np.empty_like(rows["q"])
        kept = np.empty_like(to)
        steps.set_buffer("to", to)
        steps.set_buffer("kept", kept)
        caches = [cache(i, max(0, min(dropped, sizes[i][0] - (window or 0)))) for i in which]
        parts = [(*sizes[i][1:], 0, made) for i, made in zip(which, caches, strict=True)]
        steps.run(Parts(parts))
        ends = np.cumsum([sizes[i][2] for i in which])
        found = np.split(to, np.cumsum([sizes[i][1] for i in which])[:-1])
        for one, two, i in zip(found, np.split(kept[: ends[-1]], ends[:-1]), which, strict=True):
            assert one[len(one) - sizes[i][2] :].tobytes() == two.tobytes()
        return found

    alone = [run([i], 0)[0] for i in range(len(sizes))]
    together = run(list(range(len(sizes))), 0)
    assert [x.tobytes() for x in together] == [x.tobytes() for x in alone]
    if window is not None:
        for dropped in (1, 130, 257):
            which = [i for i, (past, _, _) in enumerate(sizes) if past > window]
            moved = run(which, dropped)
            assert [x.tobytes() for x in moved] == [alone[i].tobytes() for i in which]
