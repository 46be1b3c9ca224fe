"""Runs a command under a hard memory limit, the page cache included, and says how it went.

    sudo python bench/memory/memory_limit.py --limit 256MiB -- pocketmoe run build/demo \
        --prompt 'def main(' --memory-budget 256MiB
    sudo python bench/memory/memory_limit.py --smallest build/demo

The limit is a memory cgroup, version 1 (`memory.limit_in_bytes`) or 2 (`memory.max`), without
swap. With --smallest, it bisects the smallest budget at which `pocketmoe run` ends well under a
limit of that same size. A bundle's files are dropped from the page cache before each run, so that
what is read is charged to the run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import click

from pocketmoe.bundle.manifest import is_bundle, read_manifest
from pocketmoe.errors import InputError, PocketMoEError
from pocketmoe.sizes import format_size, parse_size

MIB = 1 << 20


@dataclass(frozen=True)
class CgroupFiles:
    """Names of one cgroup version. `swap` limits memory and swap (1) or swap alone (2)."""

    limit: str
    swap: str
    peak: str
    kills: str


V1 = CgroupFiles(
    "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes",
    "memory.oom_control",
)  # fmt: skip
V2 = CgroupFiles("memory.max", "memory.swap.max", "memory.peak", "memory.events")


@dataclass(frozen=True)
class Outcome:
    """Bytes, and how the command ended.

    peak: most memory charged, page cache included; None where the kernel does not say.
    resident: the largest resident set of the command, or this script's own if that is larger.
    error: the last line on stderr.
    """

    limit: int
    peak: int | None
    resident: int
    killed: bool
    exit_code: int
    seconds: float
    error: str

    @property
    def ended_well(self) -> bool:
        return self.exit_code == 0 and not self.killed


def find_memory_cgroup() -> tuple[Path, CgroupFiles]:
    """Where memory cgroups can be made.

    Raises:
        InputError: nowhere.
    """
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        root, kind = Path(mount.split()[4]), source.split()
        if kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            return root, V1
        controllers = root / "cgroup.controllers"
        if kind[0] == "cgroup2" and "memory" in controllers.read_text().split():
            return root, V2
    raise InputError("no memory cgroup is mounted here; run this on a Linux host that has one")


class Cgroup:
    """A memory cgroup of its own, removed at the end of the `with` block."""

    def __init__(self, limit: int):
        root, self.files = find_memory_cgroup()
        self.path, self.limit = root / f"pocketmoe-{os.getpid()}-{time.monotonic_ns()}", limit

    def __enter__(self) -> Cgroup:
        try:
            if self.files is V2:
                (self.path.parent / "cgroup.subtree_control").write_text("+memory")
            self.path.mkdir()
            (self.path / self.files.limit).write_text(str(self.limit))
            swap = self.path / self.files.swap
            if swap.exists():
                swap.write_text(str(self.limit if self.files is V1 else 0))
        except OSError as error:
            self._remove()
            raise InputError(
                f"no memory cgroup can be made at {self.path.parent} ({error.strerror}); "
                "run this as root, outside a container or in a privileged one"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def enter_command(self, command: Sequence[str]) -> list[str]:
        """`command`, started by a shell that has joined the cgroup."""
        join = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", join, str(self.path / "cgroup.procs"), *command]

    def peak(self) -> int | None:
        file = self.path / self.files.peak
        return int(file.read_text()) if file.exists() else None

    def kills(self) -> int:
        text = (self.path / self.files.kills).read_text()
        return int(re.findall(r"^oom_kill (\d+)$", text, re.MULTILINE)[0])

    def _remove(self) -> None:
        if self.path.exists():
            self.path.rmdir()


def drop_from_page_cache(path: Path) -> None:
    """A file, or all of a folder: else what another run has read would be charged to nobody."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def run_limited(
    command: Sequence[str], limit: int, quiet: bool = False, output: IO[str] | None = None
) -> Outcome:
    """Runs a command that may use `limit` bytes; its output is shown unless quiet.

    output: a file that gets its stdout instead.
    """
    shown = subprocess.DEVNULL if quiet else sys.stderr
    for argument in command:
        if is_bundle(Path(argument)):
            drop_from_page_cache(Path(argument))
    with Cgroup(limit) as cgroup:
        began = time.monotonic()
        process = subprocess.Popen(
            cgroup.enter_command(command),
            stdout=output or shown,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            errors = process.stderr.read() if process.stderr else ""
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:  # interrupted: a cgroup in use cannot be removed
                process.kill()
                process.wait()
        outcome = Outcome(
            limit=limit,
            peak=cgroup.peak(),
            resident=usage.ru_maxrss * 1024,
            killed=cgroup.kills() > 0,
            exit_code=process.returncode,
            seconds=round(time.monotonic() - began, 2),
            error=(errors.strip().splitlines() or [""])[-1],
        )
    if not quiet:
        click.echo(errors, err=True, nl=False)
    return outcome


def find_smallest(bundle: Path, prompt: str, max_tokens: int, step: int) -> Outcome:
    """The outcome at the smallest budget, to within `step` bytes, that ends well.

    Raises:
        InputError: even the largest budget tried does not.
    """
    program = str(Path(sys.executable).with_name("pocketmoe"))

    def attempt(steps: int) -> Outcome:
        budget = steps * step
        command = [
            program, "run", str(bundle), "--prompt", prompt, "--max-tokens", str(max_tokens),
            "--memory-budget", str(budget),
        ]  # fmt: skip
        outcome = run_limited(command, budget, quiet=True)
        result = (
            "ends well" if outcome.ended_well else "killed" if outcome.killed else outcome.error
        )
        click.echo(f"{format_size(budget)}: {result}", err=True)
        return outcome

    low, high = 0, -(-(2 * read_manifest(bundle).total_bytes + 1024 * MIB) // step)
    best = attempt(high)
    if not best.ended_well:
        raise InputError(f"{bundle} does not even run in {format_size(high * step)}: {best.error}")
    while high - low > 1:
        middle = (low + high) // 2
        outcome = attempt(middle)
        if outcome.ended_well:
            high, best = middle, outcome
        else:
            low = middle
    return best


def report(outcome: Outcome, bundle: Path | None) -> str:
    """Lines for people."""
    peak = "not known" if outcome.peak is None else format_size(outcome.peak)
    end = "killed for memory" if outcome.killed else f"exit code {outcome.exit_code}"
    lines = [
        f"limit     {format_size(outcome.limit)}",
        f"peak      {peak}, page cache included",
        f"resident  {format_size(outcome.resident)} at most",
        f"end       {end} after {outcome.seconds:.1f} s",
    ]
    if bundle is not None:
        manifest = read_manifest(bundle)
        share = outcome.limit / manifest.total_bytes
        lines.append(
            f"model     {format_size(manifest.total_bytes)}: the limit is {share:.0%} of it"
        )
    return "\n".join(lines)


@click.command(help="Run COMMAND under a hard memory limit, or find the smallest that will do.")
@click.option("--limit", help="size, such as 256MiB")
@click.option(
    "--smallest",
    "bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="bisect the smallest budget for this bundle",
)
@click.option("--prompt", default="def main(", show_default=True, help="for --smallest")
@click.option("--max-tokens", default=16, show_default=True, help="for --smallest")
@click.option("--step", default="1MiB", show_default=True, help="precision of --smallest")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.argument("command", nargs=-1)
def main(
    limit: str | None, bundle: Path | None, prompt: str, max_tokens: int, step: str,
    as_json: bool, command: tuple[str, ...],
) -> None:  # fmt: skip
    if (bundle is None) == (not command) or (bundle is None) != (limit is not None):
        raise click.UsageError("give --limit SIZE -- COMMAND, or --smallest BUNDLE")
    try:
        if bundle is not None:
            outcome = find_smallest(bundle, prompt, max_tokens, parse_size(step))
        else:
            outcome = run_limited(command, parse_size(limit or ""))
    except (PocketMoEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    text = json.dumps(asdict(outcome)) if as_json else report(outcome, bundle)
    click.echo(text)
    sys.exit(0 if outcome.ended_well else 1)


if __name__ == "__main__":
    main()
