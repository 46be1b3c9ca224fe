"""One measured run of pocketmoe; compare_llama_cpp.py starts it in a process of its own.

    python bench/peers/pocketmoe_run.py '{"model": "build/olmoe", "threads": 2, "context": 1024, …}'

Prints one line of JSON: what bench/peers/llama_cpp_run.py prints for the same request, and the page
cache's counters. The request is a `SideRequest` of bench/peers/side_runs.py.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

import pocketmoe
from pocketmoe.errors import PocketMoEError


def draw(seed: int, vocab_size: int, count: int) -> list[int]:
    """Token ids, as bench/peers/llama_cpp_run.py draws them."""
    return np.random.default_rng(seed).integers(0, vocab_size, count).tolist()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Times in seconds, reads in bytes; keys that the request did not ask for are missing.

    Raises:
        PocketMoEError: the bundle does not run this way.
    """
    began = time.perf_counter()
    with pocketmoe.open(
        request["model"],
        memory_budget=request["memory_budget"],
        threads=request["threads"],
        context=request["context"],
    ) as session:
        result: dict[str, Any] = {"open_seconds": time.perf_counter() - began}
        if request["logits"]:
            ids = draw(request["seed"], session.manifest.spec.vocab_size, request["prompt"])
            np.save(request["logits"], session.forward(ids))
            return result
        for _ in range(2 if request["warm"] else 1):  # the last one counts
            result |= run(session, request)
        stats = session.stats
        result |= {
            "bytes_read": stats.bytes_read,
            "pages_touched": stats.verified_pages,
            "read_bandwidth": stats.read_bytes_per_second,
            "direct_reads": stats.direct_reads,
            "cache_slots": stats.cache_slots,
            "chunk_tokens": stats.chunk_tokens,
            "expert_engine": stats.expert_engine,
        }
    return result


def run(session: pocketmoe.Session, request: dict[str, Any]) -> dict[str, Any]:
    """The long prompt, then the short one and the tokens that follow it."""
    result: dict[str, Any] = {}
    vocab_size, seed = session.manifest.spec.vocab_size, request["seed"]
    if request["long_prompt"]:
        session.reset()
        ids = draw(seed + 1, vocab_size, request["long_prompt"])
        before = session.counters
        start = time.perf_counter()
        session.forward(ids, last_only=True)
        result["long_prompt_seconds"] = time.perf_counter() - start
        done = session.counters - before
        result["long_prompt_bytes"] = done.bytes_read
        result["long_prompt_read_seconds"] = done.read_seconds
    if request["new"]:
        session.reset()
        ids = draw(seed, vocab_size, request["prompt"] + request["new"])
        before = session.counters
        start = time.perf_counter()
        session.forward(ids[: request["prompt"]], last_only=True)
        result["prompt_seconds"] = time.perf_counter() - start
        done = session.counters - before
        result["prompt_bytes"], result["prompt_read_seconds"] = done.bytes_read, done.read_seconds
        before = session.counters
        result |= {"steps": 0, "decode_seconds": 0.0}
        start = time.perf_counter()
        for token in ids[request["prompt"] :]:
            session.forward([token], last_only=True)
            result["steps"] += 1
            result["decode_seconds"] = time.perf_counter() - start
            if result["decode_seconds"] > request["most_seconds"]:
                break
        done = session.counters - before
        result |= {
            "decode_bytes": done.bytes_read,
            "decode_read_seconds": done.read_seconds,
            "decode_hits": done.page_hits,
            "decode_misses": done.page_misses,
        }
    return result


def main() -> None:
    try:
        result = measure(json.loads(sys.argv[1]))
    except PocketMoEError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
