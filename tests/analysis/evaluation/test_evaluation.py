"""`eval` against the whole PyTorch module: the stream's answers, and every figure made of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from pocketmoe.analysis.evaluation import reference
from pocketmoe.analysis.evaluation.deviation import Deviations
from pocketmoe.analysis.evaluation.reference import Reference, run_reference
from pocketmoe.analysis.evaluation.run import run_evaluation
from pocketmoe.analysis.evaluation.scores import evaluate
from pocketmoe.analysis.evaluation.verify import load_decoder
from pocketmoe.analysis.evaluation.windows import Windows, cut_windows
from pocketmoe.bench.lib.random_models import make_model
from pocketmoe.bench.quality.families import configs
from pocketmoe.calibration import hidden
from pocketmoe.cli import main
from pocketmoe.compiler.compile import compile_bundle
from pocketmoe.compiler.precision import parse_precision
from pocketmoe.errors import BundleError, CheckpointError, InputError
from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.families import FAMILIES
from pocketmoe.model.module import DecoderLayer
from pocketmoe.model.routing import Route
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.runtime.options import OpenOptions
from pocketmoe.targets import find_target

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = np.random.default_rng(0).integers(1, 250, 150).tolist()
WINDOWS = cut_windows(TOKENS, 40)  # 40, 40, 40, 30

# A feature each: latent attention and groups; multipliers and scaled logits, tied or not; dense
# layers in pages; windows, sinks and biases; layers without pages; a bias of the head.
CASES = [
    ("deepseek_v2", "groups"), ("granitemoe", "default"), ("granitemoe", "untied"),
    ("llama", "default"), ("gpt_oss", "default"), ("qwen3_moe", "dense layers"),
    ("phimoe", "default"), ("deepseek_v3", "default"),
]  # fmt: skip


@torch.no_grad()
def run_module(
    checkpoint: Path, windows: Windows
) -> tuple[list[np.ndarray], dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Logits of each window; experts' inputs and routes by layer, over the tokens of all."""
    model = load_decoder(checkpoint)
    spec = model.spec
    inputs: dict[int, list[np.ndarray]] = {layer: [] for layer in spec.paged_layers}
    for index in spec.paged_layers:

        def record(_: object, __: object, x: torch.Tensor, index: int = index) -> None:
            inputs[index].append(x[0].numpy())

        cast(DecoderLayer, model.layers[index]).ffn_norm.register_forward_hook(record)
    logits = []
    chosen: dict[int, list[np.ndarray]] = {layer: [] for layer in spec.paged_layers}
    for number in range(len(windows)):
        routes: list[Route] = []
        logits.append(model(torch.from_numpy(windows[number])[None], routes=routes)[0].numpy())
        for layer, route in zip(spec.paged_layers, routes, strict=True):
            chosen[layer].append(route.experts.numpy())
    return (
        logits,
        {layer: np.concatenate(parts) for layer, parts in inputs.items()},
        {layer: np.concatenate(parts) for layer, parts in chosen.items()},
    )


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(("family", "config"), CASES)
def test_a_reference_answers_as_the_module(
    family: str, config: str, on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint"
    make_model(dict(configs(FAMILIES[family]))[config], checkpoint)
    if on_disk:
        monkeypatch.setattr(hidden, "IN_MEMORY", 0)
    found = run_reference(Checkpoint(checkpoint), WINDOWS, tmp_path)
    assert bool(list(tmp_path.glob("*.bin"))) == on_disk
    logits, inputs, routes = run_module(checkpoint, WINDOWS)
    for number, expected in enumerate(logits):
        np.testing.assert_allclose(found.logits(number), expected, rtol=1e-3, atol=2e-5)
    tokens = np.flatnonzero(WINDOWS.is_token)
    for item in found.layers:
        assert item.sample.tolist() == tokens.tolist()  # there is room for all
        np.testing.assert_allclose(item.inputs, inputs[item.layer], rtol=1e-3, atol=2e-5)
        is_moe = Checkpoint(checkpoint).spec.layers[item.layer].is_moe
        assert (item.experts is not None) == is_moe
        if item.experts is not None:
            same = np.sort(item.experts[tokens]) == np.sort(routes[item.layer])
            assert same.mean() > 0.999


@pytest.fixture(scope="module")
def tiny_reference(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return run_reference(Checkpoint(tiny_checkpoint), WINDOWS, tmp_path_factory.mktemp("hidden"))


def softmax(logits: np.ndarray) -> np.ndarray:
    whole = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return whole / whole.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("step", [None, 7])
def test_figures_are_those_of_the_whole_module(
    step: int | None, tiny_bundle: Path, tiny_checkpoint: Path, tiny_reference: Reference
) -> None:
    logits, inputs, routes = run_module(tiny_checkpoint, WINDOWS)
    seen: dict[int, list[np.ndarray]] = {layer: [] for layer in inputs}
    chosen: dict[int, list[np.ndarray]] = {layer: [] for layer in inputs}
    with open_bundle(tiny_bundle) as session:
        deviations = Deviations(session.manifest, tiny_reference.layers, WINDOWS)
        result = evaluate(session, WINDOWS, tiny_reference.logits, deviations, step=step)
        layers = [segment.router_layer for segment in session.manifest.segments]

        def observe(segment: int, outputs: dict[str, np.ndarray]) -> None:
            layer = layers[segment]
            if layer is not None:
                seen[layer].append(outputs["expert_input"].copy())
                chosen[layer].append(outputs["expert_ids"].copy())

        divergences, losses, expected_losses, agreements = [], [], [], []
        for number, expected in enumerate(logits):
            session.reset()
            targets = WINDOWS[number][1:]
            each = np.arange(len(targets))
            parts = range(0, len(targets) + 1, step or len(targets) + 1)
            size = step or len(targets) + 1
            own = np.concatenate(
                [session.forward(WINDOWS[number][at : at + size], observe=observe) for at in parts]
            )
            p, q = softmax(expected[:-1]), softmax(own[:-1])
            divergences.append((p * np.log(p / q)).sum(axis=1))
            losses.append(-np.log(q[each, targets]))
            expected_losses.append(-np.log(p[each, targets]))
            agreements.append(p.argmax(axis=1) == q.argmax(axis=1))
    kl = np.concatenate(divergences)
    assert (result.window, result.windows, result.tokens) == (40, 4, 146)
    assert result.perplexity == pytest.approx(np.exp(np.concatenate(losses).mean()), rel=1e-5)
    reference_perplexity = np.exp(np.concatenate(expected_losses).mean())
    assert result.reference_perplexity == pytest.approx(reference_perplexity, rel=1e-5)
    assert result.perplexity_ratio == pytest.approx(result.perplexity / reference_perplexity)
    assert result.kl_mean == pytest.approx(kl.mean(), rel=1e-3)
    assert result.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-3)
    assert result.top1_agreement == pytest.approx(np.concatenate(agreements).mean())
    changed = total = 0
    for item in result.layers:
        count = 0
        found = np.concatenate(chosen[item.layer]).tolist()
        wanted = routes[item.layer].tolist()
        for own_row, row in zip(found, wanted, strict=True):
            count += len(set(row) - set(own_row))
        assert item.changed_experts == pytest.approx(count / routes[item.layer].size)
        changed, total = changed + count, total + routes[item.layer].size
        error = np.concatenate(seen[item.layer]) - inputs[item.layer]
        relative = np.linalg.norm(error) / np.linalg.norm(inputs[item.layer])
        assert item.input_error == pytest.approx(relative, rel=1e-3)
    assert changed > 0
    assert result.changed_experts == pytest.approx(changed / total)
    assert [item.layer for item in result.layers] == [1, 2, 3]
    for name, (low, high) in result.intervals.items():
        assert low <= getattr(result, name) <= high
    assert len(result.intervals) == 7


def test_a_bundle_of_fp32_deviates_by_rounding(
    tiny_bundle_fp32: Path, tiny_reference: Reference
) -> None:
    with open_bundle(tiny_bundle_fp32) as session:
        deviations = Deviations(session.manifest, tiny_reference.layers, WINDOWS)
        result = evaluate(session, WINDOWS, tiny_reference.logits, deviations)
    assert result.changed_experts is not None
    assert result.changed_experts < 0.01
    assert result.kl_mean == pytest.approx(0, abs=1e-5)
    assert all(item.input_error < 1e-3 for item in result.layers)


def test_the_sample_is_bounded(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_SAMPLE_BYTES", 20 * 3 * 64 * 4)
    found = run_reference(Checkpoint(tiny_checkpoint), WINDOWS, tmp_path)
    for item in found.layers:
        assert item.inputs.shape == (20, 64)
        assert WINDOWS.is_token.reshape(-1)[item.sample].all()
        assert (np.diff(item.sample) > 0).all()


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.py"
    path.write_text("def main():\n    return 0\n" * 150, encoding="utf-8")
    return path


class TestEvalCommand:
    def test_tables_and_json(self, tiny_bundle: Path, tiny_checkpoint: Path, text: Path) -> None:
        arguments = ["eval", tiny_bundle, "--data", text, "--against", tiny_checkpoint]
        shown = call(*arguments)
        assert shown.exit_code == 0, shown.stderr
        for words in ("KL divergence, 99 %", "changed expert choices", " to ", "bootstrap"):
            assert words in shown.stdout
        assert "1. running the checkpoint" in shown.stderr
        assert "2. evaluating" in shown.stderr
        report = json.loads(call(*arguments, "--json").stdout)
        assert [item["layer"] for item in report["layers"]] == [1, 2, 3]
        assert set(report["intervals"]) == {
            "perplexity", "reference_perplexity", "perplexity_ratio", "kl_mean", "kl_p99",
            "top1_agreement", "changed_experts",
        }  # fmt: skip
        assert report["bootstrap"]["confidence"] == 0.95

    def test_fewer_tokens(self, tiny_bundle: Path, text: Path) -> None:
        arguments = ["eval", tiny_bundle, "--data", text, "--tokens", "600", "--json"]
        report = json.loads(call(*arguments).stdout)
        assert (report["window"], report["windows"], report["tokens"]) == (512, 1, 511)
        assert report["intervals"] == {}
        assert "one window alone" in call(*arguments[:-1]).stdout

    def test_progress_adds_up(self, tiny_bundle: Path, tiny_checkpoint: Path, text: Path) -> None:
        stages: list[list[int]] = []

        class ToldProgress:
            def stage(self, name: str, total: int) -> None:
                stages.append([total, 0])

            def advance(self, nbytes: int) -> None:
                assert nbytes >= 0
                stages[-1][1] += nbytes

        run_evaluation(tiny_bundle, text, tiny_checkpoint, ToldProgress(), tokens=1024)
        assert stages == [[1024, 1024], [1024, 1024]]

    def test_options_of_the_session(
        self, tiny_bundle: Path, tiny_checkpoint: Path, text: Path
    ) -> None:
        result = run_evaluation(
            tiny_bundle, text, tiny_checkpoint, tokens=64,
            opening=OpenOptions(skip_cold=1.0, memory_budget="auto", backend="cpu"),
        )  # fmt: skip
        assert result.lossy == ("skip cold 1",)
        assert result.kl_mean is not None


class TestEvalRefusals:
    def refused(self, *arguments: object) -> str:
        result = call("eval", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    def test_another_tokenizer(
        self, tiny_bundle: Path, tiny_checkpoint: Path, text: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        shutil.copytree(tiny_checkpoint, other)
        tokenizer = other / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text() + "\n")
        line = self.refused(tiny_bundle, "--data", text, "--against", other)
        assert "another tokenizer.json" in line

    def test_another_checkpoint(
        self, tiny_bundle: Path, tiny_checkpoint: Path, text: Path, tmp_path: Path
    ) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            name = next(name for name in tensors if "embed" in name)
            tensors[name] = tensors[name] * 2

        other = changed(tiny_checkpoint, tmp_path / "other", change)
        line = self.refused(tiny_bundle, "--data", text, "--against", other)
        assert "their embeddings differ" in line

    def test_activations_that_are_not_finite(
        self, tiny_checkpoint: Path, tiny_bundle: Path, text: Path, tmp_path: Path
    ) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            for name in tensors:
                if name.startswith("model.layers.2.") or name.startswith("layers.2."):
                    tensors[name] = torch.full_like(tensors[name], 3e38)

        other = changed(tiny_checkpoint, tmp_path / "other", change)
        line = self.refused(tiny_bundle, "--data", text, "--against", other)
        assert "layer 2 computes numbers that are not finite" in line
        with pytest.raises(CheckpointError, match="layer 2"):
            run_reference(Checkpoint(other), WINDOWS, tmp_path)

    def test_a_bundle_whose_numbers_are_not_finite(
        self, tiny_checkpoint: Path, tmp_path: Path, tiny_reference: Reference
    ) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            for name in tensors:
                if "layers.2." in name and "experts" in name:
                    tensors[name] = torch.full_like(tensors[name], 1e38)

        other, bundle = tmp_path / "other", tmp_path / "bundle"
        changed(tiny_checkpoint, other, change)
        target = find_target("cpu")
        compile_bundle(
            other, bundle, target=target, precision=parse_precision(["fp32"], 32, target)
        )
        with open_bundle(bundle) as session:
            deviations = Deviations(session.manifest, tiny_reference.layers, WINDOWS)
            with pytest.raises(BundleError, match=r"layer 3 of the bundle .* not finite"):
                evaluate(session, WINDOWS, tiny_reference.logits, deviations)
            with pytest.raises(BundleError, match="logits that are not finite"):
                evaluate(session, WINDOWS)

    def test_a_full_disk(
        self, tiny_checkpoint: Path, tiny_bundle: Path, text: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(hidden, "IN_MEMORY", 0)
        monkeypatch.setattr(os, "posix_fallocate", full)
        arguments = [tiny_bundle, "--data", text, "--against", tiny_checkpoint, "--work", tmp_path]
        line = self.refused(*arguments)
        assert str(tmp_path) in line
        assert "fewer --tokens" in line
        assert not list(tmp_path.glob("pocketmoe-*"))

    def test_work(self, tiny_bundle: Path, tiny_checkpoint: Path, text: Path) -> None:
        assert "--work needs --against" in self.refused(tiny_bundle, "--data", text, "--work", "x")
        with pytest.raises(InputError, match="is not a directory"):
            run_evaluation(tiny_bundle, text, tiny_checkpoint, work=text)

    @pytest.mark.parametrize("tokens", [0, 1])
    def test_too_few_tokens(self, tokens: int, tiny_bundle: Path, text: Path) -> None:
        assert "--tokens" in self.refused(tiny_bundle, "--data", text, "--tokens", tokens)


def changed(checkpoint: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint with other weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, out)
    (file,) = out.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return out
