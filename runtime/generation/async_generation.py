"""A generation for asyncio: its steps run in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from ...errors import InputError
from .pieces import Piece

if TYPE_CHECKING:
    from .generation import Generation

Result = TypeVar("Result")


class AsyncGeneration:
    """A Generation for asyncio: an asynchronous iterator of Pieces; `Session.agenerate` makes it.

    Pieces are made as they are asked for. The generation itself is made with the first piece, in
    the thread too, as reading a long prompt or a grammar takes its time.
    """

    def __init__(self, start: Callable[[], Generation]):
        self._start = start
        self._generation: Generation | None = None
        self._thread = ThreadPoolExecutor(1, "pocketmoe-generation")
        self._work: asyncio.Future[Piece | None] | None = None
        self._closed = False

    @property
    def prompt_tokens(self) -> int:
        """As of Generation; 0 before the first piece."""
        return self._generation.prompt_tokens if self._generation else 0

    @property
    def reused_tokens(self) -> int:
        """As of Generation; 0 before the first piece."""
        return self._generation.reused_tokens if self._generation else 0

    @property
    def new_tokens(self) -> int:
        """As of Generation; 0 before the first piece."""
        return self._generation.new_tokens if self._generation else 0

    @property
    def finish_reason(self) -> str | None:
        """As of Generation."""
        if self._generation is not None:
            return self._generation.finish_reason
        return "cancelled" if self._closed else None

    def token_bytes(self, token_id: int) -> bytes:
        """As of Generation.

        Raises:
            InputError: there was no piece yet.
        """
        if self._generation is None:
            raise InputError("the generation has not begun; ask for a piece first")
        return self._generation.token_bytes(token_id)

    def __aiter__(self) -> AsyncGeneration:
        return self

    async def __aenter__(self) -> AsyncGeneration:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def text(self) -> str:
        """Runs to the end. Returns all of the text, from its beginning."""
        async for _ in self:
            pass
        return "" if self._generation is None else self._generation.text()

    async def __anext__(self) -> Piece:
        if self._closed:
            raise StopAsyncIteration
        if self._work is not None:
            raise InputError("a piece of this generation is being waited for by another task")
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._next)
        self._work = work
        try:
            piece = await asyncio.shield(work)
        except BaseException:
            # Cancelled, or an error in the thread: the session is free when this is raised.
            await self.aclose()
            raise
        finally:
            self._work = None
        if piece is None:
            await self.aclose()
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Ends it, within a token or a batch of the prompt. May be called twice."""
        self._closed = True
        if self._generation is not None:
            self._generation.close()
        work = self._work
        cancelled: asyncio.CancelledError | None = None
        while work is not None and not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as error:
                cancelled = error
        if work is not None:
            work.exception()  # whoever waits for it has it too, or does not care any more
        self._thread.shutdown(wait=False)
        if cancelled is not None:
            raise cancelled

    def _next(self) -> Piece | None:
        """In the thread: the next piece, None at the end."""
        if self._generation is None:
            self._generation = self._start()
        if self._closed:  # while it was made
            self._generation.close()
        return next(self._generation, None)
