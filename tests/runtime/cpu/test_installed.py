"""ONNX Runtime is an extra, and its packages for CPUs and GPUs exclude each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pocketmoe.tests.support.waiting import PATIENCE

COMMAND = [sys.executable, "-m", "pocketmoe"]


def distribution(folder: Path, name: str) -> None:
    """What pip leaves of an installed package, as far as its metadata goes."""
    info = folder / f"{name.replace('-', '_')}-1.31.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_two_packages_of_onnxruntime_are_refused_at_the_start(tmp_path: Path) -> None:
    distribution(tmp_path, "onnxruntime-gpu")
    done = run(tmp_path, *COMMAND, "targets")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "onnxruntime and onnxruntime-gpu are both installed" in done.stderr
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in done.stderr
    assert "pocketmoe[cuda]" in done.stderr


def test_a_program_is_told_as_well(tmp_path: Path, tiny_bundle: Path) -> None:
    distribution(tmp_path, "onnxruntime-directml")
    code = (
        "import pocketmoe\nfrom pocketmoe.errors import EngineError\n"
        f"try: pocketmoe.open({str(tiny_bundle)!r})\nexcept EngineError as error: print(error)"
    )
    done = run(tmp_path, sys.executable, "-c", code)
    assert "onnxruntime and onnxruntime-directml are both installed" in done.stdout, done.stderr
    assert "pocketmoe[cpu]" in done.stdout


@pytest.mark.parametrize(("kernels", "words"), [("native", "['text']"), ("onnxruntime", "[cpu]")])
def test_without_it_the_native_kernels_run_and_all_else_names_the_extra(
    kernels: str, words: str, tiny_bundle: Path
) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "import pocketmoe\nfrom pocketmoe.errors import EngineError\n"
        "try:\n"
        f"    with pocketmoe.open({str(tiny_bundle)!r}, kernels={kernels!r}) as session:\n"
        "        print(['text' for text in session.generate('def', max_new_tokens=1)][:1])\n"
        "except EngineError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
    )
    assert words in done.stdout, done.stderr
