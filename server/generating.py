"""Generating: each request in a thread of its own, which tells the event loop piece by piece."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from ..runtime.generation.pieces import Piece
from ..runtime.session import Session
from .pool import Pool
from .refusals import RequestError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """One generation. arguments: of Session.generate, beside the prompt."""

    index: int
    ids: Sequence[int]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Begun:
    index: int


@dataclass(frozen=True)
class Told:
    index: int
    piece: Piece


@dataclass(frozen=True)
class Ended:
    """reused: tokens of the prompt that the session had seen; new: tokens generated."""

    index: int
    reason: str
    reused: int
    new: int


Event = Begun | Told | Ended


class RunningRequest:
    """The turns of one request, one after the other on one session.

    A session's generations end within a token of `stop`; its place is free once they have.
    """

    def __init__(self, pool: Pool, session: Session, turns: Sequence[Turn]):
        self._pool, self._session, self.turns = pool, session, turns
        self._cancel = threading.Event()
        self._closed: set[int] = set()  # turns of which no more is wanted
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._future: asyncio.Future[None] | None = None
        self._ending: RequestError | None = None
        self._begun = time.monotonic()

    def start(self, executor: Executor, ended: Callable[[RunningRequest], None]) -> None:
        """ended: is called when the session is free again."""
        self._future = self._loop.run_in_executor(executor, self._work)

        def free(future: asyncio.Future[None]) -> None:
            if (error := future.exception()) is not None:
                _log.info("a generation ended early: %s", error)
            self._pool.release(self._session, time.monotonic() - self._begun)
            self._news.set()
            ended(self)

        self._future.add_done_callback(free)

    def stop(self, why: RequestError | None = None) -> None:
        """Ends it early; `take` raises why. None: nobody takes any more."""
        self._ending = self._ending or why
        self._cancel.set()
        self._news.set()

    @property
    def stopped(self) -> bool:
        """Whether it was told to end early."""
        return self._cancel.is_set()

    def close_turn(self, index: int) -> None:
        """No more is wanted of this turn."""
        self._closed.add(index)

    async def take(self) -> list[Event]:
        """What has happened since the last call; empty when all turns have ended.

        Raises:
            PocketMoEError: what stopped a generation, or RequestError: who stopped it.
        """
        while True:
            if self._ending is not None:
                raise self._ending
            if self._events:
                events, self._events = self._events, []
                return events
            if self._future is None or self._future.done():
                if self._future is not None:
                    self._future.result()  # raises what the thread has raised
                return []
            self._news.clear()
            await self._news.wait()

    def _tell(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._news.set()

    def _work(self) -> None:
        """In the thread."""
        for turn in self.turns:
            if self._cancel.is_set():
                return
            generation = self._session.generate(turn.ids, **turn.arguments, cancel=self._cancel)
            self._tell(Begun(turn.index))  # after its arguments were checked
            reason = "stop"
            with generation:
                for piece in generation:
                    reason = piece.finish_reason or reason
                    self._tell(Told(turn.index, piece))
                    if turn.index in self._closed:
                        break
            if self._cancel.is_set():
                return
            self._tell(Ended(turn.index, reason, generation.reused_tokens, generation.new_tokens))


def timed_out() -> RequestError:
    # A client that tries again would only have the same answer begun anew.
    return RequestError(
        "the answer took longer than the server's time limit; ask for fewer tokens",
        status=504,
        code="timeout",
        headers={"x-should-retry": "false"},
    )
