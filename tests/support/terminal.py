"""A program on a terminal of its own, as a person uses it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pocketmoe.tests.support.waiting import PATIENCE

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\x07")


class Terminal:
    """screen: all that the program has shown, without what moves the cursor."""

    def __init__(self, command: list[str | Path], env: Mapping[str, str]):
        self._here, there = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=there, stdout=there, stderr=there, start_new_session=True,
            preexec_fn=_take_terminal, env={**env, "TERM": "xterm", "COLUMNS": "200"},
        )  # fmt: skip
        os.close(there)
        self.screen = ""
        self._seen = 0

    def type(self, text: str) -> None:
        self.send(text.encode())

    def send(self, data: bytes) -> None:
        os.write(self._here, data)

    def wait_for(self, pattern: str, seconds: float = PATIENCE) -> str:
        """Waits until what was not waited for yet matches; returns it up to the match's end."""
        end = time.monotonic() + seconds
        while True:
            if match := re.search(pattern, self.screen[self._seen :]):
                told = self.screen[self._seen : self._seen + match.end()]
                self._seen += match.end()
                return told
            if time.monotonic() > end or not self._read(0.2):
                raise AssertionError(f"no {pattern!r} in {self.screen[self._seen :]!r}")

    @property
    def echoes(self) -> bool:
        """Whether what is typed is shown by the terminal, and not by the program."""
        modes: int = termios.tcgetattr(self._here)[3]
        return bool(modes & termios.ECHO and modes & termios.ICANON)

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal sends it."""
        self.type("\x03")

    def interrupt_until(self, pattern: str) -> str:
        """Ctrl-C while a line is read, until the screen answers: Python forgets one that comes
        just before it waits for a key."""
        for _ in range(5):
            self.interrupt()
            with contextlib.suppress(AssertionError):
                return self.wait_for(pattern, 3)
        return self.wait_for(pattern)

    def ends(self, seconds: float = PATIENCE) -> int:
        """Waits for its exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.1)
        return self.process.wait(1)

    def ends_by(self, number: int) -> int:
        """Sends a signal until it ends; see interrupt_until."""
        for _ in range(10):
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.ends(1)
        return self.ends()

    def _read(self, seconds: float) -> bool:
        """Takes in what there is; False at the end."""
        if select.select([self._here], [], [], seconds)[0]:
            try:
                data = os.read(self._here, 1 << 16)
            except OSError:  # nobody is at the other end any more
                return False
            self.screen += _ESCAPES.sub("", data.decode("utf-8", "replace"))
        return True

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._here)


def _take_terminal() -> None:
    """Ctrl-C goes to the program then, and no signal is ignored because whoever runs the tests does
    so."""
    import fcntl

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def on_terminal(command: list[str | Path], **env: str) -> Iterator[Terminal]:
    terminal = Terminal(command, {**os.environ, **env})
    try:
        yield terminal
    finally:
        terminal.close()
