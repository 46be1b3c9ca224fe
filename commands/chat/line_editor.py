"""Lines from a terminal, with editing and a history that is kept; or from a pipe, as they are."""

from __future__ import annotations

import codecs
import contextlib
import json
import locale
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, ModuleType

from ...files import PRIVATE, decode_utf8, write_atomically
from ..console import read_line

_log = logging.getLogger(__name__)

_KEPT = 1000  # entries of the history
_CUE, _MORE = "> ", ". "


class LineEditor:
    """history: the file to keep what is typed in, for its owner alone; None for none. words: what
    Tab completes at the beginning of a line.

    A line that ends in a backslash goes on in the next, and so does a block that is pasted. What
    begins with a space is not kept.
    """

    def __init__(self, history: Path | None, words: Iterable[str] = ()):
        self.terminal = sys.stdin.isatty()
        self._history = history
        self._words = tuple(words)
        self._readline = _load_readline() if self.terminal else None
        if self._readline is not None:
            self._set_up(self._readline)

    def read(self) -> str:
        """The next text that is not blank, without the line's end.

        Raises:
            EOFError: there is no more.
            InputError: it is not UTF-8.
        """
        text = ""
        while not text.strip():
            text = self._read_one(_CUE)
            while text.endswith("\\"):
                text = f"{text[:-1]}\n{self._read_one(_MORE)}"
        self._keep(text)
        return text

    def _read_one(self, cue: str) -> str:
        if self.terminal:
            try:
                line = read_line(cue).encode("utf-8", "surrogateescape")
            except UnicodeDecodeError as error:
                line = error.object  # decoded below, where the error says what is wrong
        else:
            line = sys.stdin.buffer.readline()
            if not line:
                raise EOFError
        return decode_utf8(line, "the line").rstrip("\r\n").replace("\r\n", "\n")

    def _set_up(self, readline: ModuleType) -> None:
        _use_utf8()
        readline.set_auto_history(False)
        readline.parse_and_bind("set enable-bracketed-paste on")
        readline.parse_and_bind("tab: complete")
        readline.set_completer_delims(" ")
        readline.set_completer(self._complete)
        for entry in self._load():
            _add(readline, entry)

    def _complete(self, begun: str, state: int) -> str | None:
        assert self._readline is not None
        if self._readline.get_begidx():
            return None
        fitting = [f"{word} " for word in self._words if begun and word.startswith(begun)]
        return fitting[state] if state < len(fitting) else None

    def _load(self) -> list[str]:
        """The history; it is shortened here, and what is no entry of it is passed over."""
        if self._history is None or not self._history.is_file():
            return []
        entries: list[str] = []
        try:
            lines = self._history.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines:
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, str) and "\0" not in entry:
                        entries.append(entry)
            if len(lines) > 2 * _KEPT:
                text = "".join(f"{json.dumps(entry)}\n" for entry in entries[-_KEPT:])
                write_atomically(self._history, text, mode=PRIVATE)
        except OSError as error:
            self._give_up_history(error)
        return entries[-_KEPT:]

    def _keep(self, text: str) -> None:
        if self._readline is None or text.startswith(" ") or "\0" in text:
            return
        _add(self._readline, text)
        if self._history is None:
            return
        try:
            self._history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(self._history, "a", encoding="utf-8", opener=_private) as file:
                file.write(f"{json.dumps(text)}\n")
        except OSError as error:
            self._give_up_history(error)

    def _give_up_history(self, error: OSError) -> None:
        _log.warning(
            "the history %s cannot be used (%s): nothing of what is typed is kept", self._history,
            error.strerror,
        )  # fmt: skip
        self._history = None


@contextlib.contextmanager
def terminal_kept() -> Iterator[None]:
    """Signals that end the program leave the terminal as it was: while a line is read, it neither
    echoes nor waits for a line's end. In the main thread, on a terminal."""
    import termios

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def end(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(termios.error):  # it is gone
            termios.tcsetattr(terminal, termios.TCSANOW, before)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    ends = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    known = [number for number in ends if signal.getsignal(number) == signal.SIG_DFL]
    for number in known:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in known:
            signal.signal(number, signal.SIG_DFL)


def _load_readline() -> ModuleType | None:
    """None where Python was built without it: then lines are read without editing."""
    try:
        import readline
    except ImportError:
        return None
    return readline


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, PRIVATE)


def _add(readline: ModuleType, entry: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):  # the terminal's encoding has not all of it
        readline.add_history(entry)


def _use_utf8() -> None:
    """Where a locale is set that knows ASCII alone, as over ssh to a device without locales:
    readline would refuse every other letter."""
    if codecs.lookup(locale.nl_langinfo(locale.CODESET)).name == "ascii":
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
