"""Sessions, as many as were asked for, within one budget."""

import subprocess
from pathlib import Path

from pocketmoe.tests.support.serving import COMMAND
from pocketmoe.tests.support.waiting import PATIENCE


def test_a_budget_for_as_many_as_were_asked_for(tiny_bundle: Path) -> None:
    command = [*COMMAND, "serve", str(tiny_bundle), "--parallel", "40", "--port", "0"]
    command += ["--memory-budget", "100MiB"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "with 40 sessions of" in done.stderr
