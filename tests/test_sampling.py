"""Tokens are drawn from the distribution that temperature, top-k and top-p describe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketmoe.errors import InputError
from pocketmoe.runtime.sampling import Sampler


def reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """Token → probability, written out one token at a time."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if top_k:
        ranked = ranked[:top_k]
    exponents = np.array([np.float64(logits[token]) / temperature for token in ranked])
    probabilities = np.exp(exponents - exponents.max())
    probabilities /= probabilities.sum()
    kept, total = [], 0.0
    for probability in probabilities:
        if top_p < 1 and kept and total >= top_p:
            break
        kept.append(probability)
        total += probability
    return {
        token: probability / sum(kept) for token, probability in zip(ranked, kept, strict=False)
    }


# Multiples of 1/4, so that some are equal.
some_logits = st.lists(st.integers(-40, 40), min_size=1, max_size=30).map(
    lambda values: np.array(values, np.float32) / 4
)


@given(
    logits=some_logits,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 35),
    top_p=st.sampled_from([1e-9, 0.101, 0.503, 0.897, 1.0]),
)
def test_distribution_is_the_reference(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float
) -> None:
    tokens, found = Sampler(temperature, top_k, top_p).distribution(logits)
    expected = reference(logits, temperature, top_k, top_p)
    if top_p == 1:
        assert tokens.tolist() == list(expected)
    assert set(tokens.tolist()) == set(expected)
    np.testing.assert_allclose(found, [expected[t] for t in tokens.tolist()], rtol=1e-9)


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = np.array([0.5, 2.0, -1.0, 2.0], np.float32)
    assert [Sampler().sample(logits) for _ in range(5)] == [1] * 5


def test_frequencies_follow_the_distribution() -> None:
    logits = np.array([1.0, 0.0, 2.0, -1.0], np.float32)
    sampler = Sampler(temperature=1.5, top_k=3, seed=0)
    draws = [sampler.sample(logits) for _ in range(20_000)]
    for token, probability in reference(logits, 1.5, 3, 1.0).items():
        # Five standard deviations.
        bound = 5 * np.sqrt(probability * (1 - probability) / len(draws))
        assert abs(draws.count(token) / len(draws) - probability) < bound
    assert 3 not in draws


def test_the_seed_decides() -> None:
    logits = np.random.default_rng(0).standard_normal(100).astype(np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(temperature=1.0, seed=seed)
        return [sampler.sample(logits) for _ in range(50)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_extreme_logits_and_temperatures() -> None:
    logits = np.array([-1e38, 3e38, 0], np.float32)
    for temperature in (1e-3, 1.0, 1e6):
        tokens, probabilities = Sampler(temperature).distribution(logits)
        assert tokens[0] == 1
        assert np.isfinite(probabilities).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"seed": -1},
    ],
)
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="not"):
        Sampler(**wrong)
