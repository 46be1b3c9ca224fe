"""Bodies of requests, read within limits."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from ..sizes import format_size
from .refusals import RequestError

_IDLE = 30.0  # seconds that a client may send nothing
_MOST_DRAINED, _LONGEST_DRAIN = 256 << 20, 20.0  # bytes, seconds
_LEAST, _MOST, _PER_TOKEN = 1 << 20, 8 << 20, 64  # bytes of a body
ROOMS = 2  # bodies of full size that are held at once


def usual_body(context: int) -> int:
    """Bytes of a body: many more than a prompt of that many tokens has."""
    return min(max(_LEAST, context * _PER_TOKEN), _MOST)


class BodyRoom:
    """Memory for bodies, of all requests together. limit: bytes of one."""

    def __init__(self, limit: int):
        self.limit = limit
        self._held = 0

    @contextmanager
    def body(self) -> Iterator[Body]:
        body = Body(self)
        try:
            yield body
        finally:
            self._held -= body.size

    def take(self, size: int) -> None:
        if self._held + size > ROOMS * self.limit:
            raise RequestError(
                "other requests with large bodies are being read; try again later",
                status=429,
                code="queue_full",
                headers={"retry-after": "1"},
            )
        self._held += size


class Body:
    def __init__(self, room: BodyRoom):
        self._room = room
        self._chunks: list[bytes] = []
        self.size = 0

    async def read(self, request: Request, seconds: float = math.inf) -> bytes:
        """The whole body. seconds: that it may take.

        Raises:
            RequestError: it is too large, too slow, or of another type than JSON.
            ClientDisconnect.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also keeps out what a web page can send to a stranger without asking first.
            raise RequestError(
                "content-type must be application/json", status=415, param="content-type"
            )
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(
                "content-encoding is not supported here; send the body as it is",
                status=415, param="content-encoding",
            )  # fmt: skip
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > self._room.limit:
            if "100-continue" not in request.headers.get("expect", "").lower():
                await self._drain(request)
            raise self._too_large()
        async for chunk in receive_chunks(request, seconds):
            if self.size + len(chunk) > self._room.limit:
                self._chunks.clear()
                await self._drain(request)
                raise self._too_large()
            self._room.take(len(chunk))
            self.size += len(chunk)
            self._chunks.append(chunk)
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body

    async def _drain(self, request: Request) -> None:
        """Reads on, for a while: a connection that is closed while its client still sends takes
        the answer with it."""
        drained, until = 0, time.monotonic() + _LONGEST_DRAIN
        try:
            async for chunk in receive_chunks(request):
                drained += len(chunk)
                if drained > _MOST_DRAINED or time.monotonic() > until:
                    return
        except RequestError:
            return

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the body is larger than {format_size(self._room.limit)}",
            status=413,
            code="body_too_large",
            headers={"connection": "close"},
        )


async def receive_chunks(request: Request, seconds: float = math.inf) -> AsyncIterator[bytes]:
    """seconds: for all of them. One wait for each, as Python before 3.12 loses a time limit around
    another where a chunk comes just when it is over."""
    more, until = True, time.monotonic() + seconds
    while more:
        left = until - time.monotonic()
        try:
            message = await asyncio.wait_for(request.receive(), min(_IDLE, left))
        except asyncio.TimeoutError:
            raise RequestError(
                f"the body did not come within {min(_IDLE, seconds):g} s", status=408,
                headers={"connection": "close"},
            ) from None  # fmt: skip
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        yield message.get("body", b"")
