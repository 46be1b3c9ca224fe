"""Time, memory and bytes read of a command."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 0.01  # seconds between two looks


@dataclass(frozen=True)
class ProcessUsage:
    """Bytes and seconds of one process, without its children; Linux only.

    resident: the largest resident set, mapped files included. anonymous: the most of it that was no
    file's, looked at every 10 ms. read: through system calls; a mapped file's pages are not in it.
    error: the last line on stderr.
    """

    seconds: float
    resident: int
    anonymous: int
    read: int
    exit_code: int
    error: str


def measure(command: Sequence[str]) -> ProcessUsage:
    """Runs a command to its end, its output thrown away."""
    resident = anonymous = 0
    began = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        folder = Path(f"/proc/{process.pid}")
        try:
            # Not reaped, so that its counters can still be read.
            while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                status = (folder / "status").read_text()
                resident = max(resident, _number(r"VmHWM:\s+(\d+) kB", status) * 1024)
                anonymous = max(anonymous, _number(r"RssAnon:\s+(\d+) kB", status) * 1024)
                time.sleep(_INTERVAL)
            seconds = time.monotonic() - began
            read = _number(r"rchar: (\d+)", (folder / "io").read_text())
            process.wait()
        finally:
            if process.returncode is None:  # interrupted
                process.kill()
                process.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    return ProcessUsage(
        seconds=round(seconds, 2),
        resident=resident,
        anonymous=anonymous,
        read=read,
        exit_code=process.returncode,
        error=lines[-1] if lines else "",
    )


def _number(pattern: str, text: str) -> int:
    """0 where the text has none, as with a process that is just ending."""
    match = re.search(pattern, text)
    return int(match[1]) if match else 0
