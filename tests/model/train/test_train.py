"""Training as a process: it learns, survives a kill, and says what is wrong with its input."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pocketmoe.model.checkpoint.checkpoint import Checkpoint
from pocketmoe.model.families import find_family
from pocketmoe.tests.support.waiting import PATIENCE

pytestmark = pytest.mark.slow

NAMES = "alpha beta gamma delta size name path value item count".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small programs that follow one pattern."""
    path = tmp_path_factory.mktemp("corpus")
    chance = random.Random(0)
    for number in range(40):
        functions = []
        for _ in range(60):
            first, second, argument = (chance.choice(NAMES) for _ in range(3))
            functions.append(
                f"def {first}_{second}({argument}):\n"
                f"    return {argument} + {chance.randrange(100)}\n"
            )
        (path / f"m{number:02}.py").write_text("\n".join(functions))
    return path


def command(corpus: Path, folder: Path, steps: int = 6, seed: int = 0) -> list[str]:
    options = {
        "--preset": "tiny", "--steps": steps, "--save-every": 2, "--threads": 1, "--seed": seed,
        "--corpus": corpus, "--work": folder / "work", "--output": folder / "out",
    }  # fmt: skip
    arguments = [str(part) for pair in options.items() for part in pair]
    return [sys.executable, "-m", "pocketmoe.model.train", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE)


def held_out_losses(log: str) -> list[float]:
    return [float(loss) for loss in re.findall(r" held-out loss (\d+\.\d+)$", log, re.MULTILINE)]


def test_a_killed_run_ends_as_if_it_had_not_been(corpus: Path, tmp_path: Path) -> None:
    whole = run(*command(corpus, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr

    killed = tmp_path / "killed"
    saved = killed / "work" / "state.pt"
    with subprocess.Popen(command(corpus, killed), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PATIENCE
        while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "out").exists()
    assert 0 < torch.load(saved, weights_only=True)["step"] < 6

    resumed = run(*command(corpus, killed))
    assert resumed.returncode == 0, resumed.stderr
    assert len(held_out_losses(resumed.stderr)) < len(held_out_losses(whole.stderr))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (killed / "out" / name).read_bytes() == (tmp_path / "whole/out" / name).read_bytes()

    other = run(*command(corpus, killed, seed=1))
    assert other.returncode != 0
    assert "belongs to a run with other settings" in other.stderr
    assert "Traceback" not in other.stderr


def test_a_config_of_another_family(corpus: Path, tmp_path: Path) -> None:
    """An OLMoE that is trained can be read, and ends texts as the corpus does."""
    config = {**find_family({"model_type": "olmoe"}).tiny, "vocab_size": 384}
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = command(corpus, tmp_path, steps=2)
    arguments[arguments.index("--preset") : arguments.index("--steps")] = [
        "--config", str(tmp_path / "config.json"),
    ]  # fmt: skip
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    spec = Checkpoint(tmp_path / "out").spec
    assert (spec.family, spec.eos_token_ids) == ("olmoe", (0,))
    assert "of the family `olmoe`" in (tmp_path / "out" / "README.md").read_text()


def test_the_loss_falls(corpus: Path, tmp_path: Path) -> None:
    done = run(*command(corpus, tmp_path, steps=20))
    assert done.returncode == 0, done.stderr
    losses = held_out_losses(done.stderr)
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.5
    assert Checkpoint(tmp_path / "out").spec.num_hidden_layers == 4
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in ("Data", "Held out", "Steps", "Time", "Held-out loss"):
        assert f"| {fact} |" in card


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in range(40):
        (few / f"m{number:02}.py").write_text("x = 1\n")
    refused = run(*command(few, tmp_path))
    assert refused.returncode != 0
    assert "choose a larger --corpus" in refused.stderr
    assert "Traceback" not in refused.stderr
