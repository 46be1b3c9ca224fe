"""What counts as a number, of Python's types and numpy's: True and False do not."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard


def is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Integers too, and what is not finite."""
    return isinstance(value, Real) and not isinstance(value, bool)
