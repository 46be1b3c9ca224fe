"""compile --calibration: the same bytes each time, closer to the checkpoint, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import pocketmoe
from pocketmoe.cli import main
from pocketmoe.compiler.verify import load_decoder
from pocketmoe.runtime.bundle import CALIBRATION, read_manifest
from pocketmoe.tests.test_calibrate import TEXT

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


def logits(bundle: Path, ids: list[int]) -> np.ndarray:
    with pocketmoe.open(bundle) as session:
        return session.forward(ids)


def test_gptq_is_closer_than_rounding_and_the_same_each_time(
    tiny_checkpoint: Path, record: Path, tmp_path: Path
) -> None:
    for name, options in (
        ("rounded", ()),
        ("gptq", ("--calibration", record)),
        ("again", ("--calibration", record, "--method", "gptq")),
        ("awq", ("--calibration", record, "--method", "awq")),
        ("rtn", ("--calibration", record, "--method", "rtn")),
    ):
        done = call(
            "compile", tiny_checkpoint, "--target", "cpu", *PRECISION, *options,
            "-o", tmp_path / name,
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
    files = [read_manifest(tmp_path / name).files for name in ("gptq", "again")]
    assert files[0] == files[1]
    ids = np.random.default_rng(0).integers(1, 200, size=120).tolist()
    with torch.no_grad():
        expected = load_decoder(tiny_checkpoint)(torch.tensor([ids]))[0].numpy()
    errors = {
        name: float(np.abs(logits(tmp_path / name, ids) - expected).mean())
        for name in ("rounded", "gptq", "awq", "rtn")
    }
    assert errors["gptq"] < 0.9 * errors["rounded"]
    assert max(errors["awq"], errors["rtn"]) < 1.1 * errors["rounded"]
    said = json.loads((tmp_path / "gptq" / CALIBRATION).read_text())
    manifest = read_manifest(tmp_path / "gptq")
    assert said["method"] == "gptq"
    assert [item["layer"] for item in said["layers"]] == [e.layer for e in manifest.experts]
    for item, layer in zip(said["layers"], manifest.experts, strict=True):
        assert len(item["error"]) == len(layer.offsets)
        assert all(error is None or 0 < error < 0.5 for error in item["error"])


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
