"""e^x and rotary tables, with the same bytes on every machine.

numpy chooses its exp, sin and cos by the processor, and each rounds some numbers otherwise. These
take nothing but additions, products and quotients, which IEEE 754 rounds the same everywhere. The
native library computes them (doubles.inl); without it numpy does, in the same steps.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .kernels import NativeKernels
from .library import available

_ROUNDER = 1.5 * 2.0**52  # adding it rounds a double below 2^51 to an integer, in the low bits
_ROUNDER_BITS = int(np.float64(_ROUNDER).view(np.int64))

# The constants and their source: see doubles.inl.
_EXP = (
    4.13813679705723846039e-08, -1.65339022054652515390e-06, 6.61375632143793436117e-05,
    -2.77777777770155933842e-03, 1.66666666666666019037e-01,
)  # fmt: skip
_SIN = (
    1.58969099521155010221e-10, -2.50507602534068634195e-08, 2.75573137070700676789e-06,
    -1.98412698298579493134e-04, 8.33333333332248946124e-03, -1.66666666666666324348e-01,
)  # fmt: skip
_COS = (
    -1.13596475577881948265e-11, 2.08757232129817482790e-09, -2.75573143513906633035e-07,
    2.48015872894767294178e-05, -1.38888888888741095749e-03, 4.16666666666666019037e-02,
)  # fmt: skip


def exponentials(x: np.ndarray) -> None:
    """x = e^x in place; float64, contiguous.

    0 below -708.74, infinity above 709.43; NaN stays. Less than 1 ulp from the exact value.
    """
    kernels = _kernels()
    if kernels is None:
        numpy_exponentials(x)
    else:
        kernels.exponentials64(x)


def rotary_table(
    frequencies: np.ndarray, start: int, scale: float, cos: np.ndarray, sin: np.ndarray
) -> None:
    """Fills cos and sin, float32 `[tokens, pairs]`, for the positions from `start` on: of angles
    position · frequency, a float32 product; rounded to float32, then multiplied by `scale`.

    frequencies: float32 `[pairs]`, in radians per position; scale is taken as float32. All arrays
    are contiguous. Up to 2^20 quarter turns the nearest floats to the exact values.
    """
    kernels = _kernels()
    if kernels is None:
        numpy_rotary_table(frequencies, start, scale, cos, sin)
    else:
        kernels.rotary_table(frequencies, start, scale, cos, sin)


def numpy_exponentials(x: np.ndarray) -> None:
    """`exponentials` without the library."""
    bounded = np.clip(x, -709.0, 710.0)  # NaN stays
    shifted = bounded * 1.44269504088896338700 + _ROUNDER
    n = shifted - _ROUNDER
    high = bounded - n * 6.93147180369123816490e-01
    low = n * 1.90821492927058770002e-10
    r = high - low
    t = r * r
    c = r - t * _polynomial(_EXP, t)
    y = 1.0 - ((low - r * c / (2.0 - c)) - high)
    # 2^n by its exponent's bits: those of -1023 are 0, those of 1024 infinity.
    powers = ((shifted.view(np.int64) - (_ROUNDER_BITS - 1023)) << 52).view(np.float64)
    with np.errstate(invalid="ignore"):  # NaN times whatever its bits made
        np.multiply(y, powers, out=x)


def numpy_rotary_table(
    frequencies: np.ndarray, start: int, scale: float, cos: np.ndarray, sin: np.ndarray
) -> None:
    """`rotary_table` without the library."""
    positions = np.arange(start, start + len(cos), dtype=np.int64).astype(np.float32)
    angles = (positions[:, None] * frequencies).astype(np.float64)
    shifted = angles * 6.36619772367581382433e-01 + _ROUNDER
    n = shifted - _ROUNDER  # quarter turns
    r = angles - n * 1.57079632673412561417 - n * 6.07710050650619224932e-11
    t = r * r
    s = _polynomial(_SIN, t) * t * r + r
    c = _polynomial(_COS, t) * t * t - 0.5 * t + 1.0
    quarter = shifted.view(np.int64)
    odd = quarter & 1 == 1
    along, across = np.where(odd, s, c), np.where(odd, c, s)
    cos[:] = np.where((quarter + 1) & 2, -along, along)
    sin[:] = np.where(quarter & 2, -across, across)
    cos *= np.float32(scale)
    sin *= np.float32(scale)


def _polynomial(coefficients: tuple[float, ...], t: np.ndarray) -> np.ndarray:
    """Horner's scheme, the highest power first."""
    value = np.full_like(t, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= t
        value += coefficient
    return value


@cache
def _kernels() -> NativeKernels | None:
    """Of the best instruction set; they have no threads until something is run on them."""
    return NativeKernels(1) if available() else None
