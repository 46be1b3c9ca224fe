"""bench/make_checkpoint.py writes checkpoints of the published shapes."""

import subprocess
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from pocketmoe.bench.lib.child_process import measure
from pocketmoe.bench.lib.shapes import SHAPES, with_layers
from pocketmoe.bench.lib.stored_tensors import quantization, stored_tensors
from pocketmoe.bench.make_checkpoint import SHARD_BYTES, make_checkpoint, split
from pocketmoe.model.checkpoint.checkpoint import INDEX_FILE, Checkpoint
from pocketmoe.model.families import find_family
from pocketmoe.model.parameters import count_parameters
from pocketmoe.tests.support.paths import ROOT
from pocketmoe.tests.support.waiting import PATIENCE

SCRIPT = ROOT / "bench/make_checkpoint.py"
POCKETMOE = str(Path(sys.executable).with_name("pocketmoe"))

# Billions, from model cards and papers. GLM-4.5-Air's card says 106.
TOTAL = {
    "olmoe-1b-7b": 6.92,
    "mixtral-8x7b": 46.7,
    "qwen3-30b-a3b": 30.5,
    "qwen1.5-moe-a2.7b": 14.3,
    "deepseek-v2-lite": 15.7,
    "deepseek-v3": 671.0,
    "phi-3.5-moe": 41.9,
    "granite-3.1-3b-a800m": 3.3,
    "gpt-oss-20b": 20.91,
    "gpt-oss-120b": 116.83,
    "ernie-4.5-21b-a3b": 21.8,
    "glm-4.5-air": 106.0,
    "llama-2-7b": 6.74,
    "llama-3.1-8b": 8.03,
    "mistral-7b": 7.24,
}
# Those that are published to two digits or more.
ACTIVE = {
    "mixtral-8x7b": 12.9,
    "deepseek-v2-lite": 2.4,
    "deepseek-v3": 37.0,
    "phi-3.5-moe": 6.6,
    "gpt-oss-20b": 3.61,
    "gpt-oss-120b": 5.13,
}
ENCODINGS = {"deepseek-v3": "fp8", "gpt-oss-20b": "mxfp4", "gpt-oss-120b": "mxfp4"}

# Two layers of the published encodings, small enough to be read in a moment. Sizes that blocks of
# 128 do not divide.
SMALL_FP8 = {
    **with_layers(SHAPES["deepseek-v3"], 2), "vocab_size": 300, "hidden_size": 320,
    "intermediate_size": 448, "moe_intermediate_size": 160, "num_attention_heads": 2,
    "num_key_value_heads": 2, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2,
}  # fmt: skip
SMALL_MXFP4 = {
    **with_layers(SHAPES["gpt-oss-20b"], 2), "vocab_size": 300, "hidden_size": 320,
    "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_local_experts": 4,
}  # fmt: skip


def make(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_as_many_parameters_as_published(shape: str) -> None:
    config = {k: v for k, v in SHAPES[shape].items() if k != "quantization_config"}
    count = count_parameters(find_family(config).read_config(config))
    assert count.total / 1e9 == pytest.approx(TOTAL[shape], rel=0.01)
    if shape in ACTIVE:
        assert count.active / 1e9 == pytest.approx(ACTIVE[shape], rel=0.03)


def test_as_many_tensors_and_shards_as_deepseek_v3() -> None:
    tensors = stored_tensors(SHAPES["deepseek-v3"])
    assert len(tensors) == 91_991
    assert len(list(split(tensors, SHARD_BYTES))) == 163
    assert sum(tensor.nbytes for tensor in tensors) == pytest.approx(688.6e9, rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_hollow_layers_open(shape: str, tmp_path: Path) -> None:
    config = with_layers(SHAPES[shape], 2)
    nbytes = make_checkpoint(config, tmp_path, hollow=True)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.spec.num_hidden_layers == 2
    assert checkpoint.spec.layers[1].is_paged
    assert checkpoint.encoding == ENCODINGS.get(shape)
    assert checkpoint.stored_bytes() == nbytes
    assert not checkpoint.skipped
    on_disk = sum(512 * file.stat().st_blocks for file in tmp_path.iterdir())
    assert on_disk < 8e6 < nbytes


@pytest.mark.parametrize("shape", ["deepseek-v3", "glm-4.5-air"])
def test_prediction_layers_are_there_and_skipped(shape: str, tmp_path: Path) -> None:
    config = {**with_layers(SHAPES[shape], 2), "num_nextn_predict_layers": 1}
    nbytes = make_checkpoint(config, tmp_path, hollow=True)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.spec.num_hidden_layers == 2
    assert "model.layers.2" in checkpoint.skipped[0]
    assert checkpoint.stored_bytes() < nbytes


@pytest.mark.parametrize("config", [SMALL_FP8, SMALL_MXFP4], ids=["fp8", "mxfp4"])
def test_encoded_weights_decode_to_sane_numbers(config: dict[str, Any], tmp_path: Path) -> None:
    make_checkpoint(config, tmp_path)
    with Checkpoint(tmp_path).tensors() as reader:
        for parameter in (
            "layers.1.attention.o_proj.weight",
            "layers.1.experts.0.gate.weight",
            "layers.1.experts.3.up.weight",
            "layers.1.experts.3.down.weight",
            "layers.1.router.weight",
        ):
            weight = reader.read(parameter).float()
            assert weight.isfinite().all(), parameter
            wanted = 0.02
            if "o_proj" in parameter and quantization(config) == "mxfp4":  # stored plainly
                wanted /= sqrt(2 * config["num_hidden_layers"])
            assert weight.std().item() == pytest.approx(wanted, rel=0.15), parameter
            assert abs(weight.mean().item()) < 2e-3, parameter
        assert (reader.read("layers.1.ffn_norm.weight").float() == 1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_inspect_reads_headers_alone(tmp_path: Path) -> None:
    nbytes = make_checkpoint(SHAPES["glm-4.5-air"], tmp_path, hollow=True)
    usage = measure([POCKETMOE, "inspect", str(tmp_path), "--json"])
    assert usage.exit_code == 0, usage.error
    # Interpreter and libraries included; what a mapping brings in would be resident.
    assert usage.read < 100e6
    assert usage.resident < 1e9
    assert nbytes > 2e11


@pytest.mark.slow
def test_one_layer_of_olmoe(tmp_path: Path) -> None:
    out = tmp_path / "olmoe"
    made = make("--shape", "olmoe-1b-7b", "--layers", 1, "--shard-bytes", 500_000_000, "-o", out)
    assert made.returncode == 0, made.stderr
    assert len(list(out.glob("model-0000?-of-00003.safetensors"))) == 3
    assert (out / INDEX_FILE).exists()
    checkpoint = Checkpoint(out)
    assert set(checkpoint.dtypes.values()) == {"BF16"}
    assert checkpoint.spec.vocab_size == 50304
    with checkpoint.tensors() as reader:
        first = reader.read("layers.0.experts.0.up.weight").float()
        other = reader.read("layers.0.experts.1.up.weight").float()
        assert first.std().item() == pytest.approx(0.02, rel=0.01)
        assert abs(first.mean().item()) < 1e-4
        assert abs((first * other).mean().item()) < 1e-6
        assert (reader.read("norm.weight").float() == 1).all()
    again = make("--shape", "olmoe-1b-7b", "--layers", 1, "-o", out)
    assert again.returncode == 2
    assert "is not an empty directory" in again.stderr
