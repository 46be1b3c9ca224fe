"""The pool: who gets which session, in which order."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pocketmoe.server.pool import Pool
from pocketmoe.server.refusals import RequestError


def session(*seen: int) -> Any:
    return SimpleNamespace(seen=tuple(seen))


def test_a_prompt_goes_where_its_beginning_is() -> None:
    async def run() -> None:
        first, second, third = session(1, 2, 3), session(1, 2, 3, 4, 5), session()
        pool = Pool([first, second, third], queue=1)
        end = asyncio.get_running_loop().time() + 5
        assert await pool.acquire([1, 2, 3, 4, 9], end) is second
        assert await pool.acquire([1, 2, 3, 4, 9], end) is first
        assert await pool.acquire([7], end) is third
        assert pool.running == 3
        waiting = [asyncio.ensure_future(pool.acquire([number], end)) for number in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
        pool.release(second)
        pool.release(first)
        assert await waiting[0] is second
        assert await waiting[2] is first
        pool.close()
        with pytest.raises(RequestError, match="stopping"):
            await pool.acquire([1], end)

    asyncio.run(run())


def test_a_place_that_came_with_the_cancelling_goes_back() -> None:
    async def run() -> None:
        only = session()
        pool = Pool([only], queue=2)
        end = asyncio.get_running_loop().time() + 5
        await pool.acquire([1], end)
        waiting = asyncio.ensure_future(pool.acquire([1], end))
        await asyncio.sleep(0)
        pool.release(only)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pool.running == 0
        assert await pool.acquire([1], end) is only

    asyncio.run(run())
