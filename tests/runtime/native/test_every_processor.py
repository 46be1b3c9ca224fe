"""Logits and text are the same, to the byte, from every instruction set, and whatever functions the
C library and numpy choose for the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pocketmoe.runtime.native import library
from pocketmoe.tests.support.paths import DEMO, ROOT
from pocketmoe.tests.support.waiting import PATIENCE

PROGRAM = ROOT / "tests/support/output_digest.py"
SETS = library.instruction_sets()
# numpy leaves these out, and the C library those.
NUMPY_FEATURES = "NPY_DISABLE_CPU_FEATURES"
WITHOUT = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-FMA,-FMA4,-ERMS"}

pytestmark = pytest.mark.skipif(not SETS, reason="no native library")


def features_of_numpy() -> list[str]:
    """Those beyond its baseline that it uses on this processor."""
    found: list[str] = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return found


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_logits_and_text(tiny_bundle: Path, tiny_bundle_fp32: Path) -> None:
    bundles = str(tiny_bundle), str(tiny_bundle_fp32)

    def digests(name: str, **environment: str) -> list[list[str]]:
        lines = run(str(PROGRAM), name, *bundles, **environment).splitlines()
        used = SETS[0] if name == "numpy" else name
        assert all(line.endswith(f" native, {used}") for line in lines)
        return [line.split()[:2] for line in lines]

    wanted = digests(SETS[0])
    assert len(wanted) == 2
    assert wanted[0] != wanted[1]
    for name in SETS[1:]:
        assert digests(name) == wanted
    features = {NUMPY_FEATURES: " ".join(features_of_numpy())}
    assert digests("numpy", **WITHOUT, **features) == wanted
    assert digests(SETS[0], **WITHOUT, **features) == wanted


@pytest.mark.skipif(not features_of_numpy(), reason="numpy has its baseline alone here")
def test_the_switch_of_numpy_is_known() -> None:
    """That the test above takes something away."""
    program = (
        "import numpy; print(numpy.show_config(mode='dicts')['SIMD Extensions'].get('found', []))"
    )
    assert run("-c", program, **{NUMPY_FEATURES: " ".join(features_of_numpy())}).strip() == "[]"


@pytest.mark.slow
def test_the_demo_model_says_what_it_says_elsewhere(tmp_path: Path) -> None:
    """Its weights are numbers in a file, in fp32 as they are, so what it computes can be written
    down here."""
    from pocketmoe.compiler.compile import compile_bundle
    from pocketmoe.compiler.precision import parse_precision
    from pocketmoe.targets import find_target

    target = find_target("cpu")
    precision = parse_precision(["fp32"], 32, target)
    compile_bundle(DEMO, tmp_path / "demo", target=target, precision=precision)
    *found, _, _ = run(str(PROGRAM), SETS[0], str(tmp_path / "demo")).split()
    assert found == ["67d90e015815696c", "a4432c5d7f2e108b"]
