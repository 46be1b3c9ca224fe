"""The record of a calibration: a directory with record.json and arrays.npz.

Needs no torch. Small: routes, usage and moments, no weights; the token ids are in it, so that a
compile can run the same text again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..model.spec import ModelSpec

FORMAT, VERSION = "pocketmoe calibration", 1
RECORD, ARRAYS = "record.json", "arrays.npz"
UNFINISHED = "unfinished"  # the folder of what is not done yet, within the record's


@dataclass(frozen=True)
class LayerRecord:
    """What went through a paged layer; N tokens, E experts, k of them for each token.

    experts: uint16 `[N, k]`, in the router's order; weights: float16 `[N, k]`.
    usage: int64 `[E]` tokens of each expert; weight_sums: float64 `[E]`, of their weights.
    input_max: float32 `[hidden]`, the largest magnitude of the experts' inputs.
    input_square: float32 `[E, hidden]`, their mean squares by expert; inner_square: float32
    `[E, intermediate]`, those of what goes into its down projection. Zeros where no token came.
    foreseen: share of the choices that the layer's router names a layer early; None for the first.
    errors: float32 `[E, candidates]`, what an expert adds to the squared error of the residual
    stream when it is stored as a candidate, as a share of the stream's squared size, all of it over
    all tokens; that of an expert that no token went to is the mean of its layer's.
    """

    layer: int
    experts: np.ndarray
    weights: np.ndarray
    usage: np.ndarray
    weight_sums: np.ndarray
    input_max: np.ndarray
    input_square: np.ndarray
    inner_square: np.ndarray
    foreseen: float | None
    errors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @property
    def unused(self) -> tuple[int, ...]:
        """Experts that no token went to."""
        return tuple(np.flatnonzero(self.usage == 0).tolist())


@dataclass(frozen=True)
class Provenance:
    """model: a hash of the spec and of the names, types and sizes of all tensors. text: of the ids.
    source: where the text was from. all_experts: every expert saw every token."""

    model: str
    family: str
    tokenizer: str
    text: str
    source: str
    tokens: int
    seq_len: int
    seed: int
    all_experts: bool
    pocketmoe: str


@dataclass(frozen=True)
class CalibrationRecord:
    """ids: int64 `[sequences, seq_len]`. candidates: names of how an expert might be stored, to the
    columns of `errors`; none in a record that was made without them."""

    provenance: Provenance
    ids: np.ndarray
    layers: tuple[LayerRecord, ...]
    candidates: tuple[str, ...] = ()

    def layer(self, index: int) -> LayerRecord:
        return next(item for item in self.layers if item.layer == index)


def model_hash(spec: ModelSpec, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    """tensors: dtype and shape of each by name."""
    content = {"spec": spec.to_json(), "tensors": sorted((n, *t) for n, t in tensors.items())}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, record: CalibrationRecord) -> None:
    """Writes both files into the directory `path`, the arrays first and each beside and renamed."""
    arrays: dict[str, np.ndarray] = {"ids": record.ids.astype(np.int32)}
    layers = []
    for item in record.layers:
        values = vars(item)
        arrays |= {
            f"{item.layer}.{name}": array
            for name, array in values.items()
            if isinstance(array, np.ndarray)
        }
        layers.append({"layer": item.layer, "foreseen": item.foreseen})
    beside = path / f".{ARRAYS}.tmp"
    with beside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    digest = hashlib.sha256(beside.read_bytes()).hexdigest()
    os.replace(beside, path / ARRAYS)
    data = {
        "format": FORMAT, "version": VERSION, "provenance": asdict(record.provenance),
        "layers": layers, "candidates": list(record.candidates), "arrays_sha256": digest,
    }  # fmt: skip
    beside = path / f".{RECORD}.tmp"
    beside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path / RECORD)


def is_record(path: Path) -> bool:
    return (path / RECORD).is_file()


def read_record(path: Path) -> CalibrationRecord:
    """Raises InputError where it is none, unfinished, damaged or of another version."""
    try:
        data = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = "'pocketmoe calibrate' makes one"
        if (path / UNFINISHED).is_dir():
            hint = "the calibration is unfinished: go on with 'pocketmoe calibrate --resume'"
        raise InputError(f"{path} has no {RECORD}: it is no calibration record; {hint}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path / RECORD} cannot be read ({error}); calibrate again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(
            f"{path / RECORD} is no calibration record; 'pocketmoe calibrate' makes one"
        )
    if data.get("version") != VERSION:
        raise InputError(
            f"{path} has version {str(data.get('version'))[:20]}, and this pocketmoe reads "
            f"{VERSION}; calibrate again"
        )
    try:
        content = (path / ARRAYS).read_bytes()
        if hashlib.sha256(content).hexdigest() != data["arrays_sha256"]:
            raise InputError(f"{path / ARRAYS} is damaged (its hash is another); calibrate again")
        return _parse(data, path)
    except FileNotFoundError as error:
        raise InputError(f"{path / ARRAYS} is missing; calibrate again") from error
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error!r}); calibrate again") from error


def _parse(data: dict[str, Any], path: Path) -> CalibrationRecord:
    names = [name for name in LayerRecord.__dataclass_fields__ if name not in ("layer", "foreseen")]
    candidates = tuple(str(name) for name in data.get("candidates", ()))
    with np.load(path / ARRAYS, allow_pickle=False) as arrays:
        layers = tuple(
            LayerRecord(
                layer=int(item["layer"]), foreseen=item["foreseen"],
                **{
                    name: arrays[f"{item['layer']}.{name}"]
                    for name in names
                    if name != "errors" or candidates
                },
            )
            for item in data["layers"]
        )  # fmt: skip
        ids = arrays["ids"].astype(np.int64)
    return CalibrationRecord(Provenance(**data["provenance"]), ids, layers, candidates)


def check_model(record: CalibrationRecord, model: str, tokenizer: str, where: Path) -> None:
    """Raises InputError where the record is of another model or tokenizer. tokenizer: its hash,
    empty where the checkpoint has none."""
    found = record.provenance
    if found.model == model and not tokenizer:
        raise InputError(
            f"the checkpoint has lost the tokenizer.json that {where} was made with; copy it there"
        )
    for what, own, wanted in (
        ("model", found.model, model), ("tokenizer", found.tokenizer, tokenizer),
    ):  # fmt: skip
        if own != wanted:
            raise InputError(
                f"{where} is the calibration of another {what} (of the family {found.family}); "
                "calibrate this checkpoint"
            )
