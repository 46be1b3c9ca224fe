"""Compiled bundles against the PyTorch module, and what compiling leaves behind."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pocketmoe.analysis.evaluation.verify import compare_with_checkpoint
from pocketmoe.bundle.damage import find_damage
from pocketmoe.bundle.manifest import EMBEDDING, read_manifest
from pocketmoe.compiler.compile import compile_bundle, with_active_experts, write_embedding
from pocketmoe.compiler.precision import DEFAULT, check_blocks, parse_precision
from pocketmoe.compiler.segments import plan_segments
from pocketmoe.errors import BundleError, ConfigError, InputError, TargetError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.spec import RouterSpec
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.targets import find_target
from pocketmoe.tests.support.slow import slow
from pocketmoe.tests.support.waiting import PATIENCE, until

CPU = find_target("cpu")


def test_fp32_bundle_is_the_pytorch_module(tiny_bundle_fp32: Path, tiny_checkpoint: Path) -> None:
    # 48 tokens, three windows long: a prompt of half of them, then one by one.
    differences = compare_with_checkpoint(tiny_bundle_fp32, tiny_checkpoint)
    assert [d.where for d in differences][-1] == "logits"
    assert len(differences) == 4
    for difference in differences:
        assert 0 < difference.relative <= 1e-3, difference


@pytest.mark.parametrize(("name", "limit"), [("fp16", 0.02), ("int8", 0.2)])
def test_less_precision_stays_near(
    name: str, limit: float, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    precision = parse_precision([name], 32, CPU)
    compile_bundle(tiny_checkpoint, out, target=CPU, precision=precision)
    first = compare_with_checkpoint(out, tiny_checkpoint)[0]
    assert 1e-7 < first.relative < limit


def test_a_bundle_without_a_tokenizer_runs_token_ids(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    compile_bundle(checkpoint, tmp_path / "bundle", target=CPU, precision=DEFAULT32)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"{checkpoint} has no tokenizer.json: the bundle will run token ids alone"
    ]
    with open_bundle(tmp_path / "bundle") as session:
        assert session.forward([1, 2, 3]).shape == (3, 384)
        with pytest.raises(InputError, match="no tokenizer"):
            session.generate("x")


def test_every_graph_passes_the_checker(tiny_bundle: Path) -> None:
    graphs = sorted(tiny_bundle.rglob("*.onnx"))
    spec = read_manifest(tiny_bundle).spec
    experts = sum(rule.router.num_experts for rule in spec.layers if rule.router)
    assert len(graphs) == len(plan_segments(spec)) + experts + len(spec.paged_layers)
    for path in graphs:
        onnx.checker.check_model(str(path))


def test_graphs_hold_no_traces_of_the_machine(tiny_bundle: Path) -> None:
    for path in tiny_bundle.rglob("*.onnx"):
        assert b".py" not in path.read_bytes()


def test_the_manifest_covers_every_file(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    files = {p.relative_to(tiny_bundle).as_posix() for p in tiny_bundle.rglob("*") if p.is_file()}
    assert files == {"manifest.json", *manifest.files}
    assert find_damage(tiny_bundle, manifest) == {}


def test_existing_output_is_refused_and_replaced_only_by_force(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    compile_bundle(tiny_checkpoint, out, target=CPU, precision=DEFAULT32)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="--force"):
        compile_bundle(tiny_checkpoint, out, target=CPU, precision=DEFAULT32)
    assert (out / "manifest.json").read_bytes() == before
    compile_bundle(
        tiny_checkpoint, out, target=CPU, precision=DEFAULT32, active_experts=1, force=True
    )
    manifest = read_manifest(out)
    assert manifest.lossy == ("active experts 2 → 1",)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_force_does_not_replace_what_is_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not a bundle"):
        compile_bundle(tiny_checkpoint, precious, target=CPU, precision=DEFAULT32, force=True)
    assert (precious / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), slow(signal.SIGKILL, -9)])
def test_a_stopped_compile_leaves_nothing_that_looks_finished(
    number: int, code: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "pocketmoe", "compile", str(tiny_checkpoint)]
    command += ["--target", "cpu", "--block", "32", "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    until(lambda: any(tmp_path.iterdir()) or process.poll() is not None)
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, told.decode()
    assert not out.exists()
    if number == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []


def test_tokens_of_another_model_are_not_compared(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_checkpoint.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    with pytest.raises(BundleError, match="not compiled from"):
        compare_with_checkpoint(tiny_bundle, other)


def test_precision_texts() -> None:
    assert parse_precision([], 64, CPU) == DEFAULT
    assert parse_precision(["int8", "experts=int4"], 32, CPU) == replace(
        DEFAULT, backbone="int8", head="int8", experts="int4", block_size=32
    )
    with pytest.raises(InputError, match="int4"):
        parse_precision(["int3"], 64, CPU)
    for text in ("int4,int8", "experts=int4, experts=int8"):
        with pytest.raises(InputError, match="twice: choose one precision"):
            parse_precision([text], 64, CPU)
    with pytest.raises(InputError, match="experts, backbone, head"):
        parse_precision(["router=int4"], 64, CPU)
    with pytest.raises(InputError, match="32, 64, 128"):
        parse_precision(["int4"], 48, CPU)
    with pytest.raises(TargetError, match="has int4, int8"):
        parse_precision(["fp16"], 64, replace(CPU, precisions=("int4", "int8")))


def test_blocks_that_do_not_divide_are_refused(tiny_checkpoint: Path) -> None:
    spec = Checkpoint(tiny_checkpoint).spec
    with pytest.raises(ConfigError, match="--block 32 or 64"):
        check_blocks(spec, replace(DEFAULT, block_size=128))
    check_blocks(spec, replace(DEFAULT, experts="fp16", backbone="fp32", head="fp16"))


def test_active_experts_must_be_within_the_model(tiny_checkpoint: Path) -> None:
    spec = Checkpoint(tiny_checkpoint).spec
    with pytest.raises(InputError, match="1 to 2"):
        with_active_experts(spec, 3)
    assert with_active_experts(spec, 2) == (spec, ())
    always = RouterSpec(1, 1, scoring="always")
    dense = replace(spec, layers=tuple(replace(layer, router=always) for layer in spec.layers))
    with pytest.raises(InputError, match="no routed experts"):
        with_active_experts(dense, 1)


def test_embeddings_that_overflow_fp16_are_written_again_in_fp32(tmp_path: Path) -> None:
    (tmp_path / "backbone").mkdir()
    table = np.ones((6, 4), np.float32)
    table[4, 2] = 1e5

    class WideEmbedding:
        def tensors(self) -> nullcontext[WideEmbedding]:
            return nullcontext(self)

        def tiles(self, parameter: str) -> tuple[torch.Tensor, ...]:
            return torch.from_numpy(table).split(3)

    path = tmp_path / EMBEDDING
    assert write_embedding(tmp_path, WideEmbedding(), DEFAULT) == "float32"  # type: ignore[arg-type]
    assert np.array_equal(np.fromfile(path, np.float32).reshape(6, 4), table)
    table[4, 2] = 3
    assert write_embedding(tmp_path, WideEmbedding(), DEFAULT) == "float16"  # type: ignore[arg-type]
    assert np.array_equal(np.fromfile(path, np.float16).reshape(6, 4), table)


DEFAULT32 = replace(DEFAULT, block_size=32)
