"""Tokens are drawn from the distribution that the settings describe: against a plain reference in
float64, and against transformers' logits processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketmoe.errors import InputError
from pocketmoe.runtime.generation.generation import Request
from pocketmoe.runtime.generation.sampling import (
    Sampler,
    Sampling,
    TokenCounts,
    likeliest,
    log_probabilities,
)
from pocketmoe.tests.support.examples import examples


def probabilities(sampler: Sampler, logits: np.ndarray) -> dict[int, float]:
    """Token → probability, the likeliest first; of equal ones, the lower id."""
    places, weights = sampler.distribution(sampler.adjust(logits))
    tokens = np.arange(len(logits)) if places is None else places
    order = np.lexsort((tokens, -weights))
    return dict(zip(tokens[order].tolist(), (weights / weights.sum())[order].tolist(), strict=True))


def reference(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float = 0.0
) -> dict[int, float]:
    """The same, written out one token at a time."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if top_k:
        ranked = ranked[:top_k]
    exponents = np.array([np.float64(logits[token]) / temperature for token in ranked])
    shares = np.exp(exponents - exponents.max())
    shares /= shares.sum()
    kept, total = [], 0.0
    for share in shares:
        if top_p < 1 and kept and total >= top_p:
            break
        kept.append(share)
        total += share
    kept = [share for share in kept if share >= min_p * kept[0]]
    total = sum(kept)
    return {token: share / total for token, share in zip(ranked, kept, strict=False)}


# Multiples of 1/4, so that some are equal.
some_logits = st.lists(st.integers(-40, 40), min_size=1, max_size=30).map(
    lambda values: np.array(values, np.float32) / 4
)


@given(
    logits=some_logits,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 35),
    top_p=st.sampled_from([1e-9, 0.101, 0.503, 0.897, 1.0]),
    min_p=st.sampled_from([0.0, 0.0503, 0.497, 1.0]),
)
def test_distribution_is_the_reference(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampler = Sampler(Sampling(temperature, top_k, top_p, min_p), len(logits))
    found, expected = (
        probabilities(sampler, logits),
        reference(logits, temperature, top_k, top_p, min_p),
    )
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-9)


@pytest.mark.parametrize("share", [0.3, 0.95, 0.9999])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_top_p_of_a_large_vocabulary(temperature: float, share: float) -> None:
    """More tokens than are looked at first."""
    logits = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
    found = probabilities(Sampler(Sampling(temperature, 0, share), len(logits)), logits)
    assert list(found) == list(reference(logits, temperature, 0, share))


def by_transformers(
    logits: np.ndarray, how: Sampling, prompt: list[int], made: list[int]
) -> np.ndarray:
    """Scores, minus infinity for what cannot be drawn. Frequency and presence penalties, which
    transformers lacks, by OpenAI's formula in between."""
    import torch
    from transformers import generation as theirs

    ids = torch.tensor([prompt + made])
    scores = torch.tensor(logits)[None].double()
    if how.logit_bias:
        bias = {(token,): float(value) for token, value in how.logit_bias.items()}
        scores = theirs.SequenceBiasLogitsProcessor(bias)(ids, scores)
    if how.repetition_penalty != 1:
        penalty = theirs.RepetitionPenaltyLogitsProcessor(how.repetition_penalty)
        scores = penalty(ids, scores)
    counts = torch.bincount(torch.tensor(made, dtype=torch.int64), minlength=len(logits))
    scores = scores - counts * how.frequency_penalty - (counts > 0) * how.presence_penalty
    scores = theirs.TemperatureLogitsWarper(how.temperature)(ids, scores)
    if how.top_k:
        scores = theirs.TopKLogitsWarper(how.top_k)(ids, scores)
    if how.top_p < 1:
        scores = theirs.TopPLogitsWarper(how.top_p)(ids, scores)
    if how.min_p:
        scores = theirs.MinPLogitsWarper(how.min_p)(ids, scores)
    return scores[0].numpy()


@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_as_transformers(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 60))
    seed = data.draw(st.integers(0, 10_000))
    logits = (np.random.default_rng(seed).standard_normal(size) * 4).astype(np.float32)
    tokens = st.lists(st.integers(0, size - 1), max_size=12)
    prompt, made = data.draw(tokens.filter(bool)), data.draw(tokens)
    how = Sampling(
        temperature=data.draw(st.sampled_from([0.3, 1.0, 1.7])),
        top_k=data.draw(st.sampled_from([0, 1, 5, 1000])),
        top_p=data.draw(st.sampled_from([1.0, 0.83, 0.31])),
        min_p=data.draw(st.sampled_from([0.0, 0.083])),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.3, 0.7])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.6, -0.4])),
        presence_penalty=data.draw(st.sampled_from([0.0, 1.1, -0.9])),
        logit_bias=data.draw(st.dictionaries(st.integers(0, size - 1), st.floats(-9, 9))),
    )
    sampler = Sampler(how, size, prompt)
    for token in made:
        sampler.add(token)
    before = logits.copy()
    found = probabilities(sampler, logits)
    assert logits.tobytes() == before.tobytes()
    scores = by_transformers(logits, how, prompt, made)
    assert set(found) == set(np.flatnonzero(np.isfinite(scores)).tolist())
    expected = np.exp(scores - scores.max())
    expected /= expected.sum()
    np.testing.assert_allclose(list(found.values()), expected[list(found)], rtol=2e-5)


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = np.array([0.5, 2.0, -1.0, 2.0], np.float32)
    assert [Sampler(Sampling(), 4).sample(logits) for _ in range(5)] == [1] * 5
    assert Sampler(Sampling(logit_bias={1: -0.1}), 4).sample(logits) == 3
    sampler = Sampler(Sampling(presence_penalty=1.0), 4, prompt=[1])
    told = []
    for _ in range(4):
        told.append(sampler.sample(logits))
        sampler.add(told[-1])
    assert told == [1, 3, 1, 1]  # equal again once both have come; the prompt does not count


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"temperature": 9.0, "top_k": 3}])
def test_nothing_but_what_is_allowed(how: dict[str, Any]) -> None:
    logits = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    sampler = Sampler(Sampling(**how, logit_bias={5: 100.0, 6: 1e308, 20: -1e308}, seed=0), 100)
    allowed = np.array([3, 20, 50])
    drawn = {sampler.sample(logits, allowed) for _ in range(200)}
    assert drawn <= {3, 20, 50}
    assert sampler.sample(logits, allowed[1:2]) == 20


def test_frequencies_follow_the_distribution() -> None:
    logits = np.array([1.0, 0.0, 2.0, -1.0], np.float32)
    sampler = Sampler(Sampling(temperature=1.5, top_k=3, seed=0), 4)
    draws = [sampler.sample(logits) for _ in range(20_000)]
    for token, probability in reference(logits, 1.5, 3, 1.0).items():
        # Five standard deviations.
        bound = 5 * np.sqrt(probability * (1 - probability) / len(draws))
        assert abs(draws.count(token) / len(draws) - probability) < bound
    assert 3 not in draws


def test_the_seed_decides() -> None:
    logits = np.random.default_rng(0).standard_normal(100).astype(np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), 100)
        return [sampler.sample(logits) for _ in range(50)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("temperature", [5e-324, 1e-3, 1.0, 1e6, 1e308])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"top_p": 5e-324},
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 1e308, "frequency_penalty": 1e308, "presence_penalty": -1e308},
        {"logit_bias": {0: 1e308, 1: 1e308, 2: -1e308}},
    ],
)
@pytest.mark.filterwarnings("error")
def test_extreme_values(temperature: float, more: dict[str, Any]) -> None:
    logits = np.array([-1e38, 3e38, 0], np.float32)
    sampler = Sampler(Sampling(temperature, **more), 3, prompt=[0, 1, 2])
    for token in (1, 1, 2):
        sampler.add(token)
    assert np.isfinite(list(probabilities(sampler, logits).values())).all()
    assert sampler.sample(logits) in (0, 1, 2)


WRONG: list[dict[str, Any]] = [
    *({"temperature": value} for value in (-0.1, float("nan"), float("inf"), 10**400, True, "1")),
    *({"top_k": value} for value in (-1, 1.0, True, None, "3")),
    *({"top_p": value} for value in (0.0, 1.01, float("nan"), None)),
    *({"min_p": value} for value in (-0.1, 1.01, float("nan"), False)),
    *({"repetition_penalty": value} for value in (0.0, -1.0, float("nan"), float("inf"), None)),
    *({"frequency_penalty": value} for value in (float("nan"), float("-inf"), "0", None)),
    *({"presence_penalty": value} for value in (float("nan"), float("-inf"), True)),
    *({"seed": value} for value in (-1, 1.5, True, -(10**5000))),
    *({"logit_bias": {token: 1.0}} for token in (-1, 1.5, "1", True)),
    *({"logit_bias": {1: value}} for value in (float("nan"), float("inf"), None, "1", True)),
    *({"logit_bias": value} for value in ([1, 2], "x", 5)),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must be .* not ") as caught:
        Sampling(**wrong)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "wrong",
    [
        *({"max_new_tokens": value} for value in (0, -1, 1.5, True, None, "3")),
        *({"logprobs": value} for value in (-1, 1.5, True, "3")),
        *({"stop": value} for value in ("", [""], ["a", ""], [1], 5, {"a"}, b"a")),
        *({"grammar": value} for value in ("[0-9]+", {"type": "object"})),
        *({"cancel": value} for value in (True, lambda: False)),
    ],
)
def test_requests_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must"):
        Request(**wrong)


def test_a_bias_on_a_token_that_there_is_not() -> None:
    Sampler(Sampling(logit_bias={9: 1}), 10)
    with pytest.raises(InputError, match="from 0 to 9, not 10"):
        Sampler(Sampling(logit_bias={10: 1}), 10)


def test_numbers_of_numpy_are_numbers() -> None:
    how = Sampling(np.float32(0.5), np.int64(3), np.float64(0.5), logit_bias={np.int32(1): 2})
    assert Sampler(how, 10).sample(np.zeros(10, np.float32)) == 1


@given(st.lists(st.integers(0, 300), max_size=400))
def test_a_tally_counts(tokens: list[int]) -> None:
    tally = TokenCounts(tokens[:100])
    for token in tokens[100:]:
        tally.add(token)
    found = dict(zip(tally.tokens.tolist(), tally.counts.tolist(), strict=True))
    assert found == {token: tokens.count(token) for token in tokens}


@given(logits=some_logits, count=st.integers(0, 40))
def test_log_probabilities(logits: np.ndarray, count: int) -> None:
    found = log_probabilities(logits)
    exact = logits.astype(np.float64)
    expected = exact - np.log(np.exp(exact).sum())
    np.testing.assert_allclose(found, expected, atol=1e-12)
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    assert likeliest(logits, count).tolist() == ranked[:count]
