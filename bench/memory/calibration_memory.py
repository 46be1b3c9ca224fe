"""Memory and time of calibrating a checkpoint and of compiling it by GPTQ.

    python bench/make_checkpoint.py --shape olmoe-1b-7b -o build/olmoe-1b-7b
    python bench/memory/calibration_memory.py build/olmoe-1b-7b --data TEXT --tokens 8192

Runs `pocketmoe calibrate` and `pocketmoe compile --calibration` as a user does, each with the
checkpoint out of the page cache, and prints a Markdown table. Memory is that of all processes of a
command together, looked at four times a second: what is no file's, and their resident sets, in
which libraries that several of them map count several times.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from pocketmoe.bench.memory.memory_limit import drop_from_page_cache
from pocketmoe.sizes import format_size

POCKETMOE = str(Path(sys.executable).with_name("pocketmoe"))
_INTERVAL = 0.25


@dataclass(frozen=True)
class TreeUsage:
    """Bytes and seconds of a command with all its processes."""

    seconds: float
    resident: int
    anonymous: int


def measure_tree(command: Sequence[str]) -> TreeUsage:
    """Raises click.ClickException where the command fails; its messages are shown."""
    began = time.monotonic()
    resident = anonymous = 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None:
            sizes = [_sizes(folder) for folder in _of_session(process.pid)]
            resident = max(resident, sum(one for one, _ in sizes))
            anonymous = max(anonymous, sum(two for _, two in sizes))
            time.sleep(_INTERVAL)
    finally:
        if process.returncode is None:  # interrupted
            process.terminate()
            process.wait()
    if process.returncode:
        raise click.ClickException(f"{command[1]} ended with exit code {process.returncode}")
    return TreeUsage(time.monotonic() - began, resident, anonymous)


def _of_session(session: int) -> list[Path]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session:
            found.append(stat.parent)
    return found


def _sizes(folder: Path) -> tuple[int, int]:
    """Resident and anonymous bytes; zeros of a process that has just ended."""
    try:
        lines = (folder / "status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    resident, anonymous = (int(values.get(n, "0").split()[0]) for n in ("VmRSS", "RssAnon"))
    return 1024 * resident, 1024 * anonymous


@click.command(help="Print memory and time of calibrating a checkpoint and of compiling it.")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=8192, show_default=True, type=click.IntRange(1))
@click.option("--workers", multiple=True, default=("auto",), show_default=True)
@click.option("--calibration", type=click.Path(path_type=Path), help="one that is there already")
@click.option("--work", default="build", show_default=True, type=click.Path(path_type=Path))
def main(
    checkpoint: Path,
    data: Path,
    tokens: int,
    workers: tuple[str, ...],
    calibration: Path | None,
    work: Path,
) -> None:
    click.echo("| command | time | resident | of it no file's |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        record = calibration or Path(folder) / "calibration"
        commands = {
            f"compile --calibration --workers {count}": (
                POCKETMOE, "compile", checkpoint, "--target", "cpu", "--calibration", record,
                "--workers", count, "-o", Path(folder) / "bundle", "--force",
            )
            for count in workers
        }  # fmt: skip
        if calibration is None:
            first = (
                POCKETMOE, "calibrate", checkpoint, "--data", data, "--tokens", str(tokens),
                "-o", record,
            )  # fmt: skip
            commands = {f"calibrate --tokens {tokens}": first, **commands}
        for name, command in commands.items():
            for path in checkpoint.glob("*.safetensors"):
                drop_from_page_cache(path)
            used = measure_tree([str(part) for part in command])
            click.echo(
                f"| `{name}` | {used.seconds / 60:.1f} min | {format_size(used.resident)} | "
                f"{format_size(used.anonymous)} |"
            )


if __name__ == "__main__":
    main()
