"""Tokens per second."""

import pytest

from pocketmoe.server.live.sample import WINDOW
from pocketmoe.server.speed import DecodeSpeed


def test_speed_is_of_the_time_in_which_tokens_came() -> None:
    speed = DecodeSpeed(WINDOW)
    assert speed.take(0.0, 0, running=False) == 0
    assert speed.take(5.0, 0, running=True) == 0  # reads a prompt
    assert speed.take(5.25, 2, running=True) == 0  # since when is not known
    assert speed.take(5.5, 4, running=True) == pytest.approx(8)
    assert speed.take(5.75, 6, running=True) == pytest.approx(8)
    assert speed.take(6.0, 7, running=False) == pytest.approx(20 / 3)
    assert speed.take(6.25, 7, running=False) == 0
    assert speed.take(8.0, 7, running=True) == 0
    for step in range(1, 6):  # one in two seconds
        rate = speed.take(8.0 + 2 * step, 7 + step, running=True)
    assert rate == pytest.approx(0.5)
    assert speed.take(18.0 + 2 * WINDOW, 40, running=True) == 0  # nobody has watched
