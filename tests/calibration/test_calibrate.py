"""Calibration: layer by layer the same as the whole model, and what the record says of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from pocketmoe.analysis.evaluation.verify import load_decoder
from pocketmoe.calibration.calibrate import calibrate
from pocketmoe.calibration.record import ARRAYS, RECORD, UNFINISHED, read_record
from pocketmoe.calibration.stream import LayerStream
from pocketmoe.cli import main
from pocketmoe.errors import CheckpointError, InputError
from pocketmoe.model.routing import Route
from pocketmoe.tests.compiler.test_segments import SPECS, SegmentWeights, make_decoder
from pocketmoe.tests.support.slow import slow
from pocketmoe.tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(400))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.py"
    path.write_text(TEXT)
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class ModuleParameters(SegmentWeights):
    """A module's parameters where a checkpoint is expected."""


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("on_disk", [False, True])
@torch.no_grad()
def test_layers_one_after_the_other_are_the_model(
    name: str, on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_disk:
        monkeypatch.setattr("pocketmoe.calibration.hidden.IN_MEMORY", 0)
    spec, model = SPECS[name], make_decoder(SPECS[name])
    ids = np.random.default_rng(0).integers(spec.vocab_size, size=(3, 40))
    stream = LayerStream(ModuleParameters(model), spec, ids, tmp_path)  # type: ignore[arg-type]
    stream.embed()
    seen: list[np.ndarray] = []
    while stream.layer < spec.num_hidden_layers:
        entered = stream.enter()
        if entered is None:
            continue
        seen.append(entered.experts)
        for expert in np.unique(entered.experts):
            rows, weights = entered.tokens_of(int(expert))
            y = stream.load_expert(int(expert))(torch.from_numpy(entered.x[rows]))
            stream.add(rows, y.numpy() * weights[:, None])
        stream.leave()
    routes: list[Route] = []
    expected = model(torch.from_numpy(ids), routes=routes).numpy()
    hidden = torch.from_numpy(np.array(stream.hidden))
    found = (model.head(model.norm(hidden)) / spec.logits_scaling).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    for chosen, route in zip(seen, routes, strict=True):
        assert np.array_equal(chosen, route.experts.numpy())


def test_the_record_counts_what_the_model_did(
    tiny_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cal"
    made = calibrate(tiny_checkpoint, text, out, tokens=512, seq_len=64, seed=3)
    record = read_record(out)
    assert record.provenance == made.provenance
    assert np.array_equal(record.ids, made.ids)
    assert record.ids.shape == (8, 64)
    model, routes = load_decoder(tiny_checkpoint), []
    inputs: dict[int, np.ndarray] = {}
    for index, layer in enumerate(model.layers):
        layer.ffn_norm.register_forward_hook(
            lambda _, __, x, index=index: inputs.__setitem__(index, x.flatten(0, 1).numpy())
        )
    with torch.no_grad():
        model(torch.from_numpy(record.ids), routes=routes)
    assert [item.layer for item in record.layers] == list(model.spec.paged_layers)
    for item, route in zip(record.layers, routes, strict=True):
        experts = route.experts.numpy()
        assert np.array_equal(item.experts, experts)
        assert np.allclose(item.weights, route.weights.numpy(), atol=1e-3)
        counts = np.bincount(experts.ravel(), minlength=len(item.usage))
        assert np.array_equal(item.usage, counts)
        assert item.unused == tuple(np.flatnonzero(counts == 0))
        x = inputs[item.layer]
        assert np.allclose(item.input_max, np.abs(x).max(axis=0), rtol=1e-4)
        for expert in np.flatnonzero(counts):
            own = x[(experts == expert).any(axis=1)]
            assert np.allclose(item.input_square[expert], np.square(own).mean(axis=0), rtol=1e-3)
    assert record.layers[0].foreseen is None
    assert all(0 <= item.foreseen <= 1 for item in record.layers[1:] if item.foreseen is not None)


def digests(path: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in path.iterdir()}


@pytest.mark.parametrize("layer", [0, slow(1), slow(2)])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(
    layer: int, tiny_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    arguments = [str(tiny_checkpoint), "--data", str(text), "--tokens", "512", "--seq-len", "64"]
    assert call("calibrate", *arguments, "-o", tmp_path / "whole").exit_code == 0
    code = (
        "import os, signal, torch\ntorch.set_num_threads(1)\n"
        "from pocketmoe.calibration import stream\n"
        "enter = stream.LayerStream.enter\n"
        "def dying(self, *rest):\n"
        f"    if self.layer == {layer}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return enter(self, *rest)\n"
        "stream.LayerStream.enter = dying\n"
        "from pocketmoe.cli import main\n"
        f"main({['calibrate', *arguments, '-o', str(tmp_path / 'killed')]!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL
    again = call("calibrate", *arguments, "-o", tmp_path / "killed")
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    other = call("calibrate", *arguments, "--seed", "5", "-o", tmp_path / "killed", "--resume")
    assert other.exit_code == 2
    assert "was begun with another" in other.stderr
    resumed = call("calibrate", *arguments, "-o", tmp_path / "killed", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


class TestCalibrateRefusals:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "has no text in it"),
            (b"def f", "too few for one sequence of 64"),
            (b"abc \xff\xfe", "is not UTF-8 text: byte 0xff at position 4"),
        ],
    )
    def test_text(self, content: bytes, words: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_bytes(content)
        result = call(
            "calibrate", tiny_checkpoint, "--data", path, "--seq-len", "64", "-o", tmp_path / "c"
        )
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "c").exists()

    def test_lines_of_json(self, tiny_checkpoint: Path, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "' + "x" * 4000 + '"}\n{"other": 1}\n')
        with pytest.raises(InputError, match=r'a\.jsonl:2 has no "text"'):
            calibrate(tiny_checkpoint, path, tmp_path / "c", tokens=64, seq_len=16)
        path.write_text('{"text": 7}\n')
        with pytest.raises(InputError, match='its "text" is no string'):
            calibrate(tiny_checkpoint, path, tmp_path / "c", tokens=64, seq_len=16)
        path.write_text('{"text": "\\ud800 abc"}\n')
        with pytest.raises(InputError, match=r"half of a surrogate pair, \\ud800"):
            calibrate(tiny_checkpoint, path, tmp_path / "c", tokens=64, seq_len=16)
        assert not (tmp_path / "c").exists()
        path.write_text('{"text": ' + json.dumps(TEXT + "\u2028", ensure_ascii=False) + "}\n")
        record = calibrate(tiny_checkpoint, path, tmp_path / "c", tokens=64, seq_len=16)
        assert record.ids.shape == (4, 16)

    def test_weights_that_are_no_numbers(
        self, tiny_checkpoint: Path, text: Path, tmp_path: Path
    ) -> None:
        from safetensors.torch import load_file, save_file

        broken = tmp_path / "broken"
        shutil.copytree(tiny_checkpoint, broken)
        tensors = load_file(broken / "model.safetensors")
        name = next(name for name in sorted(tensors) if "o_proj" in name)
        tensors[name][0, 0] = float("nan")
        save_file(tensors, broken / "model.safetensors")
        with pytest.raises(CheckpointError, match="holds NaN or infinite values"):
            calibrate(broken, text, tmp_path / "c", tokens=64, seq_len=16)
        assert not (tmp_path / "c").exists()  # no layer was done

    def test_a_finished_record(self, tiny_checkpoint: Path, text: Path, tmp_path: Path) -> None:
        out = tmp_path / "cal"
        made = calibrate(tiny_checkpoint, text, out, tokens=128, seq_len=32)
        again = calibrate(tiny_checkpoint, text, out, tokens=128, seq_len=32, resume=True)
        assert again.provenance == made.provenance
        with pytest.raises(InputError, match="begun with another text"):
            calibrate(tiny_checkpoint, text, out, tokens=128, seq_len=32, seed=1, resume=True)
        with pytest.raises(InputError, match="exists; remove it"):
            calibrate(tiny_checkpoint, text, out, tokens=128, seq_len=32)
        (out / ARRAYS).unlink()
        with pytest.raises(InputError, match=r"arrays\.npz is missing"):
            read_record(out)

    def test_records(self, tiny_checkpoint: Path, text: Path, tmp_path: Path) -> None:
        out = tmp_path / "cal"
        calibrate(tiny_checkpoint, text, out, tokens=128, seq_len=32)
        with pytest.raises(InputError, match="no calibration record"):
            read_record(tmp_path)
        data = json.loads((out / RECORD).read_text())
        (out / RECORD).write_text(json.dumps({**data, "version": 9}))
        with pytest.raises(InputError, match="has version 9"):
            read_record(out)
        (out / RECORD).write_text(json.dumps(data))
        arrays = bytearray((out / ARRAYS).read_bytes())
        arrays[len(arrays) // 2] ^= 1
        (out / ARRAYS).write_bytes(arrays)
        with pytest.raises(InputError, match="is damaged"):
            read_record(out)


@pytest.mark.slow
def test_an_interrupt_leaves_what_can_be_resumed(
    tiny_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cal"
    command = [
        sys.executable, "-m", "pocketmoe", "calibrate", str(tiny_checkpoint), "--data", str(text),
        "--tokens", "4096", "--seq-len", "64", "-o", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    work = out / UNFINISHED
    until(lambda: any(work.glob("layer_*.npz")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    if process.returncode == 0:
        pytest.skip("it was done before the interrupt came")
    assert process.returncode == 130
    assert any(work.glob("layer_*.npz"))
    done = subprocess.run([*command, "--resume"], capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert read_record(out).ids.size == 4096
