"""The two files of a comparison with llama.cpp, both made from one checkpoint, and made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from pocketmoe.bench.peers.side_runs import BENCH
from pocketmoe.bundle.manifest import is_bundle
from pocketmoe.errors import InputError

INSTALL = (
    "CMAKE_ARGS='-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON' "
    "pip install gguf llama-cpp-python"
)


def check_llama_python(python: str) -> None:
    """Raises InputError, with the remedy, where gguf or llama-cpp-python cannot be imported."""
    command = [python, "-c", "import gguf, llama_cpp, numpy"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise InputError(
            f"{python} does not start ({error.strerror}); see --llama-python"
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise InputError(f"{python} cannot run llama.cpp ({reason}); install it: {INSTALL}")


def make_gguf(python: str, checkpoint: Path, out: Path) -> None:
    if out.is_file():
        return
    click.echo(f"writing {out}", err=True)
    command = [python, str(BENCH / "gguf_file.py"), str(checkpoint), str(out)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"no GGUF: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")


def make_bundle(checkpoint: Path, out: Path) -> None:
    if is_bundle(out):
        return
    click.echo(f"compiling {out}", err=True)
    program = str(Path(sys.executable).with_name("pocketmoe"))
    command = [
        program, "compile", str(checkpoint), "--target", "cpu", "--precision", "int4",
        "--block", "64", "-o", str(out),
    ]  # fmt: skip
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise InputError(f"{checkpoint} was not compiled")
