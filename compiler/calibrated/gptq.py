"""GPTQ: rounding that makes later columns answer for the errors of earlier ones.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323. Columns go by falling activation; scales are chosen before, for the blocks as they
lie in the page, and fitted once to what came of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...calibration.rounding import as_scales, best_scales, limits, rounded, spread
from ..quantize import QuantizedMatrix

_COLUMNS, _FEW_COLUMNS = 128, 16  # whose errors are carried on together: to all, to the 128


def quantize_gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    block_size: int,
    *,
    damping: float,
    signed: bool = False,
) -> QuantizedMatrix:
    """weight: float32 `[out, in]`; hessian: `[in, in]`, the inputs' second moments Σ x xᵀ up to a
    factor. damping: what is added to its diagonal, as a share of the diagonal's mean. signed: see
    best_scales.

    Raises:
        ValueError: the Hessian is not finite, or not even damped positive definite.
    """
    importance = hessian.diagonal().clamp(min=0)
    scales = best_scales(weight, importance, bits, block_size, signed=signed)
    order = torch.argsort(importance, descending=True)
    inverse = _inverse_factor(hessian[order][:, order], damping)
    values = _rounded_in_order(weight, scales, order, inverse, bits)
    if bits == 4:  # finer steps leave nothing to gain
        scales = _fitted_scales(weight, values, scales, hessian)
        values = _rounded_in_order(weight, scales, order, inverse, bits)
    return QuantizedMatrix(values.to(torch.int8).numpy(), scales.numpy(), bits)


def _rounded_in_order(
    weight: Tensor, scales: Tensor, order: Tensor, inverse: Tensor, bits: int
) -> Tensor:
    # Transposed: what is done to a column then goes through memory in order.
    columns = weight.T.contiguous()[order]
    steps = spread(scales, weight).T.contiguous()[order]
    values = torch.empty_like(columns)
    values[order] = _round_columns(columns, steps, inverse, bits)
    return values.T.contiguous()


def _fitted_scales(weight: Tensor, values: Tensor, scales: Tensor, hessian: Tensor) -> Tensor:
    """For given values, block after block the scale with which the output's error is least."""
    size = weight.shape[1] // scales.shape[1]
    fitted = scales.float()
    left = weight - values * spread(scales, weight)
    for block in range(scales.shape[1]):
        part = slice(block * size, (block + 1) * size)
        own = values[:, part]
        slope = (left @ hessian[:, part]).mul_(own).sum(dim=1)
        curve = (own @ hessian[part, part]).mul_(own).sum(dim=1)
        step = torch.where(curve > 0, slope / curve.clamp(min=1e-30), 0.0)
        fitted[:, block] += step
        left[:, part] -= step[:, None] * own
    return as_scales(fitted)


def quantize_weighted(
    weight: Tensor, importance: Tensor, bits: int, block_size: int
) -> QuantizedMatrix:
    """Rounding to nearest; each block's clip is the one with the least error, each column's error
    weighted by `importance` `[in]`, the mean square of its input."""
    scales = best_scales(weight, importance, bits, block_size)
    values = rounded(weight, scales, bits)
    return QuantizedMatrix(values.to(torch.int8).numpy(), scales.numpy(), bits)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    damped = hessian.to(torch.float32).clone()
    mean = damped.diagonal().mean()
    if not torch.isfinite(mean):
        raise ValueError("the Hessian is not finite")
    damped.diagonal().add_(damping * float(mean) + 1e-8)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed:
        raise ValueError(f"the Hessian is not positive definite with damping {damping}")
    return torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)


def _round_columns(columns: Tensor, steps: Tensor, inverse: Tensor, bits: int) -> Tensor:
    """float32 `[in, out]`, as `columns`, which is changed, and `steps`.

    Errors are carried to the columns after in two strides, so that nearly all of the work is in
    products of matrices.
    """
    low, high = limits(bits)
    values, errors = torch.empty_like(columns), torch.empty_like(columns)
    carried = inverse.T.contiguous()  # [j, i]: what an error in column i does to column j
    factors = inverse.diagonal().reciprocal().tolist()
    for start in range(0, len(columns), _COLUMNS):
        stop = min(start + _COLUMNS, len(columns))
        for first in range(start, stop, _FEW_COLUMNS):
            last = min(first + _FEW_COLUMNS, stop)
            for index in range(first, last):
                column, step, error = columns[index], steps[index], errors[index]
                value = torch.div(column, step, out=values[index]).round_().clamp_(low, high)
                torch.addcmul(column, value, step, value=-1, out=error).mul_(factors[index])
                after = slice(index + 1, last)
                columns[after].addr_(carried[after, index], error, alpha=-1)
            columns[last:stop].addmm_(carried[last:stop, first:last], errors[first:last], alpha=-1)
        columns[stop:].addmm_(carried[stop:, start:stop], errors[start:stop], alpha=-1)
    return values
