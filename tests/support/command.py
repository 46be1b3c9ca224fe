"""The command `pocketmoe` in tests: within this process, and in one of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from pocketmoe.cli import main

COMMAND = (sys.executable, "-m", "pocketmoe")


def call(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def spawn(*arguments: str | bytes | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, encoding="utf-8", timeout=120, **options
    )


def refused(result: Result | subprocess.CompletedProcess[str], *words: str) -> str:
    """Holds that the command failed as it should; returns its line on stderr."""
    code = result.exit_code if isinstance(result, Result) else result.returncode
    lines = result.stderr.splitlines()
    assert code == 2, result
    assert result.stdout == ""
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    return lines[0]
