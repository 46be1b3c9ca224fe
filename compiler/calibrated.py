"""Experts that are quantized on the inputs that they get, in one pass over the layers.

What comes to a layer has gone through the layers before as the bundle holds them, so that the
errors of those are seen, and partly made good.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..calibration.calibrate import identify
from ..calibration.record import CalibrationRecord, check_model
from ..calibration.stream import LayerInput, LayerStream
from ..errors import InputError
from ..model.checkpoint import Checkpoint
from ..model.module import GatedFFN
from ..model.spec import ModelSpec
from ..progress import Progress
from ..runtime.bundle import CALIBRATION, Precision
from ..runtime.expert_layers import ExpertLayer
from ..runtime.pages import PROJECTIONS, PageFormat
from .expert_methods import LayerMoments, Method, layer_moments, quantize_expert
from .experts import fill_page, write_bias, write_expert_layer, write_matrix
from .footprint import QUANTIZED_BITS
from .precision import precision_of
from .quantize import quantize_matrix


@dataclass(frozen=True)
class Calibration:
    """A record, where it is from, and the method that is to use it. signed: int4 may have negative
    scales, which TensorRT does not promise to take."""

    path: Path
    record: CalibrationRecord
    method: Method
    signed: bool


def check_calibration(
    calibration: Calibration, source: Checkpoint, precision: Precision, bits: float | None
) -> None:
    """bits: what experts may take on average, whatever the precision says of them.

    Raises InputError where the record is of another model, or nothing is quantized by it."""
    found = identify(source)
    check_model(calibration.record, found["model"], found["tokenizer"], calibration.path)
    if bits is None and precision.experts not in QUANTIZED_BITS:
        raise InputError(
            f"--calibration has no effect on experts in {precision.experts}: choose "
            "--precision experts=int4 or experts=int8, or leave it out"
        )


def write_calibrated_experts(
    root: Path,
    source: Checkpoint,
    spec: ModelSpec,
    precision: Precision,
    calibration: Calibration,
    formats: Mapping[int, Sequence[PageFormat]],
    progress: Progress,
) -> tuple[ExpertLayer, ...]:
    """As `write_experts`, for int4, int8 and fp16; also writes what errors the experts have.

    formats: of each expert of each paged layer."""
    record = calibration.record
    errors: dict[int, list[float | None]] = {}
    progress.stage("experts", sum(item.nbytes for layer in formats.values() for item in layer))
    written = []
    with tempfile.TemporaryDirectory(prefix=".activations.", dir=root.parent) as folder:
        stream = LayerStream(source, spec, record.ids, Path(folder))
        stream.embed()
        while stream.layer < spec.num_hidden_layers:
            entered = stream.enter(lambda name, weight: as_stored(name, weight, precision))
            if entered is None:
                continue
            own = formats[entered.layer]
            errors[entered.layer] = []
            pages = calibrated_pages(stream, entered, own, calibration, errors[entered.layer])
            written.append(write_expert_layer(root, entered.layer, own, pages, progress.advance))
            stream.leave()
    data = {
        "method": calibration.method, "provenance": asdict(record.provenance),
        "layers": [{"layer": layer, "error": error} for layer, error in errors.items()],
    }  # fmt: skip
    (root / CALIBRATION).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return tuple(written)


def calibrated_pages(
    stream: LayerStream,
    entered: LayerInput,
    formats: Sequence[PageFormat],
    calibration: Calibration,
    errors: list[float | None],
) -> Iterator[bytearray]:
    """The pages of a layer's experts in order; what each gives is added to the stream, and its
    relative error to `errors`: None for one without tokens."""
    moments = layer_moments(entered.x)
    for expert, page_format in enumerate(formats):
        rows, weights = entered.tokens_of(expert)
        x, shares = torch.from_numpy(entered.x[rows]), torch.from_numpy(weights)
        page, out, error = _page(stream, expert, x, shares, moments, page_format, calibration)
        stream.add(rows, out)
        errors.append(error)
        yield page


@torch.no_grad()
def _page(
    stream: LayerStream,
    expert: int,
    x: Tensor,
    shares: Tensor,
    moments: LayerMoments,
    page_format: PageFormat,
    calibration: Calibration,
) -> tuple[bytearray, np.ndarray, float | None]:
    """A page, the weighted output for the expert's tokens, and how far it is from what it was."""
    module = stream.load_expert(expert)
    expected = module(x) * shares[:, None]
    page = bytearray(page_format.nbytes)
    if page_format.quantized:
        made = quantize_expert(
            module, x, shares, moments, page_format, calibration.method, signed=calibration.signed
        )
        places = {place.name: place for place in page_format.tensors()}
        for name in PROJECTIONS:
            write_matrix(page, places, name, made[name])
            if page_format.bias:
                write_bias(page, places, name, getattr(module, name).bias.numpy())
    else:
        for name in PROJECTIONS:
            weight = getattr(module, name).weight
            weight.copy_(weight.half())
            fill_page(page, page_format, name, lambda part: iter([_parameter(module, part)]))
    out = module(x) * shares[:, None]
    size = float(expected.norm())
    error = float((out - expected).norm()) / size if size else None
    return page, out.numpy(), error


def _parameter(module: GatedFFN, name: str) -> np.ndarray:
    return module.get_parameter(name).numpy()


def as_stored(name: str, weight: Tensor, precision: Precision) -> Tensor:
    """A weight of the backbone as the bundle will hold it."""
    chosen = precision_of(name, precision)
    if weight.ndim != 2 or chosen == "fp32":
        return weight
    if chosen == "fp16":
        return weight.half().float()
    quantized = quantize_matrix(weight.numpy(), QUANTIZED_BITS[chosen], precision.block_size)
    return torch.from_numpy(quantized.dequantized())
