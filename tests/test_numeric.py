"""What counts as a number."""

from fractions import Fraction

import numpy as np
import pytest

from pocketmoe.numeric import is_integer, is_real


@pytest.mark.parametrize("value", [0, -1, 10**400, np.int8(3), np.uint64(2**63)])
def test_integers_of_any_kind(value: object) -> None:
    assert is_integer(value)
    assert is_real(value)


@pytest.mark.parametrize("value", [1.0, float("inf"), np.float32(2), Fraction(1, 3)])
def test_reals_that_are_no_integers(value: object) -> None:
    assert not is_integer(value)
    assert is_real(value)


@pytest.mark.parametrize("value", [True, False, np.True_, None, "1", 1j, [1], np.ones(1)])
def test_what_is_no_number(value: object) -> None:
    assert not is_integer(value)
    assert not is_real(value)
