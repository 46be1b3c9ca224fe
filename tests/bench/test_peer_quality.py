"""bench/quality/quality.py --peer llama.cpp: all of it that needs no llama.cpp."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pocketmoe.analysis.evaluation.scores import Evaluation
from pocketmoe.analysis.evaluation.windows import cut_windows
from pocketmoe.bench.peers import llama_cpp_files, peer_model
from pocketmoe.bench.peers.llama_cpp_files import LlamaCpp
from pocketmoe.bench.peers.peer_quality import (
    SEQUENCE,
    QualityRow,
    bits_that_fit,
    calibration_text,
    check_tokens,
    table,
    weight_bits,
)
from pocketmoe.bench.quality.layer_errors import layer_errors, read_expert
from pocketmoe.bench.quality.quality_reference import Yardstick
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.calibration.record import CalibrationRecord, Provenance
from pocketmoe.compiler.quantize import quantize_matrix
from pocketmoe.errors import InputError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.families import find_family
from pocketmoe.model.parameters import count_parameters
from pocketmoe.tests.conftest import SOURCE

FORMS = (("int4", 32), ("int8", 64))
pytestmark = pytest.mark.usefixtures("one_thread")


def record_of(ids: np.ndarray) -> CalibrationRecord:
    provenance = Provenance("", "", "", "", "", ids.size, SEQUENCE, 0, False, "")
    return CalibrationRecord(provenance, ids, ())


def test_the_widths_fit_k_quants_and_experts_are_most_of_the_weights() -> None:
    spec = find_family(peer_model.CONFIG).read_config(peer_model.CONFIG)
    counted = count_parameters(spec)
    assert spec.hidden_size % 256 == 0
    assert all(layer.intermediate_size % 256 == 0 for layer in spec.layers)
    assert counted.experts > 0.9 * counted.total


def test_a_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trained.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(InputError, match="choose another --cache"):
        peer_model.peer_checkpoint(tmp_path, tmp_path)


def test_the_text_is_hardly_longer_than_asked_for(tiny_checkpoint: Path) -> None:
    """One sequence more, and each side would take others of them."""
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    text = calibration_text(SOURCE * 200, tokenizer, 4 * SEQUENCE)
    assert len(tokenizer.encode(text).ids) // SEQUENCE == 4


def test_other_tokens_are_refused() -> None:
    ids = np.arange(2 * SEQUENCE).reshape(2, SEQUENCE)
    theirs = np.arange(2 * SEQUENCE + 7)
    check_tokens(record_of(ids), theirs)
    for other in (theirs[: 2 * SEQUENCE - 1], np.arange(3 * SEQUENCE), theirs + 1):
        with pytest.raises(InputError, match="other tokens"):
            check_tokens(record_of(ids), other)


def test_bits_are_those_of_all_weights(tiny_bundle: Path) -> None:
    """int4 with a scale for 32, int8 likewise, the embedding in fp16; pages are filled up."""
    manifest = read_manifest(tiny_bundle)
    counted = count_parameters(manifest.spec)
    least = (4.5 * counted.experts + 8.5 * (counted.total - counted.experts)) / counted.total
    filled = sum(
        page.nbytes - sum(place.nbytes for place in page.format.tensors())
        for page in manifest.pages()
    )
    most = least + (32 * counted.embedding + 8 * filled) / counted.total
    assert least + 8 * filled / counted.total < weight_bits(manifest) < most


def test_bits_that_fit_into_the_room_that_there_is(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    page = manifest.experts[0].formats[0]
    kinds = [replace(page, precision=kind, block_size=size) for kind, size in FORMS]
    layers = [
        SimpleNamespace(layer=item.layer, errors=np.tile([4.0, 1.0], (len(item.offsets), 1)))
        for item in manifest.experts
    ]
    record = SimpleNamespace(layers=layers, candidates=tuple(item.name for item in kinds))
    bits = weight_bits(manifest)
    counted = count_parameters(manifest.spec)
    least = bits_that_fit(record, tmp_path, manifest, bits - 1)  # type: ignore[arg-type]
    assert least == kinds[0].weight_bits
    step = 8 * (kinds[1].nbytes - kinds[0].nbytes) / counted.total
    # Room for half of the experts in the larger form.
    half = bits + manifest.num_pages / 2 * step
    found = bits_that_fit(record, tmp_path, manifest, half)  # type: ignore[arg-type]
    assert found == pytest.approx((kinds[0].weight_bits + kinds[1].weight_bits) / 2, abs=0.3)
    assert bits_that_fit(record, tmp_path, manifest, half + 2) > found  # type: ignore[arg-type]


def test_logits_of_the_checkpoint_have_no_divergence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    yardstick = Yardstick(tiny_checkpoint, list(range(40)), 16, tmp_path)
    logits = [yardstick._reference.logits(window).copy() for window in range(3)]
    same = yardstick.score(lambda window: logits[window])
    assert same.kl_mean == pytest.approx(0, abs=1e-12)
    assert same.perplexity == same.reference_perplexity
    rng = np.random.default_rng(0)
    noisy = [part + rng.normal(0, 0.1, part.shape).astype(np.float32) for part in logits]
    assert float(yardstick.score(lambda window: noisy[window]).kl_mean or 0) > 1e-4


def test_a_page_is_read_as_it_was_quantized(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    page = next(read_manifest(tiny_bundle).pages())
    found = read_expert(tiny_bundle, page)
    with Checkpoint(tiny_checkpoint).tensors() as reader:
        for name in ("gate", "up", "down"):
            parameter = f"layers.{page.key.layer}.experts.0.{name}.weight"
            weight = torch.cat(list(reader.tiles(parameter))).numpy()
            expected = quantize_matrix(weight, 4, 32).dequantized()
            np.testing.assert_array_equal(found[f"{name}.weight"].numpy(), expected)


def test_layers_errors(
    tiny_checkpoint: Path, compile_tiny: Callable[[str], Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    bundles = {"int4": tiny_bundle, "int8": compile_tiny("int8"), "fp32": compile_tiny("fp32")}
    windows = cut_windows(list(range(100)), 32)
    found = layer_errors(Checkpoint(tiny_checkpoint), windows, bundles, tmp_path)
    assert list(found) == [1, 2, 3]
    for errors in found.values():
        assert errors["fp32"] == 0 < errors["int8"] < errors["int4"] / 8 < 0.1


def test_missing_tools_are_told_how_to_be_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(llama_cpp_files, "check_llama_python", lambda python: None)
    with pytest.raises(InputError, match=r"no llama-imatrix, see --llama-tools.*cmake --build"):
        LlamaCpp(sys.executable, tmp_path, 1).check()


def test_a_tool_that_fails_is_named(tmp_path: Path) -> None:
    tool = tmp_path / "llama-quantize"
    tool.write_text("#!/bin/sh\necho first >&2\necho 'no such type' >&2\nexit 3\n")
    tool.chmod(0o755)
    with pytest.raises(InputError, match="llama-quantize failed: no such type"):
        LlamaCpp(sys.executable, tmp_path, 1).quantize(tmp_path, "Q9", tmp_path / "out")


def test_the_table_holds_kls_against_the_peer() -> None:
    def row(name: str, kl: float) -> QualityRow:
        result = Evaluation(16, 2, 30, 9.0, 9.0, 1.01, kl, intervals={"kl_mean": (kl, 2 * kl)})
        return QualityRow(name, 4.8, result)

    peer = row("Q4_K_M", 2e-3)
    *_, first, second = table([peer, row("ours", 1e-3)], peer).splitlines()
    assert first.endswith("| +1.00% | 2.00e-03 (2.00e-03 to 4.00e-03) | 1.00 |")
    assert second.endswith("| 0.50 |")
