"""bench/make_checkpoint.py writes checkpoints of the published shapes."""

import subprocess
import sys
from pathlib import Path

import pytest

from pocketmoe.model.checkpoint import INDEX_FILE, Checkpoint

SCRIPT = Path(__file__).parent.parent / "bench" / "make_checkpoint.py"


def make(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


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
