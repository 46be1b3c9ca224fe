"""Output of the command line: tables, progress, log lines and errors.

Results go to stdout; progress, log lines and errors to stderr.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from ..progress import Progress
from ..sizes import format_size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from ..runtime.generation.pieces import Piece

Unit = Literal["bytes", "tokens"]
_SECONDS_BETWEEN_LINES = 10.0
_JOINERS = "\u200c\u200d"  # of scripts and emoji


def one_line(text: str) -> str:
    """`text` without line breaks and control characters, so that it stays on its line."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in " ".join(text.split())
    )


def harmless(text: str) -> str:
    """`text` without the control characters that a terminal obeys, but for lines and tabs."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf") or char in _JOINERS
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )  # fmt: skip


def print_error(message: str) -> None:
    print(f"error: {one_line(message)}", file=sys.stderr)


def print_note(message: str) -> None:
    """Says what is going on, on stderr."""
    print(one_line(message), file=sys.stderr, flush=True)


def print_interrupted() -> None:
    print("interrupted", file=sys.stderr)


def print_pieces(pieces: Iterable[Piece]) -> None:
    """Prints text as it is made, and ends its line. On a terminal, what would steer it is shown."""
    begun, terminal = False, sys.stdout.isatty()
    try:
        for piece in pieces:
            begun = begun or bool(piece.text)
            sys.stdout.write(harmless(piece.text) if terminal else piece.text)
            sys.stdout.flush()
    finally:
        if begun:
            print(flush=True)


def read_line(cue: str) -> str:
    """A line of a terminal, which `cue` asks for, and which can be edited.

    Raises:
        EOFError: there are no more.
    """
    if sys.stdin.isatty() and not sys.stdout.isatty():
        print(cue, end="", file=sys.stderr, flush=True)
        cue = ""
    return input(cue)


def print_cue() -> None:
    """Asks for a line, on stderr: stdout holds answers alone."""
    print("> ", end="", file=sys.stderr, flush=True)


def end_cue() -> None:
    """Ends the line of a cue that nobody answered."""
    print(file=sys.stderr)


def print_json(data: object) -> None:
    """Prints dataclasses, mappings and sequences; what JSON cannot say (infinity) becomes null."""
    print(json.dumps(_plain(data), indent=2, allow_nan=False))


def _plain(data: object) -> object:
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {field.name: _plain(getattr(data, field.name)) for field in dataclasses.fields(data)}
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(item) for item in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def print_facts(title: str, rows: Iterable[Sequence[str]], *, error: bool = False) -> None:
    """Prints names and their values, one per line; `error` prints to stderr."""
    print_table(title, (), rows, error=error)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    error: bool = False,
) -> None:
    """Prints a table whose first column is text and whose others are figures.

    Without `columns` it has no heading, and every column is text.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    heading = Text(one_line(title), style="bold")
    table = Table(
        box=box.SIMPLE_HEAD if columns else None,
        show_header=bool(columns),
        show_edge=False,
        pad_edge=False,
    )
    for index in range(max((len(row) for row in rows), default=len(columns))):
        name = columns[index] if columns else ""
        justify: Literal["left", "right"] = "right" if columns and index else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console = Console(stderr=error, highlight=False)
    if console.is_terminal:
        console.print(heading, table, sep="\n")
        return
    console.width = 10_000  # in a file or a pipe no cell is folded, and no line is padded
    with console.capture() as capture:
        console.print(heading, table, sep="\n")
    lines = (line.rstrip() for line in capture.get().splitlines())
    print("\n".join(lines), file=sys.stderr if error else sys.stdout)


class LogHandler(logging.Handler):
    """Writes records to the stderr of the moment, which a live progress bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {one_line(record.getMessage())}", file=sys.stderr)


def start_logging(*, verbose: bool) -> None:
    """Shows the package's warnings, and with `verbose` its information and others' warnings."""
    logger = logging.getLogger("pocketmoe")
    handler = LogHandler()
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = [handler if verbose else logging.NullHandler()]


class ProgressDisplay:
    """A Progress on stderr: a bar on a terminal, a line now and then elsewhere.

    Use it in a `with` block, which takes the bar away at its end.
    """

    def __init__(self, unit: Unit = "bytes"):
        self._progress: Progress = _Bars(unit) if sys.stderr.isatty() else _Lines(unit)

    def __enter__(self) -> Progress:
        return self._progress

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(self._progress, _Bars):
            self._progress.close()


class _Bars:
    """One bar per stage; the bars of finished stages stay until the end."""

    def __init__(self, unit: Unit):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        amount: ProgressColumn = (
            DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn()
        )
        self._bars: RichProgress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            amount,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None
        self._number = 0

    def stage(self, name: str, total: int) -> None:
        self._finish()
        self._number += 1
        self._bars.start()
        self._task = self._bars.add_task(f"{self._number}. {one_line(name)}", total=total or None)

    def advance(self, nbytes: int) -> None:
        if self._task is not None:
            self._bars.advance(self._task, nbytes)

    def close(self) -> None:
        self._bars.stop()

    def _finish(self) -> None:
        if self._task is not None:
            done = self._bars.tasks[-1].total or 1
            self._bars.update(self._task, completed=done, total=done)


class _Lines:
    """A line when a stage begins, and one every ten seconds while it goes on."""

    def __init__(self, unit: Unit):
        self._unit = unit
        self._name, self._number = "", 0
        self._total = self._done = 0
        self._began = self._shown = 0.0

    def stage(self, name: str, total: int) -> None:
        self._name, self._total, self._done = one_line(name), total, 0
        self._number += 1
        self._began = self._shown = time.monotonic()
        size = f", {self._amount(total)}" if total else ""
        print(f"{self._number}. {self._name}{size}", file=sys.stderr, flush=True)

    def advance(self, nbytes: int) -> None:
        self._done += nbytes
        now = time.monotonic()
        if now - self._shown < _SECONDS_BETWEEN_LINES or not 0 < self._done < self._total:
            return
        self._shown = now
        left = (now - self._began) * (self._total - self._done) / self._done
        print(
            f"{self._number}. {self._name}: {self._done / self._total:.0%}, "
            f"{self._amount(self._done)} of {self._amount(self._total)}, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def _amount(self, number: int) -> str:
        return format_size(number) if self._unit == "bytes" else f"{number} {self._unit}"
