"""bench/gpu/gpu_check.py runs to its end without a GPU, and says why where it is asked for one."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from pocketmoe.bench.gpu import gpu_check
from pocketmoe.errors import EngineError


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_it_runs_on_small_shapes() -> None:
    result = CliRunner().invoke(
        gpu_check.main, ["--device", "host", "--tokens", "240", "--shape", "olmoe-1b-7b"]
    )
    assert result.exit_code == 0, result
    assert "the same first token in" in result.stderr
    assert result.stderr.count("; right") == 3
    assert "WRONG" not in result.output
    for words in ("host memory", "all: 48 of 48", "half: 24 of 48", "a quarter: 12 of 48"):
        assert words in result.stdout


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise EngineError("this machine has no NVIDIA driver")

    monkeypatch.setattr(gpu_check, "start_cuda", missing)
    result = CliRunner().invoke(gpu_check.main, [])
    assert result.exit_code == 1
    assert "no NVIDIA driver (--device host runs the script without)" in result.stderr
