"""Time per token of `pocketmoe serve` beside `Session.generate`: a stream that one client reads,
against the same tokens in this process.

    python bench/server/server_overhead.py build/demo [--tokens 200] [--rounds 9]

The two take turns. All experts are in memory, and client and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from http.client import HTTPConnection
from pathlib import Path

import pocketmoe
from pocketmoe.bench.lib.server_process import serving
from pocketmoe.bench.speed.overhead import generated


def served(port: int, prompt: list[int], tokens: int) -> float:
    """Seconds per token, from the first piece to the last."""
    body = {
        "model": "bench", "prompt": prompt, "max_tokens": tokens + 1, "temperature": 0,
        "stream": True, "logit_bias": {"0": -100},
    }  # fmt: skip
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
    )
    response = connection.getresponse()
    first = last = 0.0
    for line in response:
        if line.startswith(b"data: {"):
            last = time.perf_counter()
            first = first or last
    connection.close()
    return (last - first) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", default="import os\n\n\ndef main(")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with (
        serving(args.bundle, "--name", "bench", "--context", "1024") as (_, port),
        pocketmoe.open(args.bundle, context=1024) as session,
    ):
        prompt = session.encode(args.prompt)
        generated(session, prompt, args.tokens)
        served(port, prompt, args.tokens)
        alone, streamed = [], []
        for _ in range(args.rounds):
            alone.append(statistics.mean(generated(session, prompt, args.tokens)))
            streamed.append(served(port, prompt, args.tokens))
    more = [(one - other) * 1e6 for one, other in zip(streamed, alone, strict=True)]
    extra = statistics.median(more)
    print(f"generate         {statistics.median(alone) * 1e6:8.0f} µs per token")
    print(f"served           {statistics.median(streamed) * 1e6:8.0f} µs per token")
    print(
        f"more             {extra:8.0f} µs (from {min(more):.0f} to {max(more):.0f} in "
        f"{args.rounds} rounds), {extra / 50_000:.2%} of a token at 20 tokens per second"
    )


if __name__ == "__main__":
    main()
