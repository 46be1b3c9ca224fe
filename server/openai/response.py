"""The response to a request that generates, from its body to the last byte of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ...errors import PocketMoEError
from ..generating import Begun, Ended, Event, RunningRequest, Told
from ..http.disconnects import unless_gone
from ..http.event_stream import EventStream, Write, event
from ..refusals import refusal_of
from ..service import Service
from .answer import TokenUsage
from .request import GenerationRequest

Reader = Callable[[Service, bytes], GenerationRequest]
_CLIENT_GONE = 499  # what nobody reads any more; for the figures alone
# Without an event, after which a stream has a comment, lest a proxy takes it for dead: reading a
# long prompt takes minutes on a small device.
QUIET_SECONDS = 15.0
_COMMENT = b":\n\n"
_DONE = b"data: [DONE]\n\n"


class AnswerChunks:
    """The chunks of an answer that is being made, from what its thread tells."""

    def __init__(
        self, service: Service, request: GenerationRequest, running: RunningRequest, begun: float
    ):
        self._service, self._running, self._begun = service, running, begun
        self._answer, self._options = request.answer, request.options
        self._first = True
        self._counted: set[int] = set()
        self._prompts = {turn.index: len(turn.ids) for turn in running.turns}
        self.usage = TokenUsage()

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """As they come; those of a list came together.

        Raises:
            PocketMoEError: no more will come, and why.
        """
        try:
            while events := await self._running.take():
                yield [chunk for event in events for chunk in self._chunks_of(event)]
        finally:
            self._running.stop()

    async def whole(self) -> dict[str, Any]:
        async for _ in self.chunks():
            pass
        return self._answer.whole(self.usage)

    def stop(self) -> None:
        self._running.stop()

    def last(self) -> list[dict[str, Any]]:
        return [self._answer.heading.last(self.usage)] if self._options.include_usage else []

    def _chunks_of(self, event: Event) -> list[dict[str, Any]]:
        if isinstance(event, Begun):
            return self._answer.begin(event.index)
        if isinstance(event, Told):
            if self._first:
                self._first = False
                now = asyncio.get_running_loop().time()
                self._service.metrics.first_token.observe(now - self._begun)
            self._service.metrics.count_new(len(event.piece.token_ids))
            chunks = self._answer.push(event.index, event.piece)
            if self._answer.is_closed(event.index):
                self._running.close_turn(event.index)
            return chunks
        self._count(event)
        return self._answer.finish(event.index, event.reason)

    def _count(self, event: Ended) -> None:
        """Of the choices of one prompt, its tokens count once."""
        usage, metrics = self.usage, self._service.metrics
        number = event.index // self._options.choices
        if number not in self._counted:
            self._counted.add(number)
            usage.prompt += self._prompts[event.index]
            usage.cached += event.reused
        usage.new += event.new
        metrics.prompt_tokens.inc(self._prompts[event.index])
        metrics.cached_tokens.inc(event.reused)


async def respond(request: Request, service: Service, read: Reader) -> Response:
    """Answers a request. One whose client goes away ends at once, wherever it is.

    Raises:
        RequestError.
    """
    begun = asyncio.get_running_loop().time()
    try:
        with service.bodies.body() as body:
            data = await body.read(request, service.limits.timeout)
            return await unless_gone(request, begin(service, read, data, begun), end_stream)
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)


async def begin(service: Service, read: Reader, data: bytes, begun: float) -> Response:
    """From the body to the response, whose stream may still be under way."""
    with service.pool.admission():
        request = await service.prepare(lambda: read(service, data))
        turns = request.turns(service.session.context)
        running = await service.start(turns, begun + service.limits.timeout)
    answer = AnswerChunks(service, request, running, begun)
    try:
        if not request.options.stream:
            return JSONResponse(await answer.whole())
        chunks = answer.chunks()
        first = await anext_or_none(chunks)  # an error before it has a status of its own
    except PocketMoEError as error:
        raise refusal_of(error) from error
    except BaseException:
        running.stop()
        raise
    return AnswerStream(answer, first, chunks)


def end_stream(response: Response) -> None:
    if isinstance(response, EventStream):
        response.stop()


async def anext_or_none(chunks: AsyncIterator[Any]) -> Any:
    async for item in chunks:
        return item
    return None


class AnswerStream(EventStream):
    """first: the chunks that came before the stream begins; None where there are none."""

    def __init__(
        self,
        answer: AnswerChunks,
        first: list[dict[str, Any]] | None,
        chunks: AsyncIterator[list[dict[str, Any]]],
    ):
        super().__init__()
        self._answer, self._first, self._chunks = answer, first, chunks

    def stop(self) -> None:
        self._answer.stop()

    async def write_all(self, write: Write) -> None:
        quiet = True

        async def tell(chunks: list[dict[str, Any]], more: bytes = b"") -> None:
            nonlocal quiet
            quiet = False
            body = b"".join(map(event, chunks)) + more
            if body:
                await write(body)

        async def comment() -> None:
            nonlocal quiet
            while True:
                await asyncio.sleep(QUIET_SECONDS)
                if quiet:
                    await write(_COMMENT)
                quiet = True

        comments = asyncio.ensure_future(comment())
        try:
            await tell(self._first or [])
            async for chunks in self._chunks:
                await tell(chunks)
            await tell(self._answer.last(), _DONE)
        except PocketMoEError as error:
            await tell([refusal_of(error).body])
        finally:
            comments.cancel()
