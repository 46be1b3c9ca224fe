"""The heap that policies rank their pages with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pocketmoe.runtime.paging.policy import Ranking


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=300))
def test_a_ranking_is_sorted_by_rank_and_then_by_age(sets: list[tuple[int, int]]) -> None:
    ranking: Ranking[int] = Ranking()
    plain: dict[int, tuple[int, int]] = {}
    for serial, (key, rank) in enumerate(sets):
        ranking.set(key, rank)
        plain[key] = (rank, serial)
        first = ranking.lowest()
        assert first is not None
        assert first[2] == min(plain, key=plain.__getitem__)
    assert ranking.take((), 10) == sorted(plain, key=plain.__getitem__)
