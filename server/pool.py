"""The sessions of a server, and who waits for one. All of it happens on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..runtime.session import Session
from .refusals import RequestError

_SHORTEST_RETRY, _LONGEST_RETRY = 1, 60  # seconds


def shared(session: Session, ids: Sequence[int]) -> int:
    """How many tokens a prompt has in common with what a session has seen, from its beginning."""
    seen = session.seen
    for count, (one, other) in enumerate(zip(seen, ids, strict=False)):
        if one != other:
            return count
    return min(len(seen), len(ids))


class Pool:
    """queue: requests that may wait beside those that run; more are refused."""

    def __init__(self, sessions: Sequence[Session], queue: int):
        self.sessions = list(sessions)
        self._free = list(self.sessions)
        self._waiting: deque[tuple[Sequence[int], asyncio.Future[Session]]] = deque()
        self._queue = queue
        self._outside = 0  # admitted, and without a place yet
        self._seconds = 1.0  # that a request takes, the recent ones counting most
        self.closed = False  # nobody is let in any more

    @property
    def running(self) -> int:
        return len(self.sessions) - len(self._free)

    @property
    def queued(self) -> int:
        """Requests that wait, or are being prepared."""
        return self._outside

    @contextmanager
    def admission(self) -> Iterator[None]:
        """What a request does before it has a place.

        Raises:
            RequestError: the queue is full (429), or the server is stopping (503).
        """
        if self.closed:
            raise stopping()
        here = self._outside + self.running
        if here >= len(self.sessions) + self._queue:
            raise RequestError(
                f"the queue is full: {here} requests are here; try again later",
                status=429,
                code="queue_full",
                headers={"retry-after": str(self.retry_after)},
            )
        self._outside += 1
        try:
            yield
        finally:
            self._outside -= 1

    @property
    def retry_after(self) -> int:
        """Seconds until a place in the queue will probably be free."""
        return round(min(max(self._seconds / len(self.sessions), _SHORTEST_RETRY), _LONGEST_RETRY))

    async def acquire(self, ids: Sequence[int], deadline: float) -> Session:
        """The free session that has seen most of the beginning of `ids`, in the order of coming.

        deadline: on the loop's clock.

        Raises:
            RequestError: there was none in time, or the server is stopping.
        """
        if self.closed:
            raise stopping()
        if self._free and not self._waiting:
            return self._take(ids)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Session] = loop.create_future()
        entry = (ids, future)
        self._waiting.append(entry)
        timer = loop.call_at(deadline, _refuse, future, self._too_late())
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())
            raise
        finally:
            timer.cancel()
            if entry in self._waiting:
                self._waiting.remove(entry)

    def _too_late(self) -> RequestError:
        return RequestError(
            "no session was free within the server's time limit; try again later",
            status=503,
            code="timeout",
            headers={"retry-after": str(self.retry_after)},
        )

    def _take(self, ids: Sequence[int]) -> Session:
        # Of equal ones the one that was free longest, so that the others' prompts stay.
        session = max(self._free, key=lambda session: shared(session, ids))
        self._free.remove(session)
        return session

    def release(self, session: Session, seconds: float | None = None) -> None:
        """Gives a session back. seconds: that it was used."""
        if seconds is not None:
            self._seconds += 0.2 * (seconds - self._seconds)
        self._free.append(session)
        while self._waiting and self._free:
            ids, future = self._waiting.popleft()
            if not future.done():
                future.set_result(self._take(ids))

    def close(self) -> None:
        """Refuses who waits and who comes."""
        self.closed = True
        while self._waiting:
            _refuse(self._waiting.popleft()[1], stopping())


def _refuse(future: asyncio.Future[Session], error: RequestError) -> None:
    if not future.done():
        future.set_exception(error)


def stopping() -> RequestError:
    return RequestError(
        "the server is stopping", status=503, code="stopping", headers={"retry-after": "5"}
    )
