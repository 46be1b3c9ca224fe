"""Responses that are streams of server-sent events."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .disconnects import unless_gone

Write = Callable[[bytes], Awaitable[None]]


class EventStream(Response, ABC):
    """Goes on until it is whole or nobody listens any more."""

    def __init__(self) -> None:
        super().__init__(
            status_code=200,
            headers={
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-store",
                "x-accel-buffering": "no",  # proxies hold streams back otherwise
            },
        )
        del self.headers["content-length"]

    @abstractmethod
    async def write_all(self, write: Write) -> None:
        """Writes the events, from the first to the last."""

    @abstractmethod
    def stop(self) -> None:
        """No more is wanted: all was written, or the client has gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientDisconnect):
                await unless_gone(Request(scope, receive), self._respond(send))
        finally:
            self.stop()

    async def _respond(self, send: Send) -> None:
        async def write(body: bytes) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self.write_all(write)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(data: dict[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
