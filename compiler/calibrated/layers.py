"""Experts that are quantized on the inputs that they get, in one pass over the layers.

What comes to a layer has gone through the layers before as the bundle holds them, so that the
errors of those are seen, and partly made good.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...bundle.expert_layers import ExpertLayer
from ...bundle.manifest import CALIBRATION, Precision
from ...bundle.pages import PageFormat
from ...calibration.calibrate import identify
from ...calibration.record import CalibrationRecord, check_model
from ...calibration.stream import LayerInput, LayerStream
from ...errors import InputError
from ...model.checkpoint.checkpoint import Checkpoint
from ...model.spec import ModelSpec
from ...progress import Progress
from ..experts.pages import write_expert_layer
from ..footprint import QUANTIZED_BITS
from ..precision import precision_of
from ..quantize import quantize_matrix
from .methods import Method, layer_moments
from .task import ExpertTask, quantize_task
from .unfinished import FinishedLayer, Unfinished
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


def resumable_by(
    source: Checkpoint, precision: Precision, calibration: Calibration, bits: float | None
) -> dict[str, object]:
    """What the pages depend on, by names for users."""
    files = {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(source.path.glob("*.safetensors"))
    }
    return {
        "checkpoint": {**identify(source), "files": files},
        "calibration": asdict(calibration.record.provenance),
        "method": calibration.method,
        "kind of target": calibration.signed,
        "precision": asdict(precision),
        "--bits": bits,
    }


def write_calibrated_experts(
    root: Path,
    source: Checkpoint,
    spec: ModelSpec,
    precision: Precision,
    calibration: Calibration,
    formats: Mapping[int, Sequence[PageFormat]],
    workers: Workers,
    progress: Progress,
    work: Unfinished,
) -> tuple[ExpertLayer, ...]:
    """As `write_experts`, for int4, int8 and fp16; also writes what errors the experts have.

    formats: of each expert of each paged layer. workers: who does it; the bytes are the same.
    work: where layers are kept until all are done, and which of them are.
    """
    record = calibration.record
    progress.stage("experts", sum(item.nbytes for layer in formats.values() for item in layer))
    stream = LayerStream(source, spec, record.ids, work.activations)
    done = work.restore(stream)
    for item in done:
        progress.advance(sum(form.nbytes for form in formats[item.pages.layer]))
    while stream.layer < spec.num_hidden_layers:
        entered = stream.enter(lambda name, weight: as_stored(name, weight, precision))
        if entered is None:
            continue
        own = formats[entered.layer]
        errors: list[float | None] = []
        pages = calibrated_pages(stream, entered, own, calibration, workers, errors)
        written = write_expert_layer(work.folder, entered.layer, own, pages, progress.advance)
        stream.leave()
        done.append(FinishedLayer(written, errors))
        work.keep(done[-1], stream)
    work.hand_over(root)
    data = {
        "method": calibration.method, "provenance": asdict(record.provenance),
        "layers": [{"layer": item.pages.layer, "error": item.errors} for item in done],
    }  # fmt: skip
    (root / CALIBRATION).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return tuple(item.pages for item in done)


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
