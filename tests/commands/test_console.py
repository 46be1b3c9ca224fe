"""Progress, JSON and tables, on a terminal and elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pocketmoe.commands import console

COMMAND = (sys.executable, "-m", "pocketmoe")


def test_json_has_null_for_what_it_cannot_say(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": float("inf"), "b": [float("nan")], "c": ("x", 1)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None], "c": ["x", 1]}


def test_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with console.ProgressDisplay() as progress:
        progress.stage("experts", 4096)
        for now in (1.0, 11.0, 12.0, 30.0):  # noqa: B007
            progress.advance(1024)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "1. experts, 4.0 KiB",
        "1. experts: 50%, 2.0 KiB of 4.0 KiB, 11 s left",
    ]


def test_progress_on_a_terminal(tiny_bundle: Path) -> None:
    controller, terminal = os.openpty()
    done = subprocess.run(
        [*COMMAND, "verify", tiny_bundle],
        stdout=subprocess.PIPE, stderr=terminal, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    shown = os.read(controller, 65536)
    os.close(controller)
    assert done.returncode == 0
    assert b"1. hash" in shown
    assert b"every hash is right" in done.stdout
