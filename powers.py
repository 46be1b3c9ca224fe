"""Powers and logarithms of single numbers, the same on every machine. Standard library only.

The C library's differ in the last bit from processor to processor. These are computed in decimal
digits, 40 of them, and then rounded to the nearest float. They take microseconds, not nanoseconds.
"""

from __future__ import annotations

from decimal import Context, Decimal

_DIGITS = Context(prec=40)


def logarithm(x: float) -> float:
    """ln x. x: more than 0."""
    return float(Decimal(x).ln(_DIGITS))


def power(base: float, dividend: int, divisor: int) -> float:
    """base ^ (dividend / divisor). base: more than 0."""
    return float(_power(base, dividend, divisor))


def powers(base: float, parts: int) -> list[float]:
    """base ^ (i / parts) for each i below `parts`. base: more than 0."""
    step, value = _power(base, 1, parts), Decimal(1)
    found = []
    for _ in range(parts):
        found.append(float(value))
        value = _DIGITS.multiply(value, step)
    return found


def _power(base: float, dividend: int, divisor: int) -> Decimal:
    exponent = _DIGITS.divide(Decimal(dividend), Decimal(divisor))
    return _DIGITS.power(Decimal(base), exponent)
