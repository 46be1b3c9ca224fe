"""Disconnects: a client that goes away ends the work that is done for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from ..refusals import RequestError

Result = TypeVar("Result")


async def until_gone(request: Request) -> None:
    """Returns when the client has gone. Only after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(
    request: Request,
    work: Coroutine[Any, Any, Result],
    late: Callable[[Result], None] = lambda _: None,
) -> Result:
    """What `work` returns. late: is called with it where it came too late to be cancelled.

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
                late(await task)
