"""The service: the sessions, threads, limits and figures that all requests share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ..errors import PocketMoEError
from ..runtime.generation.text import TokenBytes
from ..runtime.session import Session
from .bodies import BodyRoom, usual_body
from .generating import RunningRequest, Turn, timed_out
from .metrics import Metrics
from .pool import Pool, stopping
from .refusals import refusal_of
from .tool_calls.forms import CallStyle, find_call_style

_PREPARING = 2  # threads that read requests
_VALUES, _VALUES_PER_TOKEN = 100_000, 16
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request; None for what the context suggests. queue: requests that may wait.
    timeout: seconds that a request may take in all. grace: seconds for what runs when the server is
    told to stop."""

    body: int | None = None
    queue: int = 32
    timeout: float = 600.0
    grace: float = 30.0


class Service:
    """sessions: on one bundle, one for each request that runs. name: of the model, for clients."""

    def __init__(self, sessions: Sequence[Session], name: str, limits: Limits):
        self.name, self.limits = name, limits
        self.created = int(time.time())
        self.pool = Pool(sessions, limits.queue)
        self.bodies = BodyRoom(limits.body or usual_body(sessions[0].context))
        self.session = sessions[0]  # for what no session's state matters for
        self.metrics = Metrics(self.session, self.pool)
        vocabulary = self.session.tokenizer.get_vocab(with_added_tokens=True)
        self.longest_token = max(map(len, vocabulary))  # characters; those of bytes are no fewer
        # A token of a prompt may hold several commas or brackets, which are counted.
        self.most_values = _VALUES + _VALUES_PER_TOKEN * self.session.context
        self._spell = TokenBytes(self.session.tokenizer)
        self.call_style, self.why_no_tools = find_call_style(self.session.chat_template)
        self._preparing = ThreadPoolExecutor(_PREPARING, "prepare")
        self._generating = ThreadPoolExecutor(len(sessions), "generate")
        self._running: set[RunningRequest] = set()

    @property
    def fingerprint(self) -> str:
        return f"pocketmoe-{self.session.manifest.toolchain.get('pocketmoe', '')}"

    def spell(self, token: int) -> bytes:
        return self._spell.of(token)

    def mark_token(self, style: CallStyle) -> int | None:
        """The id of the special token that begins calls; None where it is text."""
        mark = style.form.START
        token: int | None = self.session.tokenizer.token_to_id(mark) if mark else None
        return token

    async def prepare(self, work: Callable[[], Result]) -> Result:
        """Runs `work` in a thread.

        Raises:
            RequestError: whatever the runtime refuses is one.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparing, work)
        except PocketMoEError as error:
            raise refusal_of(error) from error

    async def start(self, turns: Sequence[Turn], deadline: float) -> RunningRequest:
        """Waits for a session and has it generate. deadline: on the loop's clock.

        Raises:
            RequestError: there was none in time, or the server stops.
        """
        loop = asyncio.get_running_loop()
        session = await self.pool.acquire(turns[0].ids, deadline)
        running = RunningRequest(self.pool, session, turns)
        self._running.add(running)
        timer = loop.call_at(deadline, running.stop, timed_out())

        def ended(_: RunningRequest) -> None:
            timer.cancel()
            self._running.discard(running)

        running.start(self._generating, ended)
        return running

    def stop_accepting(self) -> None:
        """Refuses who waits and who comes; what runs goes on."""
        self.pool.close()

    def stop_running(self) -> int:
        """Ends what runs, within a token. Returns how many were not ending already."""
        going = [running for running in self._running if not running.stopped]
        for running in going:
            running.stop(stopping())
        return len(going)

    @property
    def running(self) -> int:
        """Requests that generate."""
        return len(self._running)

    def close(self) -> None:
        """Ends the threads, when nothing runs any more."""
        self._preparing.shutdown(cancel_futures=True)
        self._generating.shutdown(cancel_futures=True)
