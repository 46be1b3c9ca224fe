"""A request that generates, from its body to the last byte of its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ...errors import PocketMoEError
from ..bodies import until_gone
from ..generating import Begun, Ended, Event, Running, Told
from ..refusals import RequestError, refusal_of
from ..service import Service
from .answer import DONE, Usage, event
from .prepared import Prepared

Prepare = Callable[[Service, bytes], Prepared]
_CLIENT_GONE = 499  # what nobody reads any more; for the figures alone
# Without an event, after which a stream has a comment, lest a proxy takes it for dead: reading a
# long prompt takes minutes on a small device.
QUIET_SECONDS = 15.0
_COMMENT = b":\n\n"


class Work:
    """An answer that is being made: what a thread tells becomes chunks."""

    def __init__(self, service: Service, prepared: Prepared, running: Running, begun: float):
        self._service, self._running, self._begun = service, running, begun
        self._answer, self._options = prepared.answer, prepared.options
        self._first = True
        self._counted: set[int] = set()
        self._prompts = {turn.index: len(turn.ids) for turn in running.turns}
        self.usage = Usage()

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


async def respond(request: Request, service: Service, prepare: Prepare) -> Response:
    """Answers a request. One whose client goes away ends at once, wherever it is.

    Raises:
        RequestError.
    """
    begun = asyncio.get_running_loop().time()
    try:
        with service.bodies.body() as body:
            data = await body.read(request, service.limits.timeout)
            made = await unless_gone(request, begin(service, prepare, data, begun))
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)
    return made


async def begin(service: Service, prepare: Prepare, data: bytes, begun: float) -> Response:
    """From the body to the response, whose stream may still be under way."""
    with service.pool.admission():
        prepared = await service.prepare(lambda: prepare(service, data))
        turns = prepared.turns(service.session.context)
        running = await service.start(turns, begun + service.limits.timeout)
    work = Work(service, prepared, running, begun)
    try:
        if not prepared.options.stream:
            return JSONResponse(await work.whole())
        chunks = work.chunks()
        first = await anext_or_none(chunks)  # an error before it has a status of its own
    except PocketMoEError as error:
        raise refusal_of(error) from error
    except BaseException:
        running.stop()
        raise
    return EventStream(work, first, chunks)


async def anext_or_none(chunks: AsyncIterator[Any]) -> Any:
    async for item in chunks:
        return item
    return None


class EventStream(Response):
    """Server-sent events, until the answer is whole or nobody listens any more."""

    def __init__(
        self,
        work: Work,
        first: list[dict[str, Any]] | None,
        chunks: AsyncIterator[list[dict[str, Any]]],
    ):
        super().__init__(
            status_code=200,
            headers={
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-store",
                "x-accel-buffering": "no",  # proxies hold streams back otherwise
            },
        )
        del self.headers["content-length"]
        self._work, self._first, self._chunks = work, first, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(Request(scope, receive), self._write(send))
        except ClientDisconnect:
            pass
        finally:
            self.stop()

    def stop(self) -> None:
        self._work.stop()

    async def _write(self, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        quiet = True

        async def write(chunks: list[dict[str, Any]], more: bytes = b"") -> None:
            nonlocal quiet
            quiet = False
            body = b"".join(map(event, chunks)) + more
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})

        async def comment() -> None:
            nonlocal quiet
            while True:
                await asyncio.sleep(QUIET_SECONDS)
                if quiet:
                    await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
                quiet = True

        comments = asyncio.ensure_future(comment())
        try:
            await write(self._first or [])
            async for chunks in self._chunks:
                await write(chunks)
            await write(self._work.last(), DONE)
        except PocketMoEError as error:
            await write([refusal_of(error).body])
        finally:
            comments.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns.

    Raises:
        ClientDisconnect: the client has gone; `work` was cancelled.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(until_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, RequestError):
                made = await task
                if isinstance(made, EventStream):  # it was too late to cancel it
                    made.stop()
