"""A server to measure: `pocketmoe serve` in a process of its own, until the block ends."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Its process id, and the port that it listens at. Ends the program with what the server says
    where it does not start."""
    command = [sys.executable, "-m", "pocketmoe", "serve", str(bundle), "--port", "0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stderr.readline() if server.stderr is not None else ""
        found = re.search(r":(\d+)/v1", line)
        if found is None:
            sys.exit(line.strip())
        yield server.pid, int(found[1])
    finally:
        server.terminate()
        server.wait(60)
