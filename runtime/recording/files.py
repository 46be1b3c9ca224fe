"""The files that a session writes while it runs, where it was asked to: routes and a timeline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bundle.manifest import Manifest
from ...errors import InputError
from .route_log import RouteLog
from .timeline import Recorder

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Recording:
    """Both are None by default, and then nothing is done."""

    routes: RouteLog | None
    trace: Recorder | None

    @contextmanager
    def call(
        self, position: int, tokens: int, requests: Callable[[], tuple[int, int]]
    ) -> Iterator[None]:
        """Around a call of the session, for so many tokens from `position` on. requests: hits and
        misses of pages so far."""
        if self.trace is None:
            yield
            return
        started, before = time.perf_counter(), requests()
        name = "prompt" if is_prompt(position, tokens) else "token"
        self.trace.mark(name, started)
        try:
            yield
        finally:
            self.trace.span(name, "call", started, position=position, tokens=tokens)
            hits, misses = (now - then for now, then in zip(requests(), before, strict=True))
            self.trace.count("page requests", started, hits=hits, misses=misses)

    def close(self) -> None:
        """Puts the files in their places; one that cannot be written is a warning in the log."""
        with ExitStack() as both:
            if self.routes is not None:
                both.callback(self.routes.close)
            if self.trace is not None:
                both.callback(self.trace.close)

    def discard(self) -> None:
        """No file is made."""
        if self.routes is not None:
            self.routes.discard()
        if self.trace is not None:
            self.trace.discard()


def is_prompt(position: int, tokens: int) -> bool:
    """Whether a call reads a prompt; else it is a token of the answer."""
    return position == 0 or tokens > 1


def open_recording(
    manifest: Manifest, routes: PathLike | None, trace: PathLike | None, about: dict[str, Any]
) -> Recording:
    """about: what the trace is to say of the run.

    Raises:
        InputError: a file cannot be made, or it is one for both.
    """
    if (
        routes is not None
        and trace is not None
        and os.path.realpath(routes) == os.path.realpath(trace)
    ):
        raise InputError(f"{routes} cannot hold both routes and a trace; give two files")
    log = RouteLog(Path(routes), manifest) if routes is not None else None
    with ExitStack() as undo:
        if log is not None:
            undo.callback(log.discard)
        recorder = Recorder(Path(trace), about) if trace is not None else None
        undo.pop_all()
    return Recording(log, recorder)
