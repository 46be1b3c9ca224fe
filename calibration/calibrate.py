"""checkpoint + text → CalibrationRecord, layer by layer; it goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..files import atomic_file
from ..model.checkpoint.checkpoint import Checkpoint
from ..model.module import activate
from ..model.routing import choose_experts
from ..progress import Progress, Silent
from ..runtime.generation.text import load_tokenizer
from ..signals import unwinding_when_terminated
from .candidates import candidates_for, output_errors
from .record import (
    UNFINISHED,
    CalibrationRecord,
    LayerRecord,
    Provenance,
    is_record,
    model_hash,
    read_record,
    write_record,
)
from .stream import LayerInput, LayerStream, load_layer
from .text import CalibrationText, read_sequences

_LEAST_SEQUENCE = 8  # tokens; shorter ones show no text
_ROWS = 4096  # tokens that go through an expert at once

_log = logging.getLogger(__name__)
_SILENT = Silent()


def calibrate(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    tokens: int,
    seq_len: int,
    seed: int = 0,
    all_experts: bool = False,
    resume: bool = False,
    progress: Progress = _SILENT,
) -> CalibrationRecord:
    """Writes a record to the directory `out`. all_experts: moments are those of all tokens, not
    of an expert's own alone. resume: go on with what a run with the same arguments has left; a
    record that is finished is returned as it is.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be read, or computes no finite numbers.
        InputError: the text or an argument is wrong, or `out` is there.
    """
    source = Checkpoint(checkpoint)
    text = _read_text(source, data, tokens=tokens, seq_len=seq_len, seed=seed)
    provenance = Provenance(
        **identify(source), text=text.sha256, source=text.source, tokens=text.ids.size,
        seq_len=seq_len, seed=seed, all_experts=all_experts, pocketmoe=version("pocketmoe"),
    )  # fmt: skip
    if resume and is_record(out) and not (out / UNFINISHED).exists():
        record = read_record(out)
        _need_same(out, asdict(record.provenance), asdict(provenance))
        _log.warning("%s is finished already", out)
        return record
    work = _open_work(out, asdict(provenance), resume)
    with unwinding_when_terminated(), _keeping_layers(out):
        stream = LayerStream(source, source.spec, text.ids, work)
        count = source.spec.num_hidden_layers
        progress.stage(f"calibrating {count} layers", text.ids.size * count)
        layers = _Run(source, stream, work, progress, all_experts=all_experts).layers()
        names = tuple(item.name for item in candidates_for(source.spec))
        record = CalibrationRecord(provenance, text.ids, layers, names)
        write_record(out, record)
        shutil.rmtree(work)
    _warn_of_unused(layers)
    return record


@contextmanager
def _keeping_layers(out: Path) -> Iterator[None]:
    """A run that ends early leaves its layers; where none is done, nothing."""
    try:
        yield
    except BaseException:
        if any((out / UNFINISHED).glob("layer_*.npz")):
            _log.warning("%s keeps the layers that are done; --resume goes on there", out)
        else:
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
            with suppress(OSError):  # it has something else in it
                out.rmdir()
        raise


def identify(source: Checkpoint) -> dict[str, str]:
    """What a record keeps of a model, to be known again."""
    tensors = {name: (dtype, ()) for name, dtype in source.dtypes.items()}
    tokenizer = source.tokenizer_path
    found = hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else ""
    return {
        "model": model_hash(source.spec, tensors),
        "family": source.spec.family,
        "tokenizer": found,
    }


def _read_text(
    source: Checkpoint, data: Path, *, tokens: int, seq_len: int, seed: int
) -> CalibrationText:
    tokenizer = load_tokenizer(source.tokenizer_path)
    if tokenizer is None:
        raise InputError(
            f"{source.path} has no {source.tokenizer_path.name}, which calibrating needs; copy it "
            "there"
        )
    if not _LEAST_SEQUENCE <= seq_len <= source.spec.max_context:
        raise InputError(
            f"--seq-len must be from {_LEAST_SEQUENCE} to {source.spec.max_context}, what the "
            f"model sees, not {seq_len}"
        )
    text = read_sequences(data, tokenizer, tokens=tokens, seq_len=seq_len, seed=seed)
    if int(text.ids.max()) >= source.spec.vocab_size:
        raise InputError(
            f"{source.tokenizer_path} makes ids up to {int(text.ids.max())}, and the model knows "
            f"{source.spec.vocab_size}; it belongs to another model"
        )
    return text


def _open_work(out: Path, arguments: dict[str, object], resume: bool) -> Path:
    """The folder of a run under way, below `out`.

    Raises:
        InputError: `out` is there without resume, or is of a run with other arguments.
    """
    work = out / UNFINISHED
    settings = work / "run.json"
    if not resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            hint = "go on with --resume, or " if work.is_dir() else ""
            raise InputError(f"{out} exists; {hint}remove it, or choose another -o")
        work.mkdir(parents=True)
        settings.write_text(json.dumps(arguments), encoding="utf-8")
        return work
    try:
        found = json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{out} has nothing to resume; calibrate without --resume") from None
    _need_same(out, found, arguments)
    return work


def _need_same(out: Path, found: Mapping[str, object], arguments: Mapping[str, object]) -> None:
    differing = [name for name, value in arguments.items() if found.get(name) != value]
    if differing:
        raise InputError(
            f"{out} was begun with another {differing[0].replace('_', ' ')}; resume with the same "
            "arguments, or choose another -o"
        )


def _warn_of_unused(layers: Sequence[LayerRecord]) -> None:
    for item in layers:
        if item.unused:
            names = ", ".join(map(str, item.unused[:20])) + (", …" if item.unused[20:] else "")
            _log.warning("layer %d: no token went to %d experts: %s", item.layer,
                         len(item.unused), names)  # fmt: skip


class _Run:
    """One pass over all layers. What a finished layer has found, and the state after it, are in
    `work`; a layer that was interrupted is run again."""

    def __init__(
        self,
        source: Checkpoint,
        stream: LayerStream,
        work: Path,
        progress: Progress,
        *,
        all_experts: bool,
    ):
        self._source, self._stream, self._work = source, stream, work
        self._progress, self._all = progress, all_experts
        self._candidates = candidates_for(source.spec)
        self._foreseen: np.ndarray | None = None  # what the present layer's router said before

    def layers(self) -> tuple[LayerRecord, ...]:
        stream, spec = self._stream, self._stream.spec
        saved = self._load()
        if saved is None:
            saved = []
            stream.embed()
            self._save_state()
        self._progress.advance(stream.layer * stream.ids.size)
        records = {item.layer: item for item in saved}
        while stream.layer < spec.num_hidden_layers:
            entered = stream.enter()
            if entered is not None:
                found = self._run_experts(entered)
                self._foreseen = self._look_ahead(entered.layer)
                errors = (found.errors * stream.leave()).astype(np.float32)
                records[entered.layer] = replace(found, errors=errors)
                self._save_layer(records[entered.layer])
            self._save_state()
            self._progress.advance(stream.ids.size)
        return tuple(records[layer] for layer in sorted(records))

    @torch.no_grad()
    def _run_experts(self, entered: LayerInput) -> LayerRecord:
        stream, spec = self._stream, self._stream.spec
        rule = spec.layers[entered.layer]
        count = rule.router.num_experts if rule.router is not None else 1
        usage = np.bincount(entered.experts.ravel(), minlength=count).astype(np.int64)
        sums = np.bincount(
            entered.experts.ravel(), entered.weights.ravel().astype(np.float64), count
        )
        input_square = np.zeros((count, spec.hidden_size), np.float32)
        inner_square = np.zeros((count, rule.intermediate_size), np.float32)
        errors = np.zeros((count, len(self._candidates)))
        everyone = np.arange(len(entered.x))
        for expert in range(count):
            rows, weights = entered.tokens_of(expert)
            seen = everyone if self._all else rows
            if not len(seen):
                continue
            module = stream.load_expert(expert)
            errors[expert] = output_errors(
                module, torch.from_numpy(entered.x[rows]), torch.from_numpy(weights),
                self._candidates,
            )  # fmt: skip
            shares = np.zeros(len(entered.x), np.float32)
            shares[rows] = weights
            for start in range(0, len(seen), _ROWS):
                part = seen[start : start + _ROWS]
                x = torch.from_numpy(entered.x[part])
                inner = activate(module.activation, module.gate(x), module.up(x))
                input_square[expert] += x.square().sum(dim=0).numpy()
                inner_square[expert] += inner.square().sum(dim=0).numpy()
                own = shares[part] != 0
                if own.any():
                    y = module.down(inner[torch.from_numpy(own)]).numpy()
                    stream.add(part[own], y * shares[part][own][:, None])
            input_square[expert] /= len(seen)
            inner_square[expert] /= len(seen)
        # What no token went to is not free: other text will ask for it.
        errors[usage == 0] = errors[usage > 0].mean(axis=0)
        return LayerRecord(
            layer=entered.layer,
            experts=entered.experts.astype(np.uint16),
            weights=entered.weights.astype(np.float16),
            usage=usage,
            weight_sums=sums,
            input_max=np.abs(entered.x).max(axis=0),
            input_square=input_square,
            inner_square=inner_square,
            foreseen=self._share_foreseen(entered),
            errors=errors,
        )

    def _share_foreseen(self, entered: LayerInput) -> float | None:
        if self._foreseen is None:
            return None
        hits = (entered.experts[:, :, None] == self._foreseen[:, None, :]).any(axis=2)
        return float(hits.mean())

    @torch.no_grad()
    def _look_ahead(self, layer: int) -> np.ndarray | None:
        """What the next layer's router names for the residual stream as it is before the present
        layer's experts: int64 `[N, k]`."""
        spec, following = self._stream.spec, layer + 1
        if following >= spec.num_hidden_layers or not spec.layers[following].is_moe:
            return None
        router = spec.layers[following].router
        if router is None:
            return None
        module = load_layer(self._source, spec, following)
        hidden = torch.from_numpy(self._stream.hidden).flatten(0, 1)
        chosen = [
            choose_experts(module.router(module.ffn_norm(part)), router, module.router_correction)
            for part in hidden.split(_ROWS)
        ]
        return torch.cat([route.experts for route in chosen]).numpy()

    def _save_layer(self, item: LayerRecord) -> None:
        arrays = {n: v for n, v in vars(item).items() if isinstance(v, np.ndarray)}
        foreseen = np.float64(np.nan if item.foreseen is None else item.foreseen)
        _save(self._work / f"layer_{item.layer:03d}.npz", foreseen=foreseen, **arrays)

    def _save_state(self) -> None:
        """What the next layer begins with."""
        ahead = self._foreseen if self._foreseen is not None else np.zeros((0, 0), np.int64)
        _save(
            self._work / "state.npz", layer=np.int64(self._stream.layer),
            hidden=self._stream.hidden, foreseen=ahead,
        )  # fmt: skip

    def _load(self) -> list[LayerRecord] | None:
        """The layers that are done, and the stream is put behind them; None where nothing is."""
        path = self._work / "state.npz"
        if not path.is_file():
            return None
        with np.load(path) as state:
            self._stream.layer = int(state["layer"])
            self._stream.hidden[:] = state["hidden"]
            ahead = state["foreseen"]
            self._foreseen = ahead if ahead.size else None
        records = []
        for layer in self._stream.spec.paged_layers:
            if layer < self._stream.layer:
                with np.load(self._work / f"layer_{layer:03d}.npz") as found:
                    values = {name: found[name] for name in found.files}
                share = float(values.pop("foreseen"))
                foreseen = None if np.isnan(share) else share
                records.append(LayerRecord(layer=layer, foreseen=foreseen, **values))
        return records


def _save(path: Path, **arrays: Any) -> None:
    """arrays: numpy arrays and numbers."""
    with atomic_file(path) as file:
        np.savez(file, **arrays)
