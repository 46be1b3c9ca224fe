"""compile --calibration: the same bytes each time, closer to the checkpoint, what is refused."""

from __future__ import annotations

import ast
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import pocketmoe
from pocketmoe.analysis.evaluation.verify import load_decoder
from pocketmoe.bundle.manifest import CALIBRATION, read_manifest
from pocketmoe.calibration.stream import LayerStream
from pocketmoe.cli import main
from pocketmoe.errors import InputError
from pocketmoe.tests.calibration.test_calibrate import TEXT
from pocketmoe.tests.support.paths import DEMO
from pocketmoe.tests.support.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("one_thread")
PRECISION = ("--precision", "experts=int4,backbone=fp32,head=fp32", "--block", "32")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def record(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    (folder / "text.py").write_text(TEXT)
    done = call(
        "calibrate", tiny_checkpoint, "--data", folder / "text.py", "--tokens", "2048",
        "--seq-len", "64", "-o", folder / "cal",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return folder / "cal"


@pytest.mark.parametrize("method", ["gptq", "awq", "rtn"])
def test_a_method_makes_the_same_bytes_each_time(
    method: str, tiny_checkpoint: Path, record: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        done = call(
            "compile", tiny_checkpoint, "--target", "cpu", *PRECISION, "--calibration", record,
            "--method", method, "-o", tmp_path / name,
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
    manifest = read_manifest(tmp_path / "one")
    assert manifest.files == read_manifest(tmp_path / "two").files
    said = json.loads((tmp_path / "one" / CALIBRATION).read_text())
    assert said["method"] == method
    assert [item["layer"] for item in said["layers"]] == [e.layer for e in manifest.experts]
    for item, layer in zip(said["layers"], manifest.experts, strict=True):
        assert len(item["error"]) == len(layer.offsets)
        assert all(error is None or 0 < error < 0.5 for error in item["error"])


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, -1])
def test_a_compile_that_was_killed_goes_on_to_the_same_bytes(
    which: int, tiny_checkpoint: Path, record: Path, tmp_path: Path
) -> None:
    arguments = [
        str(item) for item in ("compile", tiny_checkpoint, "--target", "cpu", *PRECISION,
                               "--calibration", record)
    ]  # fmt: skip
    assert call(*arguments, "-o", tmp_path / "whole").exit_code == 0
    assert not (tmp_path / "whole.unfinished").exists()
    killed = tmp_path / "killed"
    code = (
        "import os, signal, torch\ntorch.set_num_threads(1)\n"
        "from pocketmoe.calibration import stream\n"
        "leave = stream.LayerStream.leave\n"
        "def dying(self):\n"
        f"    if self.layer == self.spec.paged_layers[{which}]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return leave(self)\n"
        "stream.LayerStream.leave = dying\n"
        "from pocketmoe.cli import main\n"
        f"main({[*arguments, '-o', str(killed)]!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL
    assert not killed.exists()
    again = call(*arguments, "-o", killed)
    assert again.exit_code == 2
    assert "go on with --resume" in again.stderr
    other = call(*arguments, "--method", "awq", "-o", killed, "--resume")
    assert other.exit_code == 2
    assert "was begun with another method" in other.stderr
    resumed = call(*arguments, "-o", killed, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert read_manifest(killed).files == read_manifest(tmp_path / "whole").files
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "killed"}


def test_layers_are_kept_when_a_later_one_fails(
    tiny_checkpoint: Path, record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        "compile", tiny_checkpoint, "--target", "cpu", *PRECISION, "--calibration", record,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert "there is no compile of" in call(*arguments, "--resume").stderr
    leave = LayerStream.leave

    def failing(stream: LayerStream) -> float:
        if stream.layer == stream.spec.paged_layers[-1]:
            raise InputError("no more")
        return leave(stream)

    with monkeypatch.context() as patch:
        patch.setattr(LayerStream, "leave", failing)
        failed = call(*arguments)
    assert failed.exit_code == 2
    assert "--resume goes on there" in failed.stderr
    assert call(*arguments, "--resume").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.slow
@torch.no_grad()
def test_gptq_on_the_trained_model_is_far_closer_than_rounding(tmp_path: Path) -> None:
    text = Path(json.__file__).read_text() + Path(ast.__file__).read_text()
    (tmp_path / "text.py").write_text(text)
    options: dict[str, tuple[str | Path, ...]] = {
        "rounded": (), "gptq": ("--calibration", tmp_path / "cal"),
    }  # fmt: skip
    done = call("calibrate", DEMO, "--data", tmp_path / "text.py", "-o", tmp_path / "cal")
    assert done.exit_code == 0, done.stderr
    model = load_decoder(DEMO)
    divergence = {}
    for name, more in options.items():
        out = tmp_path / name
        done = call("compile", DEMO, "--target", "cpu", *PRECISION, *more, "-o", out)
        assert done.exit_code == 0, done.stderr
        with pocketmoe.open(out) as session:
            ids = session.encode(Path(shutil.__file__).read_text())[:600]
            found = torch.log_softmax(torch.from_numpy(session.forward(ids)), dim=-1)
        expected = torch.log_softmax(model(torch.tensor([ids]))[0], dim=-1)
        divergence[name] = float((expected.exp() * (expected - found)).sum(dim=-1).mean())
    assert divergence["gptq"] < 0.7 * divergence["rounded"]


def test_what_is_refused(tiny_checkpoint: Path, record: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    config["rms_norm_eps"] = 1e-4
    (other / "config.json").write_text(json.dumps(config))
    for checkpoint, options, words in (
        (other, ("--calibration", record), "is the calibration of another model"),
        (tiny_checkpoint, ("--method", "awq"), "--method awq needs --calibration"),
        (tiny_checkpoint, ("--calibration", tmp_path), "is no calibration record"),
        (
            tiny_checkpoint, ("--calibration", record, "--precision", "experts=fp16"),
            "--calibration has no effect on experts in fp16",
        ),
        (tiny_checkpoint, ("--resume",), "--resume needs --calibration"),
    ):  # fmt: skip
        done = call(
            "compile", checkpoint, "--target", "cpu", "--block", "32", *options,
            "-o", tmp_path / "out",
        )  # fmt: skip
        assert done.exit_code == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
