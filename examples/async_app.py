"""An asyncio program that answers several prompts at once, and gives one of them up.

python examples/async_app.py BUNDLE 'def main(' 'import os' 'class Stack:' --memory-budget 256MiB

Each prompt has a session of its own. Sessions on one bundle share its experts and its budget, and
their tokens go through the model together.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time

import pocketmoe


async def answer(session: pocketmoe.Session, prompt: str, tokens: int) -> str:
    """Other tasks go on while this one waits for its next piece."""
    text = ""
    async for piece in session.agenerate(prompt, max_new_tokens=tokens):
        text += piece.text
    return text


async def heartbeat() -> int:
    """How often the event loop came round: it is never blocked."""
    beats = 0
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0.01)
            beats += 1
    return beats


async def run(bundle: str, prompts: list[str], tokens: int, memory_budget: str | None) -> None:
    with contextlib.ExitStack() as ends:
        sessions = [
            ends.enter_context(pocketmoe.open(bundle, memory_budget=memory_budget, context=512))
            for _ in prompts
        ]
        pulse = asyncio.create_task(heartbeat())
        began = time.perf_counter()
        tasks = [
            asyncio.create_task(answer(session, prompt, tokens))
            for session, prompt in zip(sessions, prompts, strict=True)
        ]
        for prompt, text in zip(prompts, await asyncio.gather(*tasks), strict=True):
            print(f"{prompt!r} -> {text!r}")
        seconds = time.perf_counter() - began

        # Giving one up stops it within a token.
        late = asyncio.create_task(answer(sessions[0], prompts[0], 1_000_000))
        done, _ = await asyncio.wait([late], timeout=0.05)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        pulse.cancel()
        print(
            f"{len(prompts)} answers in {seconds:.2f} s; one more was "
            f"{'done' if done else 'given up'}; the loop went round {await pulse} times"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer several prompts at once.")
    parser.add_argument("bundle")
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--memory-budget")
    given = parser.parse_args()
    try:
        asyncio.run(run(given.bundle, given.prompts, given.tokens, given.memory_budget))
    except pocketmoe.PocketMoEError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
