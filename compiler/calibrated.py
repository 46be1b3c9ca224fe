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

import torch
from torch import Tensor

from ..calibration.calibrate import identify
from ..calibration.record import CalibrationRecord, check_model
from ..calibration.stream import LayerInput, LayerStream
from ..errors import InputError
from ..model.checkpoint import Checkpoint
from ..model.spec import ModelSpec
from ..progress import Progress
from ..runtime.bundle import CALIBRATION, Precision
from ..runtime.expert_layers import ExpertLayer
from ..runtime.pages import PageFormat
from .expert_methods import Method, layer_moments
from .expert_task import ExpertTask, quantize_task
from .experts import write_expert_layer
from .footprint import QUANTIZED_BITS
from .precision import precision_of
from .quantize import quantize_matrix
from .workers import Workers


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
    workers: Workers,
    progress: Progress,
) -> tuple[ExpertLayer, ...]:
    """As `write_experts`, for int4, int8 and fp16; also writes what errors the experts have.

    formats: of each expert of each paged layer. workers: who does it; the bytes are the same.
    """
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
            pages = calibrated_pages(
                stream, entered, own, calibration, workers, errors[entered.layer]
            )
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
    workers: Workers,
    errors: list[float | None],
) -> Iterator[bytearray]:
    """The pages of a layer's experts in order; what each gives is added to the stream, and its
    relative error to `errors`: None for one without tokens."""
    layer = workers.share(layer_moments(entered.x).to_arrays())

    def tasks() -> Iterator[ExpertTask]:
        for expert, page_format in enumerate(formats):
            rows, weights = entered.tokens_of(expert)
            parameters = stream.load_expert(expert).state_dict()
            yield ExpertTask(
                {name: tensor.numpy() for name, tensor in parameters.items()},
                entered.x[rows], weights, layer, page_format, calibration.method,
                calibration.signed,
            )  # fmt: skip

    for expert, made in enumerate(workers.map(quantize_task, tasks())):
        stream.add(entered.tokens_of(expert)[0], made.out)
        errors.append(made.error)
        yield made.page


def as_stored(name: str, weight: Tensor, precision: Precision) -> Tensor:
    """A weight of the backbone as the bundle will hold it."""
    chosen = precision_of(name, precision)
    if weight.ndim != 2 or chosen == "fp32":
        return weight
    if chosen == "fp16":
        return weight.half().float()
    quantized = quantize_matrix(weight.numpy(), QUANTIZED_BITS[chosen], precision.block_size)
    return torch.from_numpy(quantized.dequantized())
