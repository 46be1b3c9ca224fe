"""Installs the runtime alone under other Python versions, and runs a bundle there.

    python bench/pythons.py BUNDLE python3.10 python3.12

For each interpreter: a new virtual environment with `pocketmoe[cpu]` and cuda-python; then text
from the bundle on the CPU, and, if it has graphs for GPUs, from those on a device without hardware.
It ends with exit code 1 where one does not run, or where their texts differ.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
CUDA = "cuda-python>=12.6,<14"
PROGRAM = """
import json, sys
from pathlib import Path
import onnxruntime
import pocketmoe
from pocketmoe.bundle.manifest import read_manifest
from pocketmoe.tests.support.gpu.device_session import open_on_device
from pocketmoe.tests.support.gpu.host_device import HostDevice
from pocketmoe.runtime.gpu.loading import TierSizes

bundle, prompt = Path(sys.argv[1]), sys.argv[2]
found = {"python": sys.version.split()[0], "onnxruntime": onnxruntime.__version__}
with pocketmoe.open(bundle, backend="cpu") as session:
    found["cpu"] = session.generate(prompt, max_new_tokens=16).text()
if read_manifest(bundle).graphs is not None:
    sizes = TierSizes(slots=12, host_slots=9)
    with open_on_device(bundle, HostDevice(), sizes=sizes) as session:
        found["graphs for GPUs"] = session.generate(prompt, max_new_tokens=16).text()
print(json.dumps(found))
"""


@click.command(help="Run a bundle under other Python versions.")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("interpreters", nargs=-1, required=True)
@click.option("--prompt", default="def main(", show_default=True)
def main(bundle: Path, interpreters: tuple[str, ...], prompt: str) -> None:
    texts: dict[str, set[str]] = {}
    for interpreter in interpreters:
        with tempfile.TemporaryDirectory() as folder:
            python = str(Path(folder) / "venv/bin/python")
            subprocess.run([interpreter, "-m", "venv", f"{folder}/venv"], check=True)
            install = [python, "-m", "pip", "install", "--quiet", f"{ROOT}[cpu]", CUDA]
            subprocess.run(install, check=True)
            command = [python, "-c", PROGRAM, str(bundle.absolute()), prompt]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise click.ClickException(f"{interpreter}: {done.stderr.strip()}")
        found = json.loads(done.stdout)
        click.echo(f"Python {found.pop('python')}, ONNX Runtime {found.pop('onnxruntime')}")
        for name, text in found.items():
            click.echo(f"  {name}: {text!r}")
            texts.setdefault(name, set()).add(text)
    if differing := [name for name, found in texts.items() if len(found) > 1]:
        click.echo(f"texts differ: {', '.join(differing)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
