"""A bundle of every family computes what transformers computes: the table of bench/families.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pocketmoe.model.families import FAMILIES

BENCH = Path(__file__).resolve().parents[1] / "bench" / "families.py"


@pytest.mark.slow
def test_every_family_runs_as_a_bundle(tmp_path: Path) -> None:
    output = tmp_path / "families.json"
    done = subprocess.run(
        [sys.executable, BENCH, "--default-only", "-o", output], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(output.read_text())
    assert {result["family"] for result in results} == set(FAMILIES) - {"reference"}
    for result in results:
        assert result["module"] <= 1e-4, result
        assert result["fp32"] <= 1e-3, result
        assert result["generated"] > 0, result
        assert result["damaged"] == 0, result
