"""Shares of a batch: the oldest goes on, prompts leave room to those that decode."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketmoe.runtime.batching.requests import Seat, Work, share_batch
from pocketmoe.tests.support.examples import examples


class FakeCache:
    position = 0

    def reset(self) -> None: ...

    def rewind(self, position: int) -> int:
        return position


def request(tokens: int, stamp: float = 0.0) -> Work:
    logits = np.empty((1, 1), np.float32)
    return Work(Seat(FakeCache()), np.zeros(tokens, np.int64), logits, 0, stamp)


class TestShares:
    @settings(max_examples=examples(300), deadline=None)
    @given(
        sizes=st.lists(st.sampled_from([1, 1, 1, 2, 100, 128, 129, 500, 3000]), min_size=1),
        others=st.booleans(),
        batch=st.sampled_from([128, 200, 512]),
    )
    def test_the_oldest_goes_on_and_nobody_gets_too_much(
        self, sizes: list[int], others: bool, batch: int
    ) -> None:
        pending = [request(size) for size in sizes]
        shares = share_batch(pending, 128, batch, others=others)
        assert shares[0][0] is pending[0]
        assert sum(tokens for _, tokens in shares) <= batch
        decoding = others or 1 in sizes
        prompts = sum(tokens for one, tokens in shares if one.left > 1)
        assert prompts <= (128 if decoding else batch)
        for one, tokens in shares:
            assert 0 < tokens <= one.left
            if len(pending) > 1:
                assert tokens == one.left or tokens % 128 == 0

    @pytest.mark.parametrize(
        ("sizes", "others", "expected"),
        [
            ([3000], False, [512]),
            ([3000], True, [128]),
            ([3000, 1, 1], False, [128, 1, 1]),
            ([1, 3000, 1, 3000], False, [1, 128, 1]),
            ([3000, 3000], False, [256, 256]),
            ([20, 3000], False, [20, 384]),
            ([20, 3000, 1], False, [20, 1]),
            ([20, 30, 3000, 1], False, [20, 30, 1]),
        ],
    )
    def test_examples(self, sizes: list[int], others: bool, expected: list[int]) -> None:
        shares = share_batch([request(size) for size in sizes], 128, 512, others=others)
        assert [tokens for _, tokens in shares] == expected
