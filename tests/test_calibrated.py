"""compile --calibration: the same bytes each time, closer to the checkpoint, what is refused."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import pocketmoe
from pocketmoe.cli import main
from pocketmoe.compiler.verify import load_decoder
from pocketmoe.runtime.bundle import CALIBRATION, read_manifest
from pocketmoe.tests.test_calibrate import TEXT

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = Path(pocketmoe.__file__).parent / "model/demo"
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
    ):  # fmt: skip
        done = call(
            "compile", checkpoint, "--target", "cpu", "--block", "32", *options,
            "-o", tmp_path / "out",
        )  # fmt: skip
        assert done.exit_code == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
