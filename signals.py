"""Signals, where work must not be broken off anywhere: Ctrl-C is put off, SIGTERM is as Ctrl-C."""

from __future__ import annotations

# What `signal` is made of, whose functions make enums of numbers: that takes ten times as long.
import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_Handler = Callable[[int, "FrameType | None"], Any]


def interrupts_deferred() -> _Deferral:
    """A context manager: Ctrl-C counts at the end of the block and not within it, so that nothing
    that the block changes is left half changed.

    SIGINT is noted while the block runs. At its end, or where `heed_interrupt` is called in it, the
    handler that was there before is called: Python's own raises KeyboardInterrupt, asyncio's
    cancels the main task, a program's own does what it does. What comes twice meanwhile, a second
    Ctrl-C too, counts once; what is to end a process at once is SIGQUIT (Ctrl-\\).

    Blocks may lie within one another: the outermost one counts. Python's signals come to the main
    thread alone, so in other threads this does nothing, nor where no Python function handles SIGINT
    (it is ignored, or ends the process).

    What is raised in other ways is not put off: by the handlers of other signals (a time limit by
    SIGALRM), or by another thread (PyThreadState_SetAsyncExc). A session that one of these has
    broken off computes nothing wrong, but may have lost room for pages: close it.
    """
    return _Deferral()


def heed_interrupt() -> None:
    """Within `interrupts_deferred`, where all is as it should be: calls the handler now if there
    was an interrupt, and raises what it raises. Costs next to nothing where there was none."""
    deferral = _outermost
    if deferral is not None and deferral.came and _is_main_thread():
        deferral.deliver()


class _Deferral:
    """The main thread's; came: whether there was an interrupt."""

    __slots__ = ("_frame", "_handler", "came")

    def __enter__(self) -> None:
        global _outermost
        self.came = False
        if _outermost is not None or not _is_main_thread():
            return
        handler = _signal.getsignal(signal.SIGINT)
        if callable(handler):
            self._handler: _Handler = handler
            _signal.signal(signal.SIGINT, self._note)
            _outermost = self

    def __exit__(self, *_: object) -> None:
        global _outermost
        if _outermost is self:
            _outermost = None
            self._put_back()
            if self.came:
                self.deliver()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came, self._frame = True, frame
        if _outermost is not self:  # the block has ended, or another signal broke it off
            self._put_back()
            self.deliver()

    def _put_back(self) -> None:
        if _signal.getsignal(signal.SIGINT) == self._note:  # else the block has set another
            _signal.signal(signal.SIGINT, self._handler)

    def deliver(self) -> None:
        frame, self._frame, self.came = self._frame, None, False
        self._handler(signal.SIGINT, frame)


_outermost: _Deferral | None = None


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


@contextmanager
def unwinding_when_terminated() -> Iterator[None]:
    """A termination signal unwinds as Ctrl-C does, so that it leaves nothing behind either."""
    handled = signal.getsignal(signal.SIGTERM)
    try:
        if handled == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _as_interrupt)
    except ValueError:  # not the main thread, which alone receives signals
        handled = None
    try:
        yield
    finally:
        if handled is not None:
            signal.signal(signal.SIGTERM, handled)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # Ctrl-C is ignored, but this is none
        handler = signal.default_int_handler
    handler(number, frame)
