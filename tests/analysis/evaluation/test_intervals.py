"""Windows of a text, and confidence intervals over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketmoe.analysis.evaluation.intervals import RESAMPLES, BlockBootstrap
from pocketmoe.analysis.evaluation.windows import cut_windows
from pocketmoe.errors import InputError


class TestWindows:
    @given(st.integers(2, 99), st.integers(2, 40))
    def test_all_of_a_text(self, count: int, length: int) -> None:
        windows = cut_windows(range(1, count + 1), length)
        parts = [windows[index].tolist() for index in range(len(windows))]
        whole = [token for part in parts for token in part]
        # One token that is left over is not scored, and left out.
        assert whole == list(range(1, count + 1))[: len(whole)]
        assert count - len(whole) <= 1
        assert all(len(part) == min(length, count) for part in parts[:-1])
        assert windows.tokens == len(whole) == windows.is_token.sum()
        assert not windows.ids[~windows.is_token].any()

    @given(st.integers(2, 400), st.integers(2, 200), st.integers(0, 5))
    def test_drawn_evenly(self, count: int, tokens: int, seed: int) -> None:
        windows = cut_windows(range(count), 16, tokens, seed)
        assert windows.tokens <= tokens
        if tokens < count:
            length = min(16, tokens)
            assert len(windows) == tokens // length
            assert (windows.lengths == length).all()
        starts = windows.ids[:, 0]
        assert (np.diff(starts) > 0).all()
        again = cut_windows(range(count), 16, tokens, seed)
        assert np.array_equal(again.ids, windows.ids)

    def test_a_stretch_for_each(self) -> None:
        starts = cut_windows(range(1600), 16, 160, 3).ids[:, 0] // 16
        assert (starts // 10).tolist() == list(range(10))
        others = cut_windows(range(1600), 16, 160, 4).ids[:, 0] // 16
        assert starts.tolist() != others.tolist()

    def test_too_short(self) -> None:
        with pytest.raises(InputError, match="at least 2 tokens"):
            cut_windows([1], 16)
        with pytest.raises(InputError, match="2 tokens or more"):
            cut_windows([1, 2], 1)


class TestBootstrap:
    def test_blocks_that_are_alike(self) -> None:
        """No doubt where each window has the same mean, whatever is inside."""
        bootstrap = BlockBootstrap(5)
        assert bootstrap.mean(np.array([4.0, 8, 4, 4, 12]), np.array([2, 4, 2, 2, 6])) == (2, 2)

    def test_one_block(self) -> None:
        bootstrap = BlockBootstrap(1)
        assert bootstrap.mean(np.array([1.0]), np.array([1])) is None
        assert bootstrap.quantile(np.arange(9.0), np.zeros(9, int), 0.5) is None

    def test_normal_means(self) -> None:
        """Against 1.96 standard errors, which are wider by tokens that repeat one another."""
        means = np.random.default_rng(1).normal(size=400)
        sizes = np.full(400, 50)
        found = BlockBootstrap(400).mean(means * sizes, sizes)
        assert found is not None
        error = means.std() / np.sqrt(400)
        expected = means.mean() + 1.96 * error * np.array([-1, 1])
        assert found == pytest.approx(expected, abs=0.2 * error)

    def test_two_blocks(self) -> None:
        """Draws of two are both of one, one of each, or both of the other: a quarter each end."""
        found = BlockBootstrap(2).mean(np.array([0.0, 1]), np.array([1, 1]))
        assert found == (0, 1)

    def test_quantile_is_that_of_the_drawn_values(self) -> None:
        generator = np.random.default_rng(2)
        values, blocks = generator.normal(size=200), generator.integers(0, 7, 200)
        bootstrap = BlockBootstrap(7, seed=3)
        drawn = [
            np.quantile(np.repeat(values, counts[blocks]), 0.99) for counts in bootstrap._counts
        ]
        assert len(drawn) == RESAMPLES
        found = bootstrap.quantile(values, blocks, 0.99)
        assert found == pytest.approx(np.quantile(drawn, [0.025, 0.975]))

    def test_seed(self) -> None:
        sums, sizes = np.random.default_rng(0).normal(size=20), np.ones(20)
        first, again, other = (BlockBootstrap(20, seed).mean(sums, sizes) for seed in (1, 1, 2))
        assert first == again != other
