"""One expert as a task: all that quantizing it needs, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...bundle.pages import PROJECTIONS, PageFormat
from ...model.module import GatedFFN
from ..experts.pages import fill_page, write_bias, write_matrix
from .methods import LayerMoments, Method, inner_of, quantize_expert
from .workers import Shared


@dataclass(frozen=True)
class ExpertTask:
    """parameters: float32 by name. x: float32 `[T, hidden]`, the expert's tokens; weights: float32
    `[T]`, their shares. layer: the arrays of its LayerMoments. signed: see quantize_expert."""

    parameters: dict[str, np.ndarray]
    x: np.ndarray
    weights: np.ndarray
    layer: Shared
    page_format: PageFormat
    method: Method
    signed: bool


@dataclass(frozen=True)
class QuantizedExpert:
    """out: float32 `[T, hidden]`, the weighted output for its tokens; error: how far it is from
    what it was, None without tokens."""

    page: bytearray
    out: np.ndarray
    error: float | None


@torch.no_grad()
def quantize_task(task: ExpertTask) -> QuantizedExpert:
    page_format = task.page_format
    module = _module(task)
    x, shares = torch.from_numpy(task.x), torch.from_numpy(task.weights)
    inner = inner_of(module, x)
    expected = module.down(inner) * shares[:, None]
    page = bytearray(page_format.nbytes)
    if page_format.quantized:
        layer = LayerMoments.from_arrays(task.layer.arrays())
        made = quantize_expert(
            module, x, inner, shares, layer, page_format, task.method, signed=task.signed
        )
        places = {place.name: place for place in page_format.tensors()}
        for name in PROJECTIONS:
            write_matrix(page, places, name, made.matrices[name])
            if page_format.bias:
                write_bias(page, places, name, getattr(module, name).bias.numpy())
        inner = made.inner
    else:
        for name in PROJECTIONS:
            weight = getattr(module, name).weight
            weight.copy_(weight.half())
            fill_page(page, page_format, name, lambda part: iter([_parameter(module, part)]))
        inner = inner_of(module, x)
    out = module.down(inner) * shares[:, None]
    size = float(expected.norm())
    error = float((out - expected).norm()) / size if size else None
    return QuantizedExpert(page, out.numpy(), error)


def _module(task: ExpertTask) -> GatedFFN:
    form = task.page_format
    with torch.device("meta"):
        module = GatedFFN(form.hidden_size, form.intermediate_size, form.bias, form.activation)
    state = {name: torch.from_numpy(array.copy()) for name, array in task.parameters.items()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def _parameter(module: GatedFFN, name: str) -> np.ndarray:
    return module.get_parameter(name).numpy()
