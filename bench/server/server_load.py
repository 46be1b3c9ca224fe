"""Loads a server with clients of all kinds, and checks that nothing leaks and no answer changes.

    python bench/server/server_load.py build/demo --memory-budget 128MiB

It starts `pocketmoe serve`, has every prompt answered alone, and then lets 32 clients ask for two
minutes: a third of them disconnect in the midst of an answer, some read slowly, the others read to
the end, half of them as a stream. Each finished answer has to be the one that was made alone. The
server's memory must keep to the budget, and its file descriptors and threads go back to where they
were. Exits with 1 where that is not so.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pocketmoe.bench.lib.server_process import serving
from pocketmoe.commands.arguments import BUDGET_SIZE, POSITIVE
from pocketmoe.runtime.memory.budget import read_budget
from pocketmoe.sizes import format_size

PATH = "/v1/completions"
STARTS = ("def main(", "class Stack:\n", "import os\n", "for name in", "return [", "if not",
          "    def __init__(self", "try:\n    ")  # fmt: skip
WAYS = ("whole", "stream", "gone", "gone", "slow", "stream")  # what clients do, evenly


@dataclass
class ClientLoad:
    """What the clients have seen. latencies: seconds to the first piece of a stream."""

    expected: dict[str, str]
    done: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True)
class Process:
    """Of the server. memory: resident bytes."""

    memory: int
    files: int
    threads: int


def look_at(pid: int) -> Process:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    values = dict(re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE))
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Process(int(values["VmRSS"]) * 1024, files, int(values["Threads"]))


def body_of(prompt: str, tokens: int, *, stream: bool) -> dict[str, Any]:
    seed = sum(prompt.encode())
    return {
        "model": "load", "prompt": prompt, "max_tokens": tokens, "temperature": 0.8, "seed": seed,
        "stream": stream,
    }  # fmt: skip


class Client:
    """A connection with one request."""

    def __init__(self, port: int, body: dict[str, Any]):
        self._port, self._body = port, body

    async def __aenter__(self) -> Client:
        self.reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port, limit=1 << 20
        )
        data = json.dumps(self._body).encode()
        self._writer.write(
            f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\nconnection: close\r\n\r\n".encode()
            + data
        )
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        self.status = int(head.split()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()  # type: ignore[union-attr]
        with suppress(OSError):
            await self._writer.wait_closed()

    async def whole(self) -> str:
        answer = json.loads(await self.reader.read())
        return str(answer["choices"][0]["text"])

    async def pieces(self) -> AsyncIterator[str]:
        async for line in self.reader:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(event["error"]["message"])
                yield event["choices"][0]["text"]


async def run_client(port: int, load: ClientLoad, tokens: int, until: float, seed: int) -> None:
    chance = random.Random(seed)
    ways = list(WAYS)
    while time.monotonic() < until:
        if not ways:
            ways = list(WAYS)
        way = ways.pop(chance.randrange(len(ways)))
        prompt = chance.choice(list(load.expected))
        begun, text, count = time.monotonic(), "", 0
        async with Client(port, body_of(prompt, tokens, stream=way != "whole")) as client:
            if client.status == 429:
                load.done["refused"] += 1
                await asyncio.sleep(0.5)
                continue
            if client.status != 200:
                load.done[f"status {client.status}"] += 1
                load.different.append(f"{way}: status {client.status}")
                continue
            if way == "whole":
                text = await client.whole()
            else:
                leave = chance.randrange(1, tokens - 1) if way == "gone" else None
                async for piece in client.pieces():
                    if count == 0:
                        load.latencies.append(time.monotonic() - begun)
                    text, count = text + piece, count + 1
                    if count == leave:
                        break
                    if way == "slow":
                        await asyncio.sleep(chance.uniform(0.02, 0.1))
        load.done[way] += 1
        same = load.expected[prompt].startswith(text) if way == "gone" else (
            text == load.expected[prompt]
        )  # fmt: skip
        if not same:
            load.different.append(f"{way}: {prompt!r}")


async def drain(port: int, body: dict[str, Any]) -> None:
    async with Client(port, body) as client:
        await client.reader.read()


async def run_load(port: int, pid: int, clients: int, seconds: float, tokens: int) -> bool:
    expected = {}
    for start in STARTS:
        for number in range(3):
            prompt = f"{start}  # {number}\n" if number else start
            async with Client(port, body_of(prompt, tokens, stream=False)) as client:
                expected[prompt] = await client.whole()
    bodies = [body_of(prompt, tokens, stream=True) for prompt in expected]
    await asyncio.gather(*(drain(port, body) for body in bodies))  # starts all threads
    await asyncio.sleep(7)
    before, load, most = look_at(pid), ClientLoad(expected), 0
    until = time.monotonic() + seconds
    tasks = [
        asyncio.create_task(run_client(port, load, tokens, until, seed)) for seed in range(clients)
    ]
    while not all(task.done() for task in tasks):
        most = max(most, look_at(pid).memory)
        await asyncio.sleep(0.2)
    await asyncio.gather(*tasks)
    await asyncio.sleep(7)  # connections that are kept alive end
    after = look_at(pid)
    metrics = await read_metrics(port)
    load.latencies.sort()
    middle, late = (load.latencies[int(len(load.latencies) * part)] for part in (0.5, 0.95))
    budget = metrics.get("memory_budget_bytes", 0)
    new = metrics["new_tokens_total"]
    counts = ", ".join(f"{count} {way}" for way, count in sorted(load.done.items()))
    print(f"requests         {counts}")
    print(f"tokens           {new:.0f}, {new / seconds:.0f} per second")
    print(f"first piece      {middle:.2f} s in the middle, {late:.2f} s for 95 %")
    print(f"pages            {metrics['cached_pages']:.0f} of {metrics['pages']:.0f} in the cache, "
          f"{metrics['page_hit_rate']:.0%} hits")  # fmt: skip
    print(f"different        {len(load.different)} {load.different[:3] or ''}")
    print(f"memory           {format_size(before.memory)} before, {format_size(most)} at most, "
          f"{format_size(after.memory)} after; budget {format_size(int(budget))}")  # fmt: skip
    print(f"descriptors      {before.files} before, {after.files} after")
    print(f"threads          {before.threads} before, {after.threads} after")
    print(f"left over        {metrics['running_requests']:.0f} running, "
          f"{metrics['queue_length']:.0f} queued")  # fmt: skip
    return not (
        load.different
        or (budget and most > budget)
        or after.files > before.files
        or after.threads > before.threads
        or metrics["running_requests"]
        or metrics["queue_length"]
    )


async def read_metrics(port: int) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return {name: float(value) for name, value in
            re.findall(r"^pocketmoe_(\w+) (\S+)$", text, re.MULTILINE)}  # fmt: skip


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--memory-budget", type=BUDGET_SIZE, help="Of the server.  [default: no limit]")
@click.option("--parallel", type=POSITIVE, default=8, show_default=True)
@click.option("--clients", type=POSITIVE, default=32, show_default=True)
@click.option("--seconds", type=POSITIVE, default=120, show_default=True)
@click.option("--tokens", type=click.IntRange(min=4), default=48, show_default=True)
@click.option("--context", type=POSITIVE, default=512, show_default=True)
def main(
    bundle: Path,
    memory_budget: int | str | None,
    parallel: int,
    clients: int,
    seconds: int,
    tokens: int,
    context: int,
) -> None:
    options = [
        "--name", "load", "--parallel", str(parallel), "--context", str(context),
        "--queue", str(clients),
    ]  # fmt: skip
    budget = read_budget(memory_budget)
    if budget is not None:
        options += ["--memory-budget", str(budget)]
    with serving(bundle, *options) as (process, port):
        good = asyncio.run(run_load(port, process, clients, seconds, tokens))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
